"""What a method is while it is fine-tuned online: the agents of T tasks, as one batch of tensors.

``MetaModule.fine_tuner`` returns one; ``finetuning/loop.py`` collects with it and updates it.
Agents share nothing: what happens to one task never changes another. Shapes: T tasks, E
environments of each, B transitions, H steps, O/A observation/action size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from offline_meta_rl.evaluation.contracts import EvaluationData
from offline_meta_rl.finetuning.replay import Columns, OnlineReplay


def cannot_be_fine_tuned(method: str) -> TypeError:
    """Return the error about a method that does not implement ``fine_tuner``."""
    return TypeError(
        f"{method} cannot be fine-tuned online: it does not implement fine_tuner. Pass a "
        "checkpoint of a method that does, such as Macaw."
    )


class OnlineLearner(ABC):
    """The agents of T tasks while they are fine-tuned.

    Attributes:
        fields: Fields of a transition that the replay keeps.
        reads: Kind of update -> which of ``fields`` it reads.
        updates: Kinds of update, in the order in which they are taken after an episode, with how
            many there are of each unless the user says otherwise.
    """

    fields: tuple[str, ...]
    reads: ClassVar[Mapping[str, tuple[str, ...]]]
    updates: ClassVar[Mapping[str, int]]

    @abstractmethod
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions [T, E, A] for observations [T, E, O].

        Args:
            observation: Observations in E environments of every task, [T, E, O].
            noise: Standard normal, [T, E, A], to explore with; None for the mean action.
        """

    @abstractmethod
    def update(self, kind: str, batch: Columns, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one update of every agent on transitions of its own task.

        Args:
            kind: One of ``updates``.
            batch: What the kind ``reads`` of B transitions, [T, B, ...], and the columns of
                ``prepare``.
            generator: Source of whatever is random, on the CPU.

        Returns:
            Detached metrics of each task, [T]; a NaN in them stops the fine-tuning.
        """

    def prepare(self, kind: str, replay: OnlineReplay) -> dict[str, Tensor]:
        """Return columns [T, N, ...] of all N rows in the replay, for this episode's updates.

        Called before the updates of a kind. What stays the same during these, such as advantages
        under a value function that is not updated, is computed once in this way.
        """
        return {}

    def observe(self, episode: Columns, kept: Tensor) -> None:  # noqa: B027 - optional
        """Take notice of new episodes before the updates: a method that infers its task does.

        Args:
            episode: ``fields`` of one episode of every task, padded to H steps, [T, H, ...].
            kept: False where a row is padding or its episode diverged, [T, H].
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly here, as tensors and plain types."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""


@runtime_checkable
class FineTunes(Protocol):
    """A method that can be fine-tuned online; look at ``Macaw``.

    Attributes:
        fine_tuner: Adapts to the contexts [T, B] of T tasks with a number of gradient steps, and
            returns the agents that go on learning. Its keyword arguments are the settings that
            users may give as ``--finetune.learner``.
        device: Where the method runs.
        hparams: What it was built with.
    """

    @property
    def fine_tuner(self) -> Callable[..., OnlineLearner]:
        """See the class."""

    @property
    def device(self) -> torch.device:
        """See the class."""

    @property
    def hparams(self) -> Mapping[str, Any]:
        """See the class."""

    def eval(self) -> Self:
        """Leave the training mode."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return all weights by name."""


@runtime_checkable
class FineTuningData(EvaluationData, Protocol):
    """A datamodule on whose tasks a method can be fine-tuned; look at ``TaskBuffers``."""

    @property
    def discount(self) -> float:
        """Discount per step of returns to go."""


def checked(method: object, data: object) -> tuple[FineTunes, FineTuningData]:
    """Check that a method can be fine-tuned and that its data have tasks; return both, typed.

    Raises:
        TypeError: A method that cannot be fine-tuned, or data without tasks.
    """
    if not isinstance(method, FineTunes):
        raise cannot_be_fine_tuned(type(method).__name__)
    if not isinstance(data, FineTuningData):
        raise TypeError(
            "Fine-tuning needs a datamodule with dataset, family and context, such as TaskBuffers; "
            f"found {type(data).__name__}. Pass another one with --data."
        )
    return method, data
