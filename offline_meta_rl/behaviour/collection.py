"""What decides the data that a collection yields. No simulator is imported with it."""

from dataclasses import dataclass

from offline_meta_rl.common.settings import check_at_least


@dataclass(frozen=True)
class Collection:
    """Settings of collecting a dataset with a family's behaviour policy.

    All of them are part of the dataset's default folder name: other settings, another dataset.

    Attributes:
        seed: Seed of initial states and actions.
        task_seed: Seed of the task parameters.
        transitions_per_stage: Fewest transitions of every stage in every task. None for an equal
            share of 8000 for each stage, or, with a scripted family, for its usual number of
            episodes.
        untrained_episodes: Adds a first stage ``untrained`` to every task, with as many transitions
            as so many episodes of full length, from a policy that was never trained.

    Raises:
        ValueError: A count is too small.
    """

    seed: int = 0
    task_seed: int = 0
    transitions_per_stage: int | None = None
    untrained_episodes: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        check_at_least(self, 1, "transitions_per_stage")
        check_at_least(self, 0, "untrained_episodes")
