"""How a meta-trained method is fine-tuned online; defaults are the schedule of MACAW's authors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class FineTuningSettings:
    """The schedule of online fine-tuning, the same for every task.

    After the adaptation to ``context_size`` transitions, in turn: evaluate, collect one episode of
    every task with exploration noise, update; until every task has its environment steps.

    Attributes:
        environment_steps: collected in each task, at least; evaluation is not counted. 20 000 is
            the last column of MACAW's Table 1 (the authors' runs go on to 100 000).
        context_size: transitions of offline data to adapt on first.
        adaptation_steps: gradient steps of this adaptation.
        keep_context: the context stays in the replay. The paper does not say; the authors' code
            starts the replay empty.
        warmup_episodes: of each task, collected before the first update.
        updates: kind -> updates after an episode, where they differ from the method's own (MACAW:
            ``value`` 100, then ``policy`` 200).
        batch_size: transitions of each task per update, drawn from its replay; no update before
            every task has as many.
        replay_size: transitions of each task that are kept.
        evaluate_every: episodes collected between two points of the curve.
        evaluation_episodes: with mean actions, for each task and point of the curve.
        comparison_episodes: the same for the comparison of start and end; from the same initial
            states both times.
        seed: of contexts, initial states, noise and batches.
    """

    environment_steps: int = 20_000
    context_size: int = 256
    adaptation_steps: int = 1
    keep_context: bool = False
    warmup_episodes: int = 26
    updates: Mapping[str, int] | None = None
    batch_size: int = 256
    replay_size: int = 50_000
    evaluate_every: int = 1
    evaluation_episodes: int = 3
    comparison_episodes: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: names the setting, what it may be and what it is.
        """
        zero_allowed = {"warmup_episodes", "adaptation_steps", "seed"}
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name not in zero_allowed)
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{field.name} must be at least {least}, found {value}.")
        if self.batch_size > self.replay_size:
            raise ValueError(
                f"batch_size must be at most replay_size, {self.replay_size}, found "
                f"{self.batch_size}: no batch would ever be full."
            )

    def check_updates(self, horizon: int) -> None:
        """Check that there will be updates at all.

        Args:
            horizon: steps of the longest episode.

        Raises:
            ValueError: the fine-tuning would end before its first update.
        """
        warmup = self.warmup_episodes * horizon
        rows = self.environment_steps + self.keep_context * self.context_size
        if warmup >= self.environment_steps or rows < self.batch_size:
            raise ValueError(
                f"No update would be taken: environment_steps is {self.environment_steps}, "
                f"warmup_episodes {self.warmup_episodes} of up to {horizon} steps, batch_size "
                f"{self.batch_size}. Raise the first, or lower one of the others."
            )

    def updates_of(self, usual: Mapping[str, int]) -> dict[str, int]:
        """Return how many updates of each kind follow an episode, in the method's order.

        Args:
            usual: the method's own kinds and numbers.

        Raises:
            ValueError: a kind the method does not have, or a negative number.
        """
        given = dict(self.updates or {})
        unknown = sorted(set(given) - set(usual))
        if unknown or any(count < 0 for count in given.values()):
            raise ValueError(
                f"updates: expected numbers of at least 0 for the kinds {list(usual)} of this "
                f"method, found {given}."
            )
        return {kind: given.get(kind, count) for kind, count in usual.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


def check_options(given: Mapping[str, Any], known: Sequence[str], method: str) -> None:
    """Check a user's settings of a method's fine-tuning by name.

    Raises:
        ValueError: lists the settings that the method has.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"Fine-tuning of {method} has no setting {', '.join(unknown)}: expected some of "
            f"{', '.join(sorted(known))}. Correct --finetune.learner."
        )
