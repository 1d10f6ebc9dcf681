"""One task of the two drawers as an ordinary gymnasium environment."""

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.sawyer.family import OPEN, TwoDrawerSawyer
from offline_meta_rl.envs.sawyer.simulator import START_NOISE, SawyerSimulator, WholeView
from offline_meta_rl.envs.task_env import Info, TaskEnv


class TwoDrawerSawyerEnv(TaskEnv[TwoDrawerSawyer, np.uint8]):
    """Observations are the agent's images [3, 64, 64]; the info holds both drawers' openings.

    Args:
        family: The task family.
        task: Index of the task, and of the drawer that is rewarded.
        task_seed: Seed of the task parameters, which are the same for every seed.
        task_parameters: Index of the drawer [1] to use in place of that of ``task``.
        render_mode: None or ``rgb_array``, pictures [256, 256, 3] of the whole robot.

    Raises:
        ImportError: ``metaworld`` is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        family: TwoDrawerSawyer,
        task: int = 0,
        task_seed: int = 0,
        task_parameters: Array | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(family, task, task_seed, task_parameters, render_mode)
        self.target = int(self.parameters[0, 0])
        self.simulator = SawyerSimulator()
        self._view: WholeView | None = None

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Start with both drawers closed and the hand near its start."""
        super().reset(seed=seed)
        self.simulator.start(START_NOISE * self.np_random.uniform(-1.0, 1.0, 3))
        return self.simulator.image().copy(), {"opening": self.simulator.opening}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        """Move by ``action`` [3], clipped to [-1, 1], times 0.03 m; gymnasium limits the time."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        diverged = self.simulator.move(clipped)
        opening = self.simulator.opening
        reward = float(opening[self.target] > OPEN)
        return self.simulator.image().copy(), reward, False, diverged, {"opening": opening}

    def frame(self) -> NDArray[np.uint8]:
        """Return a picture [256, 256, 3] of the whole robot."""
        if self._view is None:
            self._view = WholeView()
        return self._view.picture(self.simulator)

    def close(self) -> None:
        """Free the cameras."""
        self.simulator.close()
        if self._view is not None:
            self._view.close()
            self._view = None
