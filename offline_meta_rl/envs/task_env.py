"""One task of a family as an ordinary gymnasium environment: what all such classes share."""

from abc import abstractmethod
from typing import Generic, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array, TaskFamily

Family = TypeVar("Family", bound=TaskFamily)
Seen = TypeVar("Seen", bound=np.generic)

Info = dict[str, object]
"""What ``reset`` and ``step`` tell beside the observation; for people, not for agents."""


class TaskEnv(gymnasium.Env[NDArray[Seen], NDArray[np.float32]], Generic[Family, Seen]):
    """The base of the environments that ``gymnasium.make(family.env_id, task=7)`` makes.

    Args:
        family: The task family.
        task: Index of the task.
        task_seed: Seed of the task parameters, as recorded with the dataset.
        task_parameters: Parameters [P] to use in place of those of ``task``.
        render_mode: None or ``rgb_array``.

    Attributes:
        parameters: Parameters of the task, [1, P].
    """

    def __init__(
        self,
        family: Family,
        task: int = 0,
        task_seed: int = 0,
        task_parameters: Array | None = None,
        render_mode: str | None = None,
    ) -> None:
        if task_parameters is None:
            task_parameters = family.parameters_of(task, task_seed)
        self.family = family
        self.parameters = np.asarray(task_parameters, dtype=np.float64)[None]
        self.render_mode = render_mode
        # The family knows the element type of its observations; a type checker cannot.
        space = cast("spaces.Space[NDArray[Seen]]", _observation_space(family))
        self.observation_space = space
        self.action_space = spaces.Box(-1.0, 1.0, (family.action_size,), np.float32)

    def render(self) -> NDArray[np.uint8] | None:
        """Return a frame [height, width, 3] of the state; None without a render mode."""
        return None if self.render_mode is None else self.frame()

    @abstractmethod
    def frame(self) -> NDArray[np.uint8]:
        """Return a frame [height, width, 3] of the state."""


def _observation_space(family: TaskFamily) -> spaces.Box:
    """Return the space of vectors, or of images."""
    if family.observation_dtype == "uint8":
        return spaces.Box(0, 255, family.observation_shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, (family.observation_size,), np.float32)
