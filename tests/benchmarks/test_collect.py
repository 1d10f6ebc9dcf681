"""How long the largest quick dataset takes, that of the ant: 50 tasks, 400 000 transitions."""

import os
import time
from pathlib import Path

from offline_meta_rl.behaviour.collect import collect
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.envs import FAMILIES
from tests.benchmarks.record import record


def test_quick_dataset_of_the_ant(tmp_path: Path) -> None:
    start = time.perf_counter()
    path = collect(FAMILIES["ant_dir"], tmp_path / "ant_dir")
    seconds = time.perf_counter() - start
    record(
        Path(__file__).stem,
        family="ant_dir",
        transitions=len(TaskDataset.open(path)),
        cores=len(os.sched_getaffinity(0)),
        load_of_the_machine=os.getloadavg()[0],
        seconds=seconds,
    )
    assert seconds <= 240
