"""Returns and lengths of a dataset's episodes, by task and stage."""

from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.stored import StoredDataset


class EpisodeStatistics(NamedTuple):
    """What is known of each of E episodes, in the order of task and collection.

    Attributes:
        task: Index of its task, [E].
        stage: Index of its stage, [E].
        length: Number of steps, [E].
        returns: Undiscounted return, [E].
    """

    task: NDArray[np.int64]
    stage: NDArray[np.int64]
    length: NDArray[np.int64]
    returns: NDArray[np.float64]


def episode_statistics(dataset: StoredDataset) -> EpisodeStatistics:
    """Sum the rewards of every episode, one task at a time."""
    task, stage, start, length = (
        dataset.values(f"episodes/{key}") for key in ("task", "stage", "start", "length")
    )
    reward = dataset.values("transitions/reward")
    returns = np.empty(len(task))
    for index in range(dataset.manifest.num_tasks):
        first, stop = dataset.task_rows(index)
        dataset.touch(["reward"], np.arange(first, stop))
        own = task == index
        # Single precision loses digits over a thousand steps.
        values = reward[first:stop].astype(np.float64)
        returns[own] = np.add.reduceat(values, start[own] - first)
    return EpisodeStatistics(task, stage, length, returns)


class Summary(TypedDict):
    """Mean, standard deviation, smallest and largest of some numbers."""

    mean: float
    std: float
    min: float
    max: float


def episode_summary(values: NDArray[np.int64] | NDArray[np.float64]) -> Summary:
    """Return mean, standard deviation, smallest and largest of numbers [N]."""
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }
