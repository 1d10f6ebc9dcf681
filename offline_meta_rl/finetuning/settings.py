"""How a meta-trained method is fine-tuned online; defaults are the schedule of MACAW's authors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from offline_meta_rl.common.files import Json
from offline_meta_rl.data.contracts import BufferSlice

Setting = bool | int | float | str | None
NOT_OF_THE_SCHEDULE = frozenset(
    {"tasks", "split", "context_slice", "learner", "save_every", "fresh", "num_threads", "name"}
)


@dataclass(frozen=True)
class FineTuningSettings:
    """The settings of ``lightning finetune``, the keys of ``--finetune``; the same for every task.

    After the adaptation to ``context_size`` transitions, in turn: evaluate, collect one episode of
    every task with exploration noise, update; until every task has its environment steps.

    Attributes:
        environment_steps: Steps collected in each task, at least. Evaluation is not counted. 20 000
            is the last column of MACAW's Table 1 (the authors' runs go on to 100 000).
        tasks: "test" or "train" tasks of the split, or a list of task indices.
        split: Name of the task split. By default the one that the data have in the run's config.
        context_size: Transitions of offline data to adapt on first.
        context_slice: Part of the dataset that these come from: first, middle or last rows of each
            task, or a list of behaviour stages.
        adaptation_steps: Gradient steps of this adaptation.
        keep_context: Keep the context in the replay. The paper does not say; the authors' code
            starts with an empty replay.
        warmup_episodes: Episodes of each task that are collected before the first update.
        updates: Kind -> updates after an episode, where they differ from the method's own (MACAW:
            value 100, then policy 200).
        batch_size: Transitions of each task per update, drawn from its replay. No update is taken
            before every task has as many.
        replay_size: Transitions of each task that are kept.
        evaluate_every: Episodes collected between two points of the curve.
        evaluation_episodes: Episodes with mean actions, for each task and point of the curve.
        comparison_episodes: Episodes of each task for the comparison of start and end, from the
            same initial states both times.
        learner: Settings of the method's own fine-tuning, such as policy_learning_rate; the keyword
            arguments of the method's ``fine_tuner``.
        seed: Seed of contexts, initial states, noise and batches.
        save_every: Episodes between two saved states. 0 saves at an interruption only.
        fresh: Start again, whatever an interrupted fine-tuning has left.
        num_threads: Threads of the simulator. By default one for each core.
        name: Name of the files, and prefix of what is logged.
    """

    environment_steps: int = 20_000
    tasks: str | list[int] = "test"
    split: str | None = None
    context_size: int = 256
    context_slice: BufferSlice | list[str] | None = None
    adaptation_steps: int = 1
    keep_context: bool = False
    warmup_episodes: int = 26
    updates: dict[str, int] | None = None
    batch_size: int = 256
    replay_size: int = 50_000
    evaluate_every: int = 1
    evaluation_episodes: int = 3
    comparison_episodes: int = 20
    learner: dict[str, Setting] | None = None
    seed: int = 0
    save_every: int = 10
    fresh: bool = False
    num_threads: int | None = None
    name: str = "fine_tuning"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: Names the setting, what it may be and what it is.
        """
        zero_allowed = {"warmup_episodes", "adaptation_steps", "seed", "save_every"}
        for name, value in asdict(self).items():
            least = int(name not in zero_allowed)
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}.")
        if self.batch_size > self.replay_size:
            raise ValueError(
                f"batch_size must be at most replay_size, {self.replay_size}, found "
                f"{self.batch_size}: no batch would ever be full."
            )

    def check_updates(self, horizon: int) -> None:
        """Check that there will be updates at all.

        Args:
            horizon: Steps of the longest episode.

        Raises:
            ValueError: The fine-tuning would end before its first update.
        """
        warmup = self.warmup_episodes * horizon
        # A context that stays in the replay counts towards the first full batch.
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
            usual: The method's own kinds and numbers.

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

    def schedule(self) -> dict[str, Json]:
        """Return the settings of collecting, updating and evaluating, as plain types."""
        return {
            name: value for name, value in asdict(self).items() if name not in NOT_OF_THE_SCHEDULE
        }


def check_options(given: Mapping[str, Setting], known: Sequence[str] | None, method: str) -> None:
    """Check a user's settings of a method's fine-tuning by name.

    Args:
        given: Settings of ``--finetune.learner``.
        known: Names that the method has; None if it takes any.
        method: Its name, for the message.

    Raises:
        ValueError: Lists the settings that the method has.
    """
    unknown = sorted(set(given) - set(known or given))
    if unknown and known is not None:
        raise ValueError(
            f"Fine-tuning of {method} has no setting {', '.join(unknown)}: expected some of "
            f"{', '.join(sorted(known))}. Correct --finetune.learner."
        )
