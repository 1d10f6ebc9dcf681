"""Writing datasets: whole or not there, resumable, one process at a time."""

import multiprocessing
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.description import Description, box
from offline_meta_rl.data.writer import DatasetWriter, dataset_lock
from tests.helpers import make_dataset, task_episodes, writer_for

RETURNS = {"random": [0.0] * 3, "best_behaviour": [1.0] * 3}


def write(writer: DatasetWriter, *tasks: int) -> None:
    for task in tasks:
        transitions, stage, length = task_episodes(task)
        writer.write_task(task, transitions, stage=stage, length=length)


def test_interrupted_collection_resumes(tmp_path: Path) -> None:
    expected = TaskDataset.open(make_dataset(tmp_path / "at_once")).checksum
    path = tmp_path / "resumed"
    write(writer_for(path), 2, 0)
    writer = writer_for(path)
    assert [writer.has_task(task) for task in range(3)] == [True, False, True]
    assert not path.exists()
    write(writer, 1)
    reference = TaskDataset.open(tmp_path / "at_once").manifest.reference_returns
    writer.commit(reference)
    assert TaskDataset.open(path, verify=True).checksum == expected
    assert not Path(f"{path}.partial").exists()


def test_damaged_part_counts_as_missing(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "dataset")
    write(writer, 0)
    file = tmp_path / "dataset.partial" / "parts" / "task_00000.npz"
    file.write_bytes(file.read_bytes()[:-1])
    assert not writer.has_task(0)
    file.unlink()
    assert not writer.has_task(0)


def test_commit_with_a_task_missing(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "dataset")
    write(writer, 0, 2)
    with pytest.raises(RuntimeError, match=r"Tasks \[1\] of .* are missing"):
        writer.commit(RETURNS)
    assert not (tmp_path / "dataset").exists()


def test_commit_interrupted_before_its_end_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_for(tmp_path / "dataset")
    write(writer, 0, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("offline_meta_rl.data.writer.os.rename", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.commit(RETURNS)
    assert not (tmp_path / "dataset").exists()
    writer_for(tmp_path / "dataset").commit(RETURNS)
    TaskDataset.open(tmp_path / "dataset", verify=True)


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_partial_of_another_collection(tmp_path: Path) -> None:
    writer_for(tmp_path / "dataset")
    with pytest.raises(ValueError, match=r"interrupted collection .*differ in horizon, settings"):
        writer_for(tmp_path / "dataset", horizon=30, seed=1)


def test_existing_dataset_is_not_overwritten(tmp_path: Path) -> None:
    make_dataset(tmp_path / "dataset")
    with pytest.raises(FileExistsError, match="exists already; pass another path"):
        writer_for(tmp_path / "dataset")


BAD_TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"length": [20] * 7 + [5]}, "observation: expected shape"),
    "size": (
        {"action": np.zeros((160, 3))},
        r"action: expected shape \(160, 2\), found \(160, 3\)",
    ),
    "nan": ({"reward": np.full(160, np.nan)}, "reward: expected finite numbers.*row 0"),
    "overflow": ({"reward": np.full(160, 1e39)}, "reward: expected finite numbers.*row 0"),
    "stage": ({"stage": [4] * 8}, "stage: expected 0 to 3, found 4 to 4"),
    "stages": ({"stage": [0] * 7}, "found 8 lengths and 7 stages"),
    "end": ({"truncated": np.zeros(160, dtype=bool)}, "row 19: expected terminated or truncated"),
    "none": ({"length": []}, "expected shape"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", BAD_TASKS)
def test_task_that_does_not_fit(tmp_path: Path, case: str) -> None:
    writer = writer_for(tmp_path / "dataset")
    transitions, stage, length = task_episodes(0, ragged=False)
    change, message = BAD_TASKS[case]
    arguments = {"stage": stage, "length": length} | {
        key: value for key, value in change.items() if key in ("stage", "length")
    }
    transitions |= {key: value for key, value in change.items() if key not in arguments}
    with pytest.raises(ValueError, match=f"Task 0: .*{message}"):
        writer.write_task(0, transitions, **arguments)
    assert not writer.has_task(0)


def test_unknown_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown task 3: expected 0 to 2"):
        write(writer_for(tmp_path / "dataset"), 3)


def test_task_parameters_that_are_not_numbers(tmp_path: Path) -> None:
    parameters: Any = [0.0, 1.0, 2.0]
    description = Description(
        environment={"id": "Any-v0"},
        family="any",
        observation_space=box([1]),
        action_space=box([1], low=-1.0, high=1.0),
        horizon=1,
        task_seed=0,
        task_parameters=parameters,
        splits={},
        stages=["only"],
    )
    with pytest.raises(ValueError, match=r"task_parameters: expected finite .*found shape \(3,\)"):
        DatasetWriter(tmp_path / "dataset", description, {})


@pytest.mark.parametrize("returns", [[0.0, 1.0], [0.0, 1.0, np.nan]])
def test_reference_returns_that_do_not_fit(tmp_path: Path, returns: list[float]) -> None:
    writer = writer_for(tmp_path / "dataset")
    write(writer, 0, 1, 2)
    with pytest.raises(ValueError, match=r"reference_returns'?: 'random': expected"):
        writer.commit({"random": returns})
    assert not (tmp_path / "dataset").exists()


class DiskOf:
    """Limits the size of any file, which fails a write half-way as a full disk does."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limits[1]))

    def __exit__(self, *arguments: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_disk_full_while_a_task_is_written(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    writer = writer_for(path)
    write(writer, 0)
    with (
        DiskOf(4096),
        pytest.raises(OSError, match=r"Nothing but .*dataset\.partial was written.*Make room"),
    ):
        write(writer, 1)
    assert not path.exists()
    writer = writer_for(path)
    assert [writer.has_task(task) for task in range(3)] == [True, False, False]
    write(writer, 1, 2)
    writer.commit(RETURNS)
    TaskDataset.open(path, verify=True)


def test_disk_full_while_the_arrays_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    writer = writer_for(path)
    write(writer, 0, 1, 2)
    with DiskOf(4096), pytest.raises(OSError, match=r"which is not a dataset\. Make room"):
        writer.commit(RETURNS)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="No dataset at"):
        TaskDataset.open(path)
    writer.commit(RETURNS)
    TaskDataset.open(path, verify=True)


def prepare(path: Path, started: Any, written: Any) -> None:
    """Write the dataset unless it is there, as every process of a run does."""
    started.wait()
    with dataset_lock(path):
        if not path.exists():
            make_dataset(path)
            with written.get_lock():
                written.value += 1
    TaskDataset.open(path)


def test_two_processes_prepare_one_dataset(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, written = context.Barrier(2), context.Value("i", 0)
    path = tmp_path / "dataset"
    processes = [context.Process(target=prepare, args=(path, started, written)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert written.value == 1


def test_lock_makes_threads_wait_and_lets_its_owner_in_again(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with dataset_lock(tmp_path / "dataset"):
            order.append("second")

    with dataset_lock(tmp_path / "dataset"), dataset_lock(tmp_path / "dataset"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
