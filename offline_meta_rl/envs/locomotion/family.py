"""What the MuJoCo families share: arithmetic over arrays of simulator states.

The batched engine (``engine.py``) and the gymnasium class (``env.py``) both use it, so that they
agree by construction in everything but the simulator call. Positions are taken from ``qpos``; body
positions lag it by one sub-step in MuJoCo.
"""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array, Bools, TaskFamily
from offline_meta_rl.envs.locomotion.engine import MujocoEngine

# Only the path: importing gymnasium.envs.mujoco would need the packages of its renderer.
ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


class LocomotionFamily(TaskFamily):
    """Arithmetic shared by the MuJoCo families.

    Attributes:
        xml: File name among gymnasium's MuJoCo assets.
        timestep: Seconds per simulator step, or None for the value in the file.
        frame_skip: Simulator steps per action.
        control_cost: Weight of the squared action in the reward.
        alive_bonus: Added to the reward at every step, the last one included.
        per_task_model: Whether tasks differ in the simulator's model.
    """

    horizon: ClassVar[int] = 200
    xml: ClassVar[str]
    timestep: ClassVar[float | None] = None
    frame_skip: ClassVar[int]
    control_cost: ClassVar[float]
    alive_bonus: ClassVar[float] = 0.0
    per_task_model: ClassVar[bool] = False

    def base_model(self) -> mujoco.MjModel:
        """Load the simulator's model with this family's time step."""
        model = mujoco.MjModel.from_xml_path(str(ASSETS / self.xml))
        if self.timestep is not None:
            model.opt.timestep = self.timestep
        return model

    def model(self, parameters: Array) -> mujoco.MjModel:
        """Return the model of one task, given its parameters [P]."""
        return self.base_model()

    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> MujocoEngine:
        """Return the batched MuJoCo engine."""
        return MujocoEngine(self, parameters, seed=seed, num_threads=num_threads)

    @abstractmethod
    def initial_state(self, qpos0: Array, uniform: Array, normal: Array) -> tuple[Array, Array]:
        """Return initial (qpos [N, nq], qvel [N, nv]).

        Args:
            qpos0: Nominal positions [nq].
            uniform: Noise in [-1, 1), [N, nq + nv].
            normal: Standard normal noise, [N, nv].
        """

    @abstractmethod
    def observation(self, qpos: Array, qvel: Array) -> NDArray[np.float32]:
        """Return observations [N, O]."""

    @abstractmethod
    def task_reward(self, velocity: Array, parameters: Array) -> Array:
        """Return the part of the reward that depends on the task, [N].

        Args:
            velocity: Displacement of the torso over the step divided by its duration, [N, 2]
                (x, y); y is 0 for planar bodies.
            parameters: [N, P].
        """

    def fallen(self, qpos: Array, qvel: Array) -> Bools:
        """Return where the body has fallen, [N]; never by default."""
        return np.zeros(len(qpos), dtype=bool)

    def planar_position(self, qpos: Array) -> Array:
        """Return the torso's (x, y), [N, 2]."""
        return np.stack([qpos[:, 0], np.zeros(len(qpos))], axis=1)

    def reward_terms(
        self, qpos_before: Array, qpos_after: Array, action: Array, parameters: Array, dt: float
    ) -> dict[str, Array]:
        """Return the summands of the reward, [N] each; control is minus the squared action.

        The other terms have no weight in the reward; they help to train behaviour agents.
        """
        velocity = (self.planar_position(qpos_after) - self.planar_position(qpos_before)) / dt
        return {
            "task": self.task_reward(velocity, parameters),
            "control": -np.square(action).sum(axis=1),
            "alive": np.ones(len(action)),
            "velocity_x": velocity[:, 0],
            "velocity_y": velocity[:, 1],
        }

    def reward(self, terms: dict[str, Array]) -> Array:
        """Add up the summands of ``reward_terms`` with this family's weights, [N]."""
        return (
            terms["task"] + self.control_cost * terms["control"] + self.alive_bonus * terms["alive"]
        )
