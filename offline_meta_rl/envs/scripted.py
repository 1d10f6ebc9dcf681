"""Families whose behaviour data come from a script that sees the simulator's state.

Shapes: N environments, X numbers of the state, D drawers, P numbers that describe one task.
"""

from abc import abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array, Bools, Engine, TaskFamily


@runtime_checkable
class StateEngine(Engine, Protocol):
    """An engine whose agents see images, and whose scripts see what they are images of."""

    def state(self) -> NDArray[np.float32]:
        """Return the low-dimensional state [N, X] that the last observations are images of."""
        ...


class DrawerEngine(StateEngine, Protocol):
    """An engine of drawers, one of which is the target.

    Attributes:
        opening: [N, D], how far each drawer is open; 0 is closed.
    """

    opening: Array

    @property
    def opened(self) -> Bools:
        """Whether each drawer is open far enough to be rewarded if it is the target, [N, D]."""
        ...


class ScriptedFamily(TaskFamily):
    """A family with a script that solves its tasks from the engine's state.

    Attributes:
        script_version: Raised whenever the script changes; part of a dataset's name.
        script_noise: Standard deviation of the Gaussian noise on every action while collecting.
        episodes_per_task: Episodes of each task that are collected by default.
        batch_size: Environments that collect together; their images are in memory together.
    """

    script_version: ClassVar[int] = 1
    script_noise: ClassVar[float]
    episodes_per_task: ClassVar[int] = 1000
    batch_size: ClassVar[int] = 50

    @abstractmethod
    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> StateEngine:
        """Return an engine with one environment per row of ``parameters`` [N, P]."""

    @abstractmethod
    def script(self, state: NDArray[np.float32], parameters: Array) -> Array:
        """Return the actions [N, A] in [-1, 1], without noise, that solve the tasks.

        Args:
            state: What ``StateEngine.state`` returns, [N, X].
            parameters: Parameters of each row's task, [N, P].
        """
