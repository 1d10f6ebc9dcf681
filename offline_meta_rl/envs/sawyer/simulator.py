"""One Sawyer in front of two drawers: how it starts, moves and is seen.

The hand is moved as Meta-World moves it, by a mocap body that it is welded to: an action shifts the
mocap body by up to 0.03 m along each axis, within Meta-World's bounds, and the hand follows for 20
steps of 2.5 ms (20 Hz; Meta-World: 0.01 m at 80 Hz). The fingers stay closed.
"""

from functools import cache

import mujoco
import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.rendering import Camera
from offline_meta_rl.envs.sawyer.scene import MAX_PIXELS, SLIDES, sawyer_model

START = np.array([-0.15, 0.6, 0.25])
START_NOISE = 0.02
REACH = 0.03
"""Metres that an action of 1 moves the mocap body along an axis."""
SUBSTEPS = 20
HAND_LOW = np.array([-0.5, 0.4, 0.05])
HAND_HIGH = np.array([0.5, 1.0, 0.5])
HAND_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])
CLOSED_FINGERS = {"r_close": 0.04, "l_close": -0.03}
FINGER_CONTROL = np.array([1.0, -1.0])
START_SUBSTEPS = 200
IMAGE_SIZE = 64

STATE = mujoco.mjtState.mjSTATE_INTEGRATION.value


class SawyerSimulator:
    """A MuJoCo state that actions change; belongs to one thread once it takes pictures."""

    def __init__(self) -> None:
        self.model = sawyer_model()
        self.data = mujoco.MjData(self.model)
        self._slides = [self.model.joint(name).qposadr[0] for name in SLIDES]
        self._hand = self.model.body("hand").id
        self._camera: Camera | None = None

    def start(self, offset: Array) -> None:
        """Begin an episode, both drawers closed, the hand at rest ``offset`` [3] from ``START``."""
        self.physics = settled_physics()
        self.data.mocap_pos[0] = START + offset
        mujoco.mj_step(self.model, self.data, nstep=START_SUBSTEPS)
        self.data.time = 0.0
        # ``mj_step`` leaves body positions at the start of its last substep; images and ``hand``
        # use them.
        mujoco.mj_kinematics(self.model, self.data)

    def move(self, action: Array) -> bool:
        """Take an action [3] in [-1, 1].

        Returns:
            Whether the simulation diverged; MuJoCo has reset the state then.
        """
        begin = self.data.time
        moved = self.data.mocap_pos[0] + REACH * action
        self.data.mocap_pos[0] = np.clip(moved, HAND_LOW, HAND_HIGH)
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        mujoco.mj_kinematics(self.model, self.data)
        # MuJoCo resets a bad state by itself, time included.
        return bool(self.data.time < begin + 0.5 * SUBSTEPS * self.model.opt.timestep)

    @property
    def opening(self) -> Array:
        """How far the drawers are open, [2], metres."""
        return -self.data.qpos[self._slides]

    @property
    def hand(self) -> Array:
        """Position of the hand [3], metres; the finger tips are 0.045 m below it."""
        return self.data.xpos[self._hand].copy()

    @property
    def physics(self) -> Array:
        """Everything that the future depends on, [S]; may be set."""
        state = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, state, STATE)
        return state

    @physics.setter
    def physics(self, state: Array) -> None:
        mujoco.mj_setState(self.model, self.data, state, STATE)
        mujoco.mj_kinematics(self.model, self.data)

    def image(self) -> NDArray[np.uint8]:
        """What the agent sees, [3, 64, 64]: behind and above the drawers, facing the robot.

        The robot's left is on the right. The next call overwrites it.
        """
        if self._camera is None:
            self._camera = agent_camera(IMAGE_SIZE)
        mujoco.mj_camlight(self.model, self.data)
        return self._camera.picture(self.data).transpose(2, 0, 1)

    def close(self) -> None:
        """Free the camera."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None


def agent_camera(size: int, *, whole: bool = False) -> Camera:
    """Return the camera whose pictures the agent sees, of ``sawyer_model(whole=whole)``."""
    return Camera(
        sawyer_model(whole=whole),
        size,
        azimuth=-90,
        elevation=-60,
        distance=0.95,
        lookat=(0.0, 0.7, 0.05),
    )


class WholeView:
    """Pictures [256, 256, 3] of the whole robot, for people."""

    def __init__(self) -> None:
        self._model = sawyer_model(whole=True)
        self._data = mujoco.MjData(self._model)
        self._camera = Camera(
            self._model,
            MAX_PIXELS,
            azimuth=20,
            elevation=-30,
            distance=1.5,
            lookat=(0.0, 0.6, 0.15),
        )

    def picture(self, simulator: SawyerSimulator) -> NDArray[np.uint8]:
        """Return a picture of the simulator's state."""
        self._data.qpos[:] = simulator.data.qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        return self._camera.picture(self._data).copy()

    def close(self) -> None:
        """Free the camera."""
        self._camera.close()


@cache
def settled_physics() -> Array:
    """The state [S] of a hand that has come to rest at ``START`` with closed fingers."""
    model = sawyer_model()
    data = mujoco.MjData(model)
    data.mocap_pos[0], data.mocap_quat[0] = START, HAND_QUATERNION
    data.ctrl[:] = FINGER_CONTROL
    for name, position in CLOSED_FINGERS.items():
        data.joint(name).qpos = position
    mujoco.mj_step(model, data, nstep=2000)
    data.time = 0.0
    state = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, state, STATE)
    return state
