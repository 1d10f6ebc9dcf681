"""The composed scene against Meta-World's own, the simplified meshes, and what may be missing."""

import importlib.util
import subprocess
import sys
from typing import Any

import mujoco
import numpy as np
import pytest

from offline_meta_rl.envs import rendering as gl
from offline_meta_rl.envs.sawyer.family import TwoDrawerSawyer
from offline_meta_rl.envs.sawyer.scene import (
    DRAWER_X,
    SLIDES,
    sawyer_model,
    scene_file,
    simplified,
)
from offline_meta_rl.envs.sawyer.simulator import SawyerSimulator, agent_camera

pytestmark = pytest.mark.mujoco
with_metaworld = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="no metaworld"
)


@with_metaworld
@pytest.mark.parametrize("whole", [False, True])
def test_dynamics_are_those_of_meta_world(whole: bool) -> None:
    model = sawyer_model(whole=whole)
    source = mujoco.MjModel.from_xml_path(str(scene_file()))
    names = [source.body(index).name for index in range(source.nbody)]
    for name in filter(None, names):
        body, original = model.body(name), source.body(name)
        np.testing.assert_allclose(body.mass, original.mass, err_msg=name)
        np.testing.assert_allclose(body.inertia, original.inertia, err_msg=name)
        if name != "drawer":
            np.testing.assert_allclose(body.pos, original.pos, err_msg=name)
    for index in range(source.njnt):
        original = source.joint(index)
        copies = [original.name] + ["right_goal_slidey"] * (original.name == "goal_slidey")
        for joint in map(model.joint, copies):
            np.testing.assert_array_equal(joint.range, original.range)
            np.testing.assert_array_equal(joint.damping, original.damping)
            np.testing.assert_array_equal(joint.axis, original.axis)
    assert (model.nq, model.nu, model.nbody) == (source.nq + 1, source.nu, source.nbody + 4)
    assert model.opt.timestep == source.opt.timestep == 0.0025


@with_metaworld
def test_drawers_stand_side_by_side() -> None:
    model = sawyer_model()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    places = [data.xanchor[model.joint(name).id] for name in SLIDES]
    np.testing.assert_allclose([place[0] for place in places], DRAWER_X, atol=1e-9)
    np.testing.assert_allclose(places[0][1:], places[1][1:])
    left, right = model.body("drawer_link").id, model.body("right_drawer_link").id
    for field in ("geom_size", "geom_pos", "geom_contype", "geom_solref", "geom_friction"):
        values = getattr(model, field)
        np.testing.assert_allclose(
            values[model.geom_bodyid == left], values[model.geom_bodyid == right], err_msg=field
        )
    assert (model.geom_contype[model.geom_bodyid == right] == 1).sum() == 8


@with_metaworld
def test_what_is_left_out_is_not_seen() -> None:
    simulator = SawyerSimulator()
    whole = mujoco.MjData(sawyer_model(whole=True))
    try:
        cameras = agent_camera(128), agent_camera(128, whole=True)
    except RuntimeError as error:
        pytest.skip(str(error))
    generator = np.random.default_rng(0)
    simulator.start(np.zeros(3))
    for _ in range(4):
        direction = generator.uniform(-1.0, 1.0, 3)
        for _ in range(12):
            simulator.move(direction)
        whole.qpos[:] = simulator.data.qpos
        mujoco.mj_kinematics(sawyer_model(whole=True), whole)
        for model, data in ((simulator.model, simulator.data), (sawyer_model(whole=True), whole)):
            mujoco.mj_camlight(model, data)
        pictures = [
            camera.picture(data).astype(int)[1:115]  # above and below is the floor, if any
            for camera, data in zip(cameras, (simulator.data, whole), strict=True)
        ]
        differ = np.abs(pictures[0] - pictures[1]).max(axis=-1) > 50
        assert differ.mean() < 0.005
    for camera in cameras:
        camera.close()


def test_corners_of_a_cell_become_one_vertex() -> None:
    far, near = [[0, 0, 0], [8, 0, 0], [0, 8, 0]], [[0, 0, 0], [1, 0, 0], [0, 8, 0]]
    again = [[1, 0, 0], [8, 1, 0], [0, 7, 0]]
    vertices, faces = simplified(np.array([far, near, again], dtype=np.float32), grid=4.0)
    assert len(faces) == 1, "one triangle has collapsed, one was there twice"
    np.testing.assert_allclose(
        vertices[faces[0]], [[0.5, 0, 0], [8, 0.5, 0], [0, 23 / 3, 0]], rtol=1e-6
    )
    cloud = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 3, 3))
    vertices, faces = simplified(cloud, grid=1e-6)
    np.testing.assert_allclose(vertices[faces], cloud)
    vertices, _ = simplified(cloud, grid=0.25)
    gap = np.linalg.norm(cloud.reshape(-1, 1, 3) - vertices, axis=-1).min(axis=1)
    assert gap.max() <= 0.25 * np.sqrt(3.0)


def test_without_metaworld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"not installed\)\. Install it with .*offline_meta_rl\[sawyer\]"
    ):
        scene_file()


def test_with_another_metaworld(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    spec = importlib.util.spec_from_loader("metaworld", None)
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ImportError, match=r"metaworld 3 \(no scene sawyer_drawer\.xml in it\)"):
        scene_file()


@with_metaworld
def test_without_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    failed = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    family = TwoDrawerSawyer()
    engine = family.make_engine(family.task_parameters(0), seed=0)
    with pytest.raises(
        RuntimeError, match=r"found neither. Install .*libegl1 and libegl-mesa0, or libosmesa6"
    ):
        engine.reset()
    engine.close()


@with_metaworld
def test_with_a_gl_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco.gl_context

    def broken(width: int, height: int) -> None:
        raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(mujoco.gl_context, "GLContext", broken)
    with pytest.raises(
        RuntimeError, match=r"found MUJOCO_GL=egl: ImportError: Cannot .* Install .*libosmesa6"
    ):
        agent_camera(64)


RENDER_AND_EXIT = """
import sys
import numpy as np
from offline_meta_rl.envs.sawyer.family import TwoDrawerSawyer
engine = TwoDrawerSawyer().make_engine(np.zeros((2, 1)), seed=0, num_threads=2)
try:
    engine.reset()
except RuntimeError:
    sys.exit(77)
assert "metaworld" not in sys.modules, "only its files are needed"
"""


@with_metaworld
def test_exit_is_silent_without_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", RENDER_AND_EXIT], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("no EGL and no OSMesa on this machine")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_display_is_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")
    tried = []

    def run(*arguments: Any, env: dict[str, str], **_: Any) -> Any:
        tried.append(env["MUJOCO_GL"])
        return subprocess.CompletedProcess([], returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    assert gl.use_working_gl()
    assert not tried
    assert gl.use_working_gl(display=False)
    assert tried == ["egl", "osmesa"]
