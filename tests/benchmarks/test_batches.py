"""How long it takes to draw and gather a batch of 5 tasks with 256 + 256 transitions each."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.record import record
from tests.helpers import make_dataset, task_buffers


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of cheetah-vel's size: 40 tasks with 8 000 transitions each."""
    return make_dataset(
        tmp_path_factory.mktemp("batches") / "dataset",
        num_tasks=40,
        episodes_per_stage=10,
        horizon=200,
        observation_size=20,
        action_size=6,
        ragged=False,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"contiguous": True}, {"device": "disk"}],
    ids=["resident", "contiguous", "memory-mapped"],
)
def test_batches_per_second(path: Path, settings: dict[str, Any]) -> None:
    data = task_buffers(path, **settings)
    data.setup("fit")
    seconds = []
    for step in range(220):
        begin = time.perf_counter()
        data.batch(step)
        seconds.append(time.perf_counter() - begin)
    median = float(np.median(seconds[20:]))
    name = "_".join(["batches", *map(str, settings)])
    record(name, milliseconds=1e3 * median, transitions_per_second=5 * 512 / median)
    assert median < 1e-3
