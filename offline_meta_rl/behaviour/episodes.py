"""Whole episodes of a behaviour policy, cut out of a rollout, and the block they make."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import Columns, TaskBlock
from offline_meta_rl.data.description import TRANSITION_KEYS
from offline_meta_rl.evaluation.rollout import Episodes


class Episode(NamedTuple):
    """One whole episode and the stage it comes from; ``columns`` as in a dataset, [L, ...]."""

    stage: int
    columns: Columns

    @property
    def length(self) -> int:
        """Steps L."""
        return len(self.columns["reward"])


def usable_episodes(episodes: Episodes, stages: NDArray[np.int64]) -> list[Episode]:
    """Cut a rollout [H, N] into its episodes, dropping those in which the simulator diverged.

    Args:
        episodes: one of each environment.
        stages: stage of each environment's policy, [N].
    """
    return [
        Episode(int(stages[index]), episodes.columns(int(index)))
        for index in np.flatnonzero(~episodes.diverged)
    ]


def block_of(episodes: Sequence[Episode]) -> TaskBlock:
    """Return episodes of one task as a block, one after another."""
    return TaskBlock(
        {key: np.concatenate([e.columns[key] for e in episodes]) for key in TRANSITION_KEYS},
        stage=[episode.stage for episode in episodes],
        length=[episode.length for episode in episodes],
    )
