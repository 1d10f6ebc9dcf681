"""What evaluation asks of methods and of data.

A method or a datamodule of your own needs no base class for it: it must have the members named
here.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.data.contracts import TaskData
from offline_meta_rl.envs.base import Bools, TaskFamily

# ---- Exploration: meta-episodes with a hidden target (``evaluation/exploration.py``) ----

ExplorerState = tuple[Tensor, ...]
"""What an explorer carries from one step to the next, [N, ...] each."""


class Explorer(Protocol):
    """A filter and a policy on its belief; both work on N meta-episodes at once."""

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one step of the filter uses."""
        ...

    @property
    def action_size(self) -> int:
        """A."""
        ...

    def begin(self, count: int) -> ExplorerState:
        """Return the filter's state before the first observation of N meta-episodes."""
        ...

    def observe(
        self,
        state: ExplorerState,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        noise: Tensor,
    ) -> tuple[ExplorerState, Tensor]:
        """Take in one position; return the new state and the belief [N, Z].

        Args:
            state: Of the filter.
            observation: [N, C, h, w] uint8.
            action: That led there, [N, A]; 0 at an episode's first observation.
            reward: That arrived with it, [N]; 0 at an episode's first observation.
            noise: Standard normal, [N, noise_size].
        """
        ...

    def act(self, belief: Tensor, noise: Tensor | None) -> Tensor:
        """Return actions [N, A] in [-1, 1]; the mean action without noise [N, A]."""
        ...


@runtime_checkable
class Explores(Protocol):
    """A method that explores, such as ReflectiveExplorer."""

    @property
    def explorer(self) -> Explorer:
        """Filter and policy."""
        ...

    def held_out_beliefs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the beliefs of M meta-trajectories, [M, S, Z]; always with the same noise."""
        ...


@runtime_checkable
class ExplorationData(TaskData, Protocol):
    """A datamodule of meta-trajectories, such as MetaTrajectories.

    Attributes:
        num_episodes: K, episodes of a meta-trajectory.
    """

    num_episodes: int

    @property
    def family(self) -> TaskFamily:
        """The task family of the dataset."""
        ...

    def held_out_item(self) -> TensorDict:
        """Return ``fit`` and ``held_out`` meta-trajectories, which nothing is trained on."""
        ...


@runtime_checkable
class HasDrawers(Protocol):
    """An engine of N environments with D drawers each."""

    @property
    def opened(self) -> Bools:
        """Whether each drawer is open, [N, D]."""
        ...


@runtime_checkable
class HasNearest(Protocol):
    """A task family in which one drawer is opened fastest."""

    @property
    def nearest(self) -> int:
        """Index of that drawer."""
        ...
