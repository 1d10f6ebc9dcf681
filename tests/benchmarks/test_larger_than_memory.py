"""Training from data larger than memory: chunks read ahead, and single rows, against memory.

MACAW trains with the sizes of the ant, eagerly, on 50 tasks with 256 000 transitions each (3.3 GB),
in processes of its own: (a) with the data in memory; (b) with chunks and (c) with single rows of
memory-mapped files, both in a control group that may use 1 GiB, the page cache included, of which
Python, the libraries, the training and a few columns take the most. Where there are no control
groups, all pages of the data are dropped after every step instead, which is harder. Rounds of two
sides alternate, so that another busy process slows both alike.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_meta_rl.data.writer import TaskBlock
from tests.benchmarks.memory_limit import memory_cgroup
from tests.benchmarks.record import record
from tests.helpers import writer_for

ROOT = Path(__file__).resolve().parents[2]
TASKS, BLOCKS, EPISODES, HORIZON = 50, 8, 160, 200
SIZES = {"observation_size": 27, "action_size": 8}
LIMIT = 2**30
THREADS = min(2, len(os.sched_getaffinity(0)))
ROUNDS, STEPS = 5, {"memory": 20, "chunks": 20, "rows": 6}
SIDES: dict[str, dict[str, Any]] = {
    "memory": {"device": "cpu"},
    "chunks": {"sampling": "chunks"},
    "rows": {"device": "disk"},
}
Figures = dict[str, np.ndarray[Any, Any]]


def block(rng: np.random.Generator) -> TaskBlock:
    """Return whole episodes of random numbers."""
    rows = EPISODES * HORIZON
    states = rng.standard_normal((rows + 1, SIZES["observation_size"]), dtype=np.float32)
    last = np.arange(rows) % HORIZON == HORIZON - 1
    transitions = {
        "observation": states[:-1],
        "action": np.tanh(rng.standard_normal((rows, SIZES["action_size"]), dtype=np.float32)),
        "reward": rng.standard_normal(rows, dtype=np.float32),
        "next_observation": states[1:],
        "terminated": np.zeros(rows, dtype=bool),
        "truncated": last,
    }
    return TaskBlock(transitions, [0] * EPISODES, [HORIZON] * EPISODES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A dataset of several times the limit; removed afterwards."""
    folder = tmp_path_factory.mktemp("larger_than_memory")
    if shutil.disk_usage(folder).free < 10 * 2**30:
        pytest.skip(f"needs 10 GiB in {folder}")
    rng = np.random.default_rng(0)
    tests = range(TASKS - 5, TASKS)
    writer = writer_for(
        folder / "data", num_tasks=TASKS, horizon=HORIZON, test_tasks=tests, **SIZES
    )
    for task in range(TASKS):
        writer.write_blocks(task, (block(rng) for _ in range(BLOCKS)))
    yield writer.commit({})
    shutil.rmtree(folder)


class Training:
    """One side, trained in a process of its own."""

    def __init__(self, path: Path, side: str, cgroup: Path | None, forget: bool) -> None:
        self.side = side
        settings = {
            "data": {"path": str(path), **SIDES[side]},
            "cgroup": cgroup and str(cgroup),
            "forget": forget,
            "threads": THREADS,
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.stepwise_training"]
        self.process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS)},
        )
        self.expect("ready")
        self.measure()  # to warm up

    def expect(self, word: str) -> str:
        """Return the rest of the line that begins with a word."""
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith(word):
            assert line, f"{self.side}: the process ended"
        return line.removeprefix(word)

    def measure(self, command: str = "steps", count: int | None = None) -> list[float]:
        """Return seconds, processor seconds and bytes read of one step or batch."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command} {count or STEPS[self.side]}\n")
        self.process.stdin.flush()
        found: list[float] = json.loads(self.expect("took"))
        return found

    def end(self) -> float:
        """Return the seconds of making one batch; the training is over then."""
        return self.measure("batches")[0]

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        """End the process if it has not ended."""
        with self.process:
            self.process.kill()


def alternate(first: Training, second: Training) -> tuple[Figures, Figures]:
    """Measure two sides in turns; return of each the seconds, processor seconds, bytes [rounds]."""
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    for _ in range(ROUNDS):
        for side, figures in zip((first, second), found, strict=True):
            figures.append(side.measure())
    names = ("seconds", "processor", "bytes")
    one, two = (dict(zip(names, np.array(part).T, strict=True)) for part in found)
    return one, two


@pytest.mark.timeout(3600)  # of which the most is for other processes' time
def test_training_from_data_larger_than_memory(path: Path) -> None:
    stored = sum(file.stat().st_size for file in path.rglob("*.bin"))
    assert stored > 3 * LIMIT
    figures, batch_seconds = {}, {}
    with memory_cgroup(LIMIT) as cgroup, Training(path, "memory", None, forget=False) as memory:
        for side in ("chunks", "rows"):
            with Training(path, side, cgroup, forget=cgroup is None) as training:
                figures[side] = alternate(memory, training)
                batch_seconds[side] = training.end()
        batch_seconds["memory"] = memory.end()
    how = "pages dropped after every step" if cgroup is None else f"cgroup {cgroup.parent}"
    ratios, result = {}, {}
    for side, (reference, own) in figures.items():
        ratios[side] = float(np.median(reference["seconds"] / own["seconds"]))
        processor = np.median(reference["processor"] / own["processor"])
        result |= {
            f"{side}_steps_per_second": float(1 / np.median(own["seconds"])),
            f"{side}_ratio": ratios[side],
            f"{side}_ratio_of_processor_time": float(processor),
            f"{side}_megabytes_read_per_step": float(np.mean(own["bytes"]) / 1e6),
        }
    record(
        Path(__file__).stem,
        limit_bytes=LIMIT,
        limited_by=how,
        dataset_bytes=stored,
        threads=THREADS,
        load_of_the_machine=os.getloadavg()[0],
        memory_steps_per_second=float(1 / np.median(figures["chunks"][0]["seconds"])),
        **result,
        **{f"{side}_batches_per_second": 1 / value for side, value in batch_seconds.items()},
    )
    assert ratios["chunks"] >= 0.7
