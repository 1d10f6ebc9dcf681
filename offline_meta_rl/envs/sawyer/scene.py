"""Meta-World's Sawyer in front of two drawers, side by side, as one MuJoCo model.

Meta-World's scene ``sawyer_drawer.xml`` has one drawer; a second copy of its drawer is attached
beside it. The robot faces +y and its left is -x, so drawer 0 is the left one. Only files of the
package ``metaworld`` are read (extra ``sawyer``); nothing of it is imported. What the camera sees
is made cheap to draw without a GPU: no shadows, reflections or multi-sampling; the robot's parts
that never come into view and the floor are left out; the meshes of the arm are simplified on a grid
of 4 mm, where a pixel of the agent's image covers more than 10 mm. Masses, joints and the drawers'
contacts are those of Meta-World.
"""

import importlib.util
from functools import cache
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array

DRAWER_X = (-0.15, 0.15)
DRAWER_Y = 0.9
SLIDES = ("goal_slidey", "right_goal_slidey")
"""Joints of the drawers; position 0 is closed, -0.16 m is fully open."""
DRAWER_TRAVEL = 0.16
MESH_GRID = 0.004
MAX_PIXELS = 256

# Relative pose of hand and mocap body, and torque scale: Meta-World overwrites what the compiler
# takes from the model's initial pose.
WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
OUT_OF_VIEW = (
    "controller_box",
    "pedestal_feet",
    "torso",
    "pedestal",
    "right_arm_base_link",
    "head",
    "screen",
    "right_l0",
    "right_l1",
    "right_l1_2",
    "right_l2",
)
ARM_MESHES = ("l3", "l4", "l5", "l6", "eGripperBase")
STL_HEADER = 84
STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")])


def scene_file() -> Path:
    """Return Meta-World's drawer scene.

    Raises:
        ImportError: ``metaworld`` is not installed, or has no such file.
    """
    found = importlib.util.find_spec("metaworld")
    folders = (found.submodule_search_locations if found else None) or []
    for folder in folders:
        path = Path(folder) / "assets" / "sawyer_xyz" / "sawyer_drawer.xml"
        if path.is_file():
            return path
    raise ImportError(
        "TwoDrawerSawyer needs the robot and the drawer of metaworld 3 "
        f"({'no scene sawyer_drawer.xml in it' if folders else 'not installed'}). Install it with "
        '`pip install "offline_meta_rl[sawyer]"`.'
    )


def sawyer_model(*, whole: bool = False) -> mujoco.MjModel:
    """Return the model; it is built once in a process, and must not be changed.

    Args:
        whole: Keep every part and mesh of the robot as it is, for pictures from other places than
            the agent's camera. States fit both.

    Raises:
        ImportError: ``metaworld`` is not installed.
    """
    return _compiled(whole)


@cache
def _compiled(whole: bool) -> mujoco.MjModel:
    path = scene_file()
    spec = mujoco.MjSpec.from_file(str(path))
    spec.body("drawer").pos = [DRAWER_X[0], DRAWER_Y, 0.0]
    second = _second_drawer(path.parent.parent)
    place = spec.worldbody.add_frame(pos=[DRAWER_X[1], DRAWER_Y, 0.0])
    place.attach_body(second.body("drawer"), prefix="right_")
    # It marks where Meta-World's own task ends; this task has no such place to show.
    spec.site("goal").delete()
    if not whole:
        _leave_out_of_view(spec)
        for mesh in spec.meshes:
            if mesh.name in ARM_MESHES:
                _simplify(mesh, path.parent)
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 0
    spec.visual.global_.offwidth = spec.visual.global_.offheight = MAX_PIXELS
    for material in spec.materials:
        material.reflectance = 0.0
    model = spec.compile()
    model.eq_data[model.eq_type == mujoco.mjtEq.mjEQ_WELD] = WELD
    return model


def _second_drawer(assets: Path) -> mujoco.MjSpec:
    """Return a scene of one drawer and nothing else, so that attaching it copies no robot."""
    return mujoco.MjSpec.from_string(
        f"""
        <mujoco>
          <compiler meshdir="{assets}/sawyer_xyz"/>
          <include file="{assets}/objects/assets/drawer_dependencies.xml"/>
          <worldbody>
            <body name="drawer">
              <include file="{assets}/objects/assets/drawer.xml"/>
            </body>
          </worldbody>
        </mujoco>
        """
    )


def _leave_out_of_view(spec: mujoco.MjSpec) -> None:
    """Delete the geoms that the agent's camera never shows, and what only they use.

    The arm's parts have masses of their own, not their geoms'; nothing reaches the floor.
    """
    for name in OUT_OF_VIEW:
        for geom in list(spec.body(name).geoms):
            geom.delete()
    spec.geom("floor").delete()
    spec.material("basic_floor").delete()
    spec.texture("T_floor").delete()
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            mesh.delete()


def _simplify(mesh: mujoco.MjsMesh, folder: Path) -> None:
    """Replace the file of a mesh by its simplified triangles."""
    content = (folder / mesh.file).read_bytes()[STL_HEADER:]
    vertices, faces = simplified(np.frombuffer(content, STL_TRIANGLE)["corners"], MESH_GRID)
    mesh.file = ""
    mesh.uservert = vertices.ravel()
    mesh.userface = faces.ravel()


def simplified(corners: NDArray[np.floating], grid: float) -> tuple[Array, NDArray[np.int32]]:
    """Merge the corners of triangles that fall into one cell of a grid (vertex clustering).

    Args:
        corners: [F, 3, 3], three corners of every triangle.
        grid: Edge of a cell, in the corners' unit.

    Returns:
        Vertices [V, 3], the mean of the corners of each cell in use, and faces [G, 3], the
        triangles whose corners lie in three different cells, none twice.
    """
    points = corners.reshape(-1, 3).astype(np.float64)
    cells = np.round(points / grid).astype(np.int64)
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cell = cell.reshape(-1)
    vertices = np.stack([np.bincount(cell, weights=axis) for axis in points.T], axis=1)
    faces = cell.reshape(-1, 3)
    ordered = np.sort(faces, axis=1)
    faces, ordered = (rows[(np.diff(ordered, axis=1) > 0).all(axis=1)] for rows in (faces, ordered))
    # Clustering makes many triangles of a fine mesh the same one.
    _, first = np.unique(ordered, axis=0, return_index=True)
    return vertices / count[:, None], faces[np.sort(first)].astype(np.int32)
