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
    from offline_meta_rl.envs.base import TaskFamily  # imports the simulators

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
        """Return what contexts [T, B] say of their T tasks."""


# ---- what the data offer


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
