"""Rendering without a display: which OpenGL MuJoCo uses, and what to install where there is none."""

import importlib
import os
import subprocess
import sys

GL_LIBRARIES = (
    "the system library for EGL or OSMesa (Debian: libegl1 and libegl-mesa0, or libosmesa6)"
)


def use_working_gl(*, display: bool = True) -> bool:
    """Let MuJoCo render without a display, by the first of EGL and OSMesa that works.

    Leaves everything as it is where ``MUJOCO_GL`` is set. Each candidate is tried in a process of
    its own, since a failed attempt cannot be undone.

    Args:
        display: use a display where there is one. Windows belong to one thread: rendering on
            several threads has to do without.

    Returns:
        False if nothing works.
    """
    shown = bool(os.environ.get("DISPLAY"))
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux" or (display and shown):
        return True
    for name in ("egl", "osmesa"):
        done = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            timeout=60,
        )
        if done.returncode == 0:
            os.environ["MUJOCO_GL"] = name
            # MuJoCo chooses when it is imported, which may have happened long ago.
            module = importlib.import_module("mujoco.gl_context")
            backend = importlib.import_module(f"mujoco.{name}")
            module.GLContext = backend.GLContext  # type: ignore[attr-defined]
            return True
    return shown


def require_gl() -> None:
    """Choose an OpenGL for rendering on any thread, as ``use_working_gl`` does.

    Raises:
        RuntimeError: nothing works; names what to install.
    """
    if not use_working_gl(display=False):
        raise RuntimeError(
            "Images cannot be rendered: expected EGL or OSMesa, found neither. Install "
            f"{GL_LIBRARIES}."
        )
