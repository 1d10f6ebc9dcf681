"""One task of the drawers in the plane as an ordinary gymnasium environment."""

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.drawers.family import DrawersLite
from offline_meta_rl.envs.task_env import Info, TaskEnv

FRAME_SIZE = 192


class DrawersLiteEnv(TaskEnv[DrawersLite, np.uint8]):
    """One target drawer as a gymnasium environment; observations are images [3, 16, 16] uint8.

    Args:
        family: The task's family.
        task: Index of the target drawer.
        task_seed: Seed of the task parameters, which do not depend on it.
        task_parameters: Index of the target drawer [1] to use in place of ``task``.
        render_mode: None or ``rgb_array``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        family: DrawersLite,
        task: int = 0,
        task_seed: int = 0,
        task_parameters: Array | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(family, task, task_seed, task_parameters, render_mode)
        self.engine = family.make_engine(self.parameters, seed=0)

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Close the drawers, put the hand at its start."""
        super().reset(seed=seed)
        # A new engine from gymnasium's generator, so that ``reset(seed=...)`` decides the start.
        own = int(self.np_random.integers(2**31))
        self.engine = self.family.make_engine(self.parameters, seed=own)
        return self.engine.reset()[0], {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        """Move the hand by ``action`` [2]; gymnasium limits the time."""
        result = self.engine.step(np.asarray(action)[None])
        info: Info = {"opening": self.engine.opening[0].copy(), "opened": self.engine.opened[0]}
        return result.observation[0], float(result.reward[0]), False, False, info

    def frame(self) -> NDArray[np.uint8]:
        """Return the scene of the agent's image with more pixels, [192, 192, 3]."""
        return np.ascontiguousarray(self.engine.images(FRAME_SIZE)[0].transpose(1, 2, 0))
