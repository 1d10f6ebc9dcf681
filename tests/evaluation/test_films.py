"""Films of adaptation: content, both suffixes, and one warning where nothing can be filmed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.evaluation import films as video
from offline_meta_rl.networks.policy import BatchedPolicy


def adapt_tasks(context: TensorDict, num_steps: int) -> BatchedPolicy:
    """Stand still before adaptation, walk to the right after it."""
    size = context["action"].shape[-1]
    weight = torch.zeros(1, context["observation"].shape[-1], size)
    return BatchedPolicy([weight], [torch.full((1, size), float(num_steps))], sigma=0.1)


def make_context(observation_size: int, action_size: int) -> TensorDict:
    fields = {
        "observation": torch.zeros(1, 4, observation_size),
        "action": torch.zeros(1, 4, action_size),
    }
    return TensorDict(fields, batch_size=[1, 4])


def film(path: Path, family: str = "point_robot") -> Path | None:
    chosen = FAMILIES[family]
    context = make_context(chosen.observation_size, chosen.action_size)
    return video.film_adaptation(adapt_tasks, context, chosen, 1, path)


# The reader of imageio leaves its pipes to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_before_and_after_are_side_by_side(tmp_path: Path) -> None:
    imageio: Any = pytest.importorskip("imageio.v3")
    path = film(tmp_path / "film")
    assert path is not None
    frames = imageio.imread(path)
    # 20 steps and the initial state; two frames of 96 pixels beside each other, under a label.
    assert frames.shape == (21, 96 + video.LABEL_HEIGHT, 192, 3)
    left, right = frames[-1, video.LABEL_HEIGHT :, :96], frames[-1, video.LABEL_HEIGHT :, 96:]
    assert np.abs(left.astype(int) - right.astype(int)).max() > 60
    start = np.abs(frames[0, :, :96].astype(int) - frames[0, :, 96:])[video.LABEL_HEIGHT :]
    assert start.max() < 60


def test_a_gif_where_there_is_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio: Any = pytest.importorskip("imageio.v3")
    write = imageio.imwrite

    def without_ffmpeg(path: Path, frames: Any, **options: Any) -> None:
        if path.suffix == ".mp4":
            raise ImportError("no ffmpeg")
        write(path, frames, **options)

    monkeypatch.setattr(imageio, "imwrite", without_ffmpeg)
    path = film(tmp_path / "film")
    assert path == tmp_path / "film.gif"
    assert path.read_bytes().startswith(b"GIF8")


def test_one_warning_without_imageio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    with pytest.warns(
        UserWarning, match=r"No video: .*imageio.* It needs the extra 'video'"
    ) as seen:
        assert film(tmp_path / "film") is None
    assert len(seen) == 1
    assert not list(tmp_path.iterdir())


def test_one_warning_without_gl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio.v3")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], returncode=1)
    )
    with pytest.warns(UserWarning, match="No video: RuntimeError: neither EGL nor OSMesa") as seen:
        assert film(tmp_path / "film", "cheetah_dir") is None
    assert len(seen) == 1
    # The point robot draws itself.
    assert film(tmp_path / "film") is not None


def test_films_of_different_lengths_are_joined() -> None:
    pytest.importorskip("PIL")
    short, long = np.zeros((2, 4, 6, 3), np.uint8), np.full((5, 4, 6, 3), 200, np.uint8)
    short[1] = 50
    joined = video.side_by_side({"before": short, "after": long})
    assert joined.shape == (5, 4 + video.LABEL_HEIGHT, 12, 3)
    assert (joined[4, video.LABEL_HEIGHT :, :6] == 50).all()
    assert (joined[:, video.LABEL_HEIGHT :, 6:] == 200).all()


FILM_A_CHEETAH = """
import mujoco, sys
from offline_meta_rl.envs import rendering as gl
from offline_meta_rl.evaluation import films as video
from offline_meta_rl.envs import FAMILIES
if not gl.use_working_gl():
    sys.exit(77)
env = video._make_env(FAMILIES["cheetah_dir"], 0, 0)
env.reset(seed=0)
frame = env.render()
env.close()
assert frame.shape == (240, 320, 3) and frame.std() > 10, frame.std()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="EGL and OSMesa are for machines with Linux")
def test_gl_is_chosen_after_mujoco_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", FILM_A_CHEETAH], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("no EGL and no OSMesa on this machine")
    assert done.returncode == 0, done.stderr


def test_policy_module_is_what_films(tmp_path: Path) -> None:
    """The policy sees each observation and acts on it, clipped to [-1, 1]."""

    class Seen(nn.Module):
        """Records observations and asks for too much."""

        rows: list[torch.Tensor] = []  # noqa: RUF012

        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            self.rows.append(observation)
            return torch.full((1, 2), 9.0)

    with video._make_env(FAMILIES["point_robot"], 0, 0) as env:
        frames = video.film_episode(env, Seen(), seed=0)
    assert len(frames) == 21
    steps = torch.diff(torch.cat(Seen.rows), dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.1))
