"""One task of the drawers in the plane as an ordinary gymnasium environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.drawers.family import DrawersLite

FRAME_SIZE = 192


class DrawersLiteEnv(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """One target drawer as a gymnasium environment; observations are images [3, 16, 16] uint8.

    Args:
        family: of the task.
        task: index of the target drawer.
        task_seed: of the task parameters, which do not depend on it.
        task_parameters: index of the target drawer [1] to use in place of ``task``.
        render_mode: None or ``rgb_array``.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        family: DrawersLite,
        task: int = 0,
        task_seed: int = 0,
        task_parameters: Array | None = None,
        render_mode: str | None = None,
    ) -> None:
        if task_parameters is None:
            task_parameters = family.parameters_of(task, task_seed)
        self.family = family
        self.parameters = np.asarray(task_parameters, dtype=np.float64)[None]
        self.engine = family.make_engine(self.parameters, seed=0)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, family.observation_shape, np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (family.action_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Close the drawers, put the hand at its start."""
        super().reset(seed=seed)
        own = int(self.np_random.integers(2**31))
        self.engine = self.family.make_engine(self.parameters, seed=own)
        return self.engine.reset()[0], {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the hand by ``action`` [2]; gymnasium limits the time."""
        result = self.engine.step(np.asarray(action)[None])
        info = {"opening": self.engine.opening[0].copy(), "opened": self.engine.opened[0]}
        return result.observation[0], float(result.reward[0]), False, False, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return the scene of the agent's image with more pixels, [192, 192, 3]."""
        if self.render_mode is None:
            return None
        return np.ascontiguousarray(self.engine.images(FRAME_SIZE)[0].transpose(1, 2, 0))
