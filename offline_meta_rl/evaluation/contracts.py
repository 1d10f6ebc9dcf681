"""What evaluation asks of a method and of its data.

A method or datamodule of your own needs no base class: it must have the members named here.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.data.contracts import HasContexts, TaskData
from offline_meta_rl.networks.policy import BatchedPolicy

if TYPE_CHECKING:
    from offline_meta_rl.envs.base import Bools, TaskFamily  # imports the simulators

# ---- what a method does


class Policy(Protocol):
    """The policies of T tasks."""

    def __call__(self, observation: Tensor) -> Tensor:
        """Map observations [T, E, O] to mean actions [T, E, A]."""


@runtime_checkable
class NoisyPolicy(Policy, Protocol):
    """Policies whose actions can be sampled.

    Attributes:
        sigma: Standard deviation of the noise, the same in every action and task.
    """

    sigma: float


AdaptTasks = Callable[[TensorDict, int], Policy]
"""Adapts to the contexts of T tasks, [T, B], with a number of inner steps; 0 leaves the policy."""


@runtime_checkable
class HasHparams(Protocol):
    """A method or datamodule whose settings are kept beside results."""

    @property
    def hparams(self) -> Mapping[str, object]:
        """The arguments it was made with."""


@runtime_checkable
class Measured(HasHparams, Protocol):
    """What every evaluated method has, as a LightningModule has it.

    Attributes:
        training: Whether it is in training mode.
    """

    training: bool

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""

    def train(self, mode: bool = True) -> object:
        """Enter or leave training mode."""

    def eval(self) -> object:
        """Leave training mode."""


@runtime_checkable
class Adapts(Measured, Protocol):
    """A method that adapts to the contexts of tasks; ``MetaModule`` is the model to look at."""

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks from their contexts [T, B]; 0 steps leave the policy as it is."""


@runtime_checkable
class InStages(Protocol):
    """A method that trains one part after another, and says which it is at.

    Attributes:
        training_stage: Name of the part, as the progress bar shows it.
    """

    training_stage: str


class Posterior(Protocol):
    """What is believed of T tasks."""

    @property
    def mean(self) -> Tensor:
        """The mean of each task's latent vector, [T, Z]."""


@runtime_checkable
class Infers(Measured, Protocol):
    """A method with a posterior over what the task is, such as Pearl."""

    def infer(self, context: TensorDict) -> Posterior:
        """Return the posterior over each of T tasks, given their contexts [T, B]."""


# ---- what the data offer


@runtime_checkable
class Described(TaskData, HasHparams, Protocol):
    """A datamodule that says where results come from."""


@runtime_checkable
class EvaluationData(HasContexts, Described, Protocol):
    """A datamodule on whose tasks a method can be evaluated; ``TaskBuffers`` is the model."""

    @property
    def family(self) -> "TaskFamily":
        """Makes the environments."""

    @property
    def split(self) -> str:
        """Name of the split that the method is trained on."""


# ---- Exploration: meta-episodes with a hidden target (``evaluation/exploration.py``) ----

ExplorerState = tuple[Tensor, ...]
"""What an explorer carries from one step to the next, [N, ...] each."""


class Explorer(Protocol):
    """A filter and a policy on its belief; both work on N meta-episodes at once."""

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one step of the filter uses."""

    @property
    def action_size(self) -> int:
        """A, numbers in an action."""

    def begin(self, count: int) -> ExplorerState:
        """Return the filter's state before the first observation of N meta-episodes."""

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
            state: The filter's state after the position before.
            observation: [N, C, h, w] uint8.
            action: Action that led to the observation, [N, A]; 0 at an episode's first one.
            reward: Reward that arrived with it, [N]; 0 at an episode's first one.
            noise: Standard normal, [N, noise_size].
        """

    def act(self, belief: Tensor, noise: Tensor | None) -> Tensor:
        """Return actions [N, A] in [-1, 1]; the mean action without noise [N, A]."""


@runtime_checkable
class Explores(Protocol):
    """A method that explores, such as ReflectiveExplorer."""

    @property
    def explorer(self) -> Explorer:
        """Filter and policy."""

    def held_out_beliefs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the beliefs of M meta-trajectories, [M, S, Z]; always with the same noise."""


@runtime_checkable
class ExplorationData(TaskData, Protocol):
    """A datamodule of meta-trajectories, such as MetaTrajectories.

    Attributes:
        num_episodes: K, episodes of a meta-trajectory.
    """

    num_episodes: int

    @property
    def family(self) -> "TaskFamily":
        """The task family of the dataset."""

    def held_out_item(self) -> TensorDict:
        """Return ``fit`` and ``held_out`` meta-trajectories, which nothing is trained on."""


@runtime_checkable
class HasDrawers(Protocol):
    """An engine of N environments with D drawers each."""

    @property
    def opened(self) -> "Bools":
        """Whether each drawer is open, [N, D]."""


@runtime_checkable
class HasNearest(Protocol):
    """A task family in which one drawer is opened fastest."""

    @property
    def nearest(self) -> int:
        """Index of that drawer."""
