"""A small dataset of random images for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.description import Description, box, named_splits
from offline_meta_rl.data.writer import DatasetWriter

SHAPE = (3, 5, 4)
HORIZON = 6


def image_writer(
    path: Path, *, num_tasks: int = 2, shape: Sequence[int] = SHAPE, seed: int = 0
) -> DatasetWriter:
    """Return a writer of a family from nowhere with images as observations."""
    everything = tuple(range(num_tasks))
    description = Description(
        environment={"id": "nowhere/Images-v0", "kwargs": {}},
        family="nowhere_images",
        observation_space=box(shape, "uint8", 0.0, 255.0),
        action_space=box([2], low=-1.0, high=1.0),
        horizon=HORIZON,
        task_seed=0,
        task_parameters=[[task] for task in everything],
        splits=named_splits({"default": (everything, everything)}),
        stages=["script"],
    )
    return DatasetWriter(path, description, {"seed": seed})


def image_episodes(
    length: Sequence[int], *, shape: Sequence[int] = SHAPE, seed: int = 0
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
    """Return (transitions, final images) of random episodes; the last reward of each is 1."""
    rng = np.random.default_rng(seed)
    rows = sum(length)
    end = np.zeros(rows, dtype=bool)
    end[np.cumsum(length) - 1] = True
    transitions = {
        "observation": rng.integers(0, 256, (rows, *shape), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "reward": end.astype(np.float32),
        "terminated": np.zeros(rows, dtype=bool),
        "truncated": end,
    }
    return transitions, rng.integers(0, 256, (len(length), *shape), dtype=np.uint8)


def make_image_dataset(
    path: Path,
    *,
    num_tasks: int = 2,
    length: Sequence[int] = (6, 4, 5),
    shape: Sequence[int] = SHAPE,
    seed: int = 0,
) -> Path:
    """Write a dataset of random images.

    Args:
        path: folder of the dataset.
        num_tasks: tasks.
        length: steps of each episode of every task.
        shape: of an image, channels first.
        seed: of the numbers.

    Returns:
        The path.
    """
    writer = image_writer(path, num_tasks=num_tasks, shape=shape, seed=seed)
    for task in range(num_tasks):
        transitions, final = image_episodes(length, shape=shape, seed=seed + 31 * task)
        writer.write_task(
            task,
            transitions,
            stage=[0] * len(length),
            length=list(length),
            final_observation=final,
        )
    return writer.commit({"success": [1.0] * num_tasks})
