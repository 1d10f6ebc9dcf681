"""Rendering without a display: which OpenGL MuJoCo uses, and a camera that owns its context.

MuJoCo is imported when something is to be rendered.
"""

import atexit
import importlib
import os
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mujoco  # imported when something is to be rendered

GL_LIBRARIES = (
    "the system library for EGL or OSMesa (Debian: libegl1 and libegl-mesa0, or libosmesa6)"
)


def use_working_gl(*, display: bool = True) -> bool:
    """Let MuJoCo render without a display, by the first of EGL and OSMesa that works.

    Leaves everything as it is where ``MUJOCO_GL`` is set. Each candidate is tried in a process of
    its own, since a failed attempt cannot be undone.

    Args:
        display: Use a display where there is one. Windows belong to one thread: rendering on
            several threads has to do without.

    Returns:
        False if nothing works.
    """
    shown = bool(os.environ.get("DISPLAY"))
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux" or (display and shown):
        return True
    for name in ("egl", "osmesa"):
        if _works(name):
            os.environ["MUJOCO_GL"] = name
            # MuJoCo chooses when it is imported, which may have happened long ago.
            module = importlib.import_module("mujoco.gl_context")
            backend = importlib.import_module(f"mujoco.{name}")
            module.GLContext = backend.GLContext  # type: ignore[attr-defined]
            return True
    return shown


def _works(name: str) -> bool:
    """Return whether a process of its own gets a context."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            timeout=300,  # a second, unless the machine is very busy
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


class GlContext(Protocol):
    """What EGL's and OSMesa's contexts have in common."""

    def make_current(self) -> None:
        """Draw into this context from now on, on this thread."""

    def free(self) -> None:
        """Let go of it."""


class Camera:
    """Draws a model from one place; belongs to the thread that makes it.

    Args:
        model: A ``mujoco.MjModel``.
        size: Pixels of a side; at most those of the model's off-screen buffer.
        azimuth: Direction of view around the vertical axis, degrees.
        elevation: Direction of view above the horizontal plane, degrees.
        distance: Distance from the point looked at, metres.
        lookat: The point looked at.

    Raises:
        RuntimeError: Neither EGL nor OSMesa works; names what to install.
    """

    def __init__(
        self,
        model: "mujoco.MjModel",
        size: int,
        *,
        azimuth: float,
        elevation: float,
        distance: float,
        lookat: tuple[float, float, float],
    ) -> None:
        import mujoco

        self._model = model
        self._view, self._options = mujoco.MjvCamera(), mujoco.MjvOption()
        self._view.azimuth, self._view.elevation = azimuth, elevation
        self._view.distance, self._view.lookat = distance, lookat
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 8)
        self._area = mujoco.MjrRect(0, 0, size, size)
        self._pixels = np.empty((size, size, 3), dtype=np.uint8)
        self._gl = _open_context(size)
        self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        _open_cameras.add(self)

    def picture(self, data: "mujoco.MjData") -> NDArray[np.uint8]:
        """Return a view [size, size, 3] of a ``mujoco.MjData`` whose kinematics are up to date.

        The next call overwrites it.
        """
        import mujoco

        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._view, everything, self._scene
        )
        # Another camera of this thread may have drawn since.
        self._gl.make_current()
        mujoco.mjr_render(self._area, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._pixels, None, self._area, self._renderer)
        # OpenGL's first row is the lowest.
        return self._pixels[::-1]

    def close(self) -> None:
        """Free the context; best called in the camera's own thread, once is enough."""
        if self in _open_cameras:
            _open_cameras.remove(self)
            self._gl.free()
            self._renderer.free()


_open_cameras: "weakref.WeakSet[Camera]" = weakref.WeakSet()


def _open_context(size: int) -> GlContext:
    """Return a current context.

    Raises:
        RuntimeError: There is none to be had.
    """
    problem = "found neither"
    if use_working_gl(display=False):
        try:
            context: GlContext = importlib.import_module("mujoco.gl_context").GLContext(size, size)
            context.make_current()
        except Exception as error:
            name = os.environ.get("MUJOCO_GL")
            problem = f"found MUJOCO_GL={name}: {type(error).__name__}: {error}"
        else:
            # After the first context, and so before the backend shuts down what contexts need.
            atexit.unregister(_close_cameras)
            atexit.register(_close_cameras)
            return context
    raise RuntimeError(
        f"Images cannot be rendered: expected EGL or OSMesa to work, {problem}. Install "
        f"{GL_LIBRARIES}."
    )


def _close_cameras() -> None:
    """Close what is still open at exit: later on contexts cannot be freed without noise."""
    for camera in list(_open_cameras):
        camera.close()
