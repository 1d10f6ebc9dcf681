"""Point robot: move in the plane to a goal on the unit half circle that is not observed.

The smallest family on which adaptation is needed: for tests and the quick start, no simulator.
Dense reward: minus the distance to the goal; sparse reward: 1 - distance within 0.2 m of the goal,
else 0. Horizon 20; an action of length 1 per axis moves 0.1 m. As in PEARL (Rakelly et al., 2019).
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.envs.base import (
    Actions,
    Array,
    Bools,
    Engine,
    EngineState,
    StepResult,
    TaskFamily,
    generator_from,
    held_out_split,
)
from offline_meta_rl.envs.task_env import Info, TaskEnv

STEP = 0.1
GOAL_RADIUS = 0.2
START_NOISE = 0.05


class PointRobot(TaskFamily):
    """Dense reward: minus the distance to the goal after the step."""

    name = "point_robot"
    env_id = "offline_meta_rl/PointRobot-v0"
    num_tasks = 40
    horizon = 20
    observation_size = 2
    action_size = 2
    splits: ClassVar = {"default": held_out_split(40, (3, 11, 19, 27, 35))}

    def task_parameters(self, seed: int) -> Array:
        """Goals (x, y) at angles drawn uniformly from 0 to pi, sorted, [T, 2]."""
        angle = np.sort(np.random.default_rng(seed).uniform(0.0, np.pi, self.num_tasks))
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The goal, [N, 2]."""
        return parameters.astype(np.float32)

    def reward(self, position: Array, parameters: Array) -> Array:
        """Return the reward [N] of being at ``position`` [N, 2]."""
        return -np.linalg.norm(position - parameters, axis=1)

    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> Engine:
        """Return the vectorised engine; it needs no threads."""
        return PointRobotEngine(self, parameters, seed=seed)


class SparsePointRobot(PointRobot):
    """Sparse reward: 1 - distance inside the goal's radius of 0.2, else 0."""

    name = "sparse_point_robot"
    env_id = "offline_meta_rl/SparsePointRobot-v0"

    def reward(self, position: Array, parameters: Array) -> Array:
        """Return the reward [N] of being at ``position`` [N, 2]."""
        distance = np.linalg.norm(position - parameters, axis=1)
        return np.where(distance <= GOAL_RADIUS, 1.0 - distance, 0.0)


class PointRobotEngine:
    """N point robots, one per row of ``parameters`` [N, 2]."""

    def __init__(self, family: PointRobot, parameters: Array, *, seed: int) -> None:
        self.family = family
        self.parameters = np.asarray(parameters, dtype=np.float64)
        self.num_envs = len(self.parameters)
        self.position: Array = np.zeros((self.num_envs, 2))
        self.elapsed: NDArray[np.int64] = np.zeros(self.num_envs, dtype=np.int64)
        self._generator = generator_from(seed)

    def reset(self, mask: Bools | None = None) -> NDArray[np.float32]:
        """Put the robots of ``mask`` (all if None) near the origin; return [N, 2]."""
        if mask is None:
            mask = np.ones(self.num_envs, dtype=bool)
        noise = torch.rand(int(mask.sum()), 2, generator=self._generator, dtype=torch.float64)
        self.position[mask] = START_NOISE * (2.0 * noise.numpy() - 1.0)
        self.elapsed[mask] = 0
        return self.position.astype(np.float32)

    def step(self, action: Actions) -> StepResult:
        """Move every robot by its action [N, 2], clipped to [-1, 1], times 0.1 m."""
        self.position = self.position + STEP * np.clip(action, -1.0, 1.0)
        self.elapsed += 1
        reward = self.family.reward(self.position, self.parameters)
        # Reaching the goal does not end the episode: the reward is for staying there.
        never = np.zeros(self.num_envs, dtype=bool)
        return StepResult(
            observation=self.position.astype(np.float32),
            reward=reward,
            terminated=never,
            truncated=self.elapsed >= self.family.horizon,
            diverged=never,
            reward_terms={"task": reward},
        )

    def state_dict(self) -> EngineState:
        """Positions, clocks and the generator of initial positions, as tensors."""
        return {
            "position": torch.from_numpy(self.position.copy()),
            "elapsed": torch.from_numpy(self.elapsed.copy()),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: EngineState) -> None:
        """Continue where ``state_dict`` was taken."""
        self.position = state["position"].numpy().copy()
        self.elapsed = state["elapsed"].numpy().copy()
        self._generator.set_state(state["generator"])

    def close(self) -> None:
        """Nothing to release."""


class PointRobotEnv(TaskEnv[PointRobot, np.float32]):
    """One task of the point robot as a gymnasium environment.

    Args:
        family: Dense or sparse family.
        task: Index of the task.
        task_seed: Seed of the task parameters.
        task_parameters: Goal [2] to use in place of that of ``task``.
        render_mode: None or ``rgb_array``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        family: PointRobot,
        task: int = 0,
        task_seed: int = 0,
        task_parameters: Array | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(family, task, task_seed, task_parameters, render_mode)
        self.position: Array = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Start near the origin."""
        super().reset(seed=seed)
        self.position = START_NOISE * self.np_random.uniform(-1.0, 1.0, 2)
        return self.position.astype(np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Move by ``action`` [2], clipped to [-1, 1], times 0.1 m; gymnasium limits the time."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self.position = self.position + STEP * clipped
        reward = float(self.family.reward(self.position[None], self.parameters)[0])
        return self.position.astype(np.float32), reward, False, False, {}

    def frame(self) -> NDArray[np.uint8]:
        """Draw the robot (dark) and the goal (green) on a square of 96 pixels."""
        axis = np.linspace(-1.3, 1.3, 96)
        grid = np.stack(np.meshgrid(axis, axis[::-1]), axis=-1)
        frame = np.full((96, 96, 3), 245, dtype=np.uint8)
        frame[np.linalg.norm(grid - self.parameters[0], axis=-1) < GOAL_RADIUS] = (120, 200, 120)
        frame[np.linalg.norm(grid - self.position, axis=-1) < 0.06] = (40, 40, 60)
        return frame
