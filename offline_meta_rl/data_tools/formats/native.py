"""Reading datasets of this project's own format as sources: whole, or some of their episodes."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.description import FINAL_KEY, Description
from offline_meta_rl.data.source import TaskSource
from offline_meta_rl.data.stored import StoredDataset
from offline_meta_rl.data_tools.formats.files import rows_per_block

Part = tuple[StoredDataset, NDArray[np.int64], NDArray[np.int64]]
"""(dataset, its episodes, stage of each of them in the new dataset)."""


class EpisodeSource(TaskSource):
    """Episodes of one or more datasets, as tasks of a new one.

    Args:
        description: Of the new dataset.
        config: All that decides the result.
        parts: Of each task of the new dataset, in the order of writing.
    """

    def __init__(
        self,
        description: Description,
        config: dict[str, object],
        parts: Sequence[Sequence[Part]],
    ) -> None:
        self.description = description
        self.origin = {"config": config}
        self._parts = parts

    @classmethod
    def whole(cls, dataset: StoredDataset) -> "EpisodeSource":
        """Return all episodes of a dataset."""
        task, stage = (dataset.values(f"episodes/{key}") for key in ("task", "stage"))
        every = [np.flatnonzero(task == index) for index in range(dataset.manifest.num_tasks)]
        return cls(
            dataset.manifest.without_data(),
            {"dataset": dataset.checksum},
            [[(dataset, episodes, stage[episodes])] for episodes in every],
        )

    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the chosen episodes of one task."""
        for dataset, episodes, stage in self._parts[task]:
            yield from _blocks(dataset, episodes, stage)


def _blocks(
    dataset: StoredDataset, episodes: NDArray[np.int64], stage: NDArray[np.int64]
) -> Iterator[TaskBlock]:
    start, length = (dataset.values(f"episodes/{key}")[episodes] for key in ("start", "length"))
    keys = dataset.manifest.transition_keys
    arrays = {key: dataset.values(f"transitions/{key}") for key in keys}
    limit = rows_per_block(sum(array[:1].nbytes for array in arrays.values()))
    # An episode belongs to the block in which its first row lies; blocks hold at least one.
    block = (np.cumsum(length) - length) // limit
    for number in np.unique(block):
        chosen = block == number
        rows = np.concatenate(
            [np.arange(s, s + n) for s, n in zip(start[chosen], length[chosen], strict=True)]
        )
        dataset.touch(keys, rows)
        final = None
        if dataset.manifest.has_images:
            dataset.touch([FINAL_KEY], episodes[chosen])
            final = dataset.values(f"episodes/{FINAL_KEY}")[episodes[chosen]]
        yield TaskBlock(
            {key: array[rows] for key, array in arrays.items()},
            stage[chosen],
            length[chosen],
            final,
        )
