"""The MuJoCo task families of MACAW: half-cheetah direction and velocity, ant direction, walker.

Source: the problems of MACAW section 5 and the authors' code; horizon 200 is a truncation. The
ant's contact cost is left out: the simulator of the authors' data did not fill in the contact
forces, so it was zero there too.
"""

from typing import ClassVar

import mujoco
import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array, Bools, every_kth_split, held_out_split
from offline_meta_rl.envs.locomotion.family import LocomotionFamily


class HalfCheetahFamily(LocomotionFamily):
    """Half-cheetah: 20 observations (positions, velocities, the torso's place in the world)."""

    xml = "half_cheetah.xml"
    observation_size = 20
    action_size = 6
    frame_skip = 5
    control_cost = 0.05
    torso_height: ClassVar[float] = 0.7

    def initial_state(self, qpos0: Array, uniform: Array, normal: Array) -> tuple[Array, Array]:
        """Positions +-0.1 uniform and velocities 0.1 normal, [N, nq] and [N, nv]."""
        return qpos0 + 0.1 * uniform[:, : len(qpos0)], 0.1 * normal

    def observation(self, qpos: Array, qvel: Array) -> NDArray[np.float32]:
        """qpos[1:] (8), qvel (9), torso x, y, z (3), [N, 20]."""
        torso = np.stack([qpos[:, 0], np.zeros(len(qpos)), qpos[:, 1] + self.torso_height], axis=1)
        return np.concatenate([qpos[:, 1:], qvel, torso], axis=1).astype(np.float32)


class CheetahDir(HalfCheetahFamily):
    """Run forwards or backwards: reward d v - 0.05 |a|^2, d in {+1, -1}."""

    name = "cheetah_dir"
    env_id = "offline_meta_rl/CheetahDir-v0"
    num_tasks = 2
    splits: ClassVar = {"default": ((0, 1), (0, 1))}

    def task_parameters(self, seed: int) -> Array:
        """The two directions, +1 and -1, whatever the seed, [T, 1]."""
        return np.array([[1.0], [-1.0]])

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The direction, [N, 1]."""
        return parameters.astype(np.float32)

    def task_reward(self, velocity: Array, parameters: Array) -> Array:
        """Velocity along the direction, [N], m/s."""
        return parameters[:, 0] * velocity[:, 0]


class CheetahVel(HalfCheetahFamily):
    """Run at a velocity: reward -|v - v*| - 0.05 |a|^2, v* = 0.075 (i + 1) up to 3 m/s."""

    name = "cheetah_vel"
    env_id = "offline_meta_rl/CheetahVel-v0"
    num_tasks = 40
    splits: ClassVar = {
        "default": held_out_split(40, (2, 7, 15, 23, 26)),
        "half": every_kth_split(40, 2),
        "quarter": every_kth_split(40, 4),
        "eighth": every_kth_split(40, 8),
        "sixteenth": every_kth_split(40, 16),
        "extrapolation": held_out_split(40, tuple(range(26, 40))),
    }

    def task_parameters(self, seed: int) -> Array:
        """Equally spaced velocities, m/s, whatever the seed, [T, 1]."""
        return np.linspace(0.075, 3.0, self.num_tasks)[:, None]

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The velocity, scaled to about -1 to 1, [N, 1]."""
        return (parameters / 1.5 - 1.0).astype(np.float32)

    def task_reward(self, velocity: Array, parameters: Array) -> Array:
        """Minus the distance from the goal velocity, [N], m/s."""
        return -np.abs(velocity[:, 0] - parameters[:, 0])


class AntDir(LocomotionFamily):
    """Walk in a direction: reward v . (cos g, sin g) - 0.5 |a|^2 + 1."""

    name = "ant_dir"
    env_id = "offline_meta_rl/AntDir-v0"
    num_tasks = 50
    splits: ClassVar = {"default": held_out_split(50, (6, 17, 23, 30, 41))}
    xml = "ant.xml"
    observation_size = 27
    action_size = 8
    frame_skip = 5
    control_cost = 0.5
    alive_bonus = 1.0

    def task_parameters(self, seed: int) -> Array:
        """Angles drawn uniformly from 0 to 2 pi, [T, 1]."""
        return np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, (self.num_tasks, 1))

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """Cosine and sine of the angle, [N, 2]."""
        return np.concatenate([np.cos(parameters), np.sin(parameters)], axis=1).astype(np.float32)

    def initial_state(self, qpos0: Array, uniform: Array, normal: Array) -> tuple[Array, Array]:
        """Positions +-0.1 uniform and velocities 0.1 normal, [N, nq] and [N, nv]."""
        return qpos0 + 0.1 * uniform[:, : len(qpos0)], 0.1 * normal

    def observation(self, qpos: Array, qvel: Array) -> NDArray[np.float32]:
        """qpos[2:] (13), qvel (14), [N, 27]."""
        return np.concatenate([qpos[:, 2:], qvel], axis=1).astype(np.float32)

    def planar_position(self, qpos: Array) -> Array:
        """The torso's (x, y), [N, 2], metres."""
        return qpos[:, :2]

    def reward_terms(
        self, qpos_before: Array, qpos_after: Array, action: Array, parameters: Array, dt: float
    ) -> dict[str, Array]:
        """Add ``height``, minus the metres by which the torso is above 0.8 m, [N]."""
        terms = super().reward_terms(qpos_before, qpos_after, action, parameters, dt)
        # Of no weight in the reward; behaviour agents are kept from jumping with it.
        return {**terms, "height": -np.clip(qpos_after[:, 2] - 0.8, 0.0, None)}

    def task_reward(self, velocity: Array, parameters: Array) -> Array:
        """Velocity along the goal direction, [N], m/s."""
        angle = parameters[:, 0]
        return velocity[:, 0] * np.cos(angle) + velocity[:, 1] * np.sin(angle)

    def fallen(self, qpos: Array, qvel: Array) -> Bools:
        """Torso below 0.2 or above 1.0 m, or a state that is not finite, [N]."""
        height = qpos[:, 2]
        finite = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1)
        return ~(finite & (height >= 0.2) & (height <= 1.0))


class WalkerParams(LocomotionFamily):
    """Walk with a randomised body: reward dx/dt - 0.001 |a|^2 + 1.

    A task multiplies every entry of body_mass, body_inertia and geom_friction by 1.5^u and of
    dof_damping by 1.3^u, each u uniform in [-3, 3]. Its parameters are these exponents u.
    """

    name = "walker_params"
    env_id = "offline_meta_rl/WalkerParams-v0"
    num_tasks = 50
    splits: ClassVar = {"default": held_out_split(50, (43, 15, 12, 39, 2))}
    xml = "walker2d.xml"
    timestep = 0.004
    observation_size = 17
    action_size = 6
    frame_skip = 4
    control_cost = 1e-3
    alive_bonus = 1.0
    per_task_model = True

    @staticmethod
    def scaled_arrays(model: mujoco.MjModel) -> dict[str, tuple[Array, float]]:
        """Return the model's arrays that a task scales, and the base of each one's powers."""
        return {
            "body_mass": (model.body_mass, 1.5),
            "body_inertia": (model.body_inertia, 1.5),
            "geom_friction": (model.geom_friction, 1.5),
            "dof_damping": (model.dof_damping, 1.3),
        }

    def task_parameters(self, seed: int) -> Array:
        """Exponents u, one for every entry of the four arrays, uniform in -3 to 3, [T, P]."""
        model = self.base_model()
        size = sum(array.size for array, _ in self.scaled_arrays(model).values())
        return np.random.default_rng(seed).uniform(-3.0, 3.0, (self.num_tasks, size))

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The exponents, scaled to -1 to 1, [N, P]."""
        return (parameters / 3.0).astype(np.float32)

    def model(self, parameters: Array) -> mujoco.MjModel:
        """Write the scaled arrays into a fresh model; derived constants stay nominal."""
        model = self.base_model()
        start = 0
        for array, base in self.scaled_arrays(model).values():
            exponent = parameters[start : start + array.size].reshape(array.shape)
            # In place: ``array`` is a view of the compiled model.
            array[...] = array * base**exponent
            start += array.size
        return model

    def initial_state(self, qpos0: Array, uniform: Array, normal: Array) -> tuple[Array, Array]:
        """Positions and velocities +-0.005 uniform, [N, nq] and [N, nv]."""
        num_positions = len(qpos0)
        return qpos0 + 0.005 * uniform[:, :num_positions], 0.005 * uniform[:, num_positions:]

    def observation(self, qpos: Array, qvel: Array) -> NDArray[np.float32]:
        """qpos[1:] (8), qvel clipped to +-10 (9), [N, 17]."""
        # As in Gymnasium's walker, whose x is left out too: no task depends on where it is.
        return np.concatenate([qpos[:, 1:], np.clip(qvel, -10, 10)], axis=1).astype(np.float32)

    def task_reward(self, velocity: Array, parameters: Array) -> Array:
        """Forward velocity, [N], m/s."""
        return velocity[:, 0]

    def fallen(self, qpos: Array, qvel: Array) -> Bools:
        """Height outside 0.8 to 2.0 m or pitch outside -1 to 1 rad, [N]."""
        height, pitch = qpos[:, 1], qpos[:, 2]
        return ~((height > 0.8) & (height < 2.0) & (np.abs(pitch) < 1.0))
