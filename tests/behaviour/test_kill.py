"""SIGKILL at random moments of a collection: the same call completes the same dataset."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch

from offline_meta_rl.data.dataset import TaskDataset
from tests.behaviour.test_collect import SmallRobot, small


def run(path: Path) -> None:
    """Collect with every file's way to the disk drawn out, where a kill could do harm."""
    torch.set_num_threads(1)
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        fsync(descriptor)
        time.sleep(0.004)

    os.fsync = slow
    small(SmallRobot(), path)


def collect_killed(path: Path, seconds: float | None) -> float:
    """Collect in another process, killed after so many seconds; return how long it lived."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(path,))
    begin = time.monotonic()
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9)
    assert process.exitcode == 0 or seconds is not None
    return time.monotonic() - begin


def is_whole(path: Path, expected: str) -> bool:
    """Whether the dataset has its name; if so it must be good, and nothing else may be opened."""
    if path.exists():
        assert TaskDataset.open(path, verify=True).checksum == expected
        return True
    with pytest.raises(FileNotFoundError, match="No dataset at"):
        TaskDataset.open(path)
    with pytest.raises(FileNotFoundError, match=r"an interrupted one ends in '\.partial'"):
        TaskDataset.open(f"{path}.partial")
    return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "moments", [5, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_killed_collection_can_be_repeated(moments: int, tmp_path: Path) -> None:
    duration = collect_killed(tmp_path / "whole", None)
    expected = TaskDataset.open(tmp_path / "whole", verify=True).checksum
    draw = random.Random(moments)
    interrupted = 0
    for number in range(moments):
        path = tmp_path / f"data_{number}"
        collect_killed(path, (number + draw.random()) / moments * duration)
        if not is_whole(path, expected):
            interrupted += 1
            collect_killed(path, draw.random() * duration)
        if not is_whole(path, expected):
            small(SmallRobot(), path)
            assert not Path(f"{path}.partial").exists()
        assert is_whole(path, expected)
    assert interrupted >= moments // 4
