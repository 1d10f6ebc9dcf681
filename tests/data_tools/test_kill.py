"""SIGKILL at random moments: afterwards the same command completes the same dataset."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data_tools.command import data_command
from tests.data_tools import layouts
from tests.helpers import make_dataset

ROOT = Path(__file__).resolve().parents[2]
# Converts in a child of its own for each line of input, and kills that child when told to.
PROGRAM = """
import os, signal, sys, time
from offline_meta_rl.data_tools.command import data_command
source, warm = sys.argv[1:]
for form in ("native", "minari"):
    data_command(["convert", source, f"{warm}_{form}", "--to", form])
fsync = os.fsync
def slow(descriptor):
    fsync(descriptor)
    time.sleep(0.004)
os.fsync = slow
for line in sys.stdin:
    form, target, seconds = line.split()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr
        data_command(["convert", source, target, "--to", form])
        os._exit(0)
    if float(seconds) >= 0:
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("over", time.monotonic() - started, flush=True)
"""


class Conversions:
    """Runs conversions of one dataset in processes that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.before = TaskDataset.open(make_dataset(folder / "source"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.before.path), str(folder / "warm")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def run(self, form: str, target: Path, kill_after: float = -1.0) -> float:
        """Convert; return the seconds it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{form} {target} {kill_after}\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("over"):
            assert line, "the process ended"
        return float(line.split()[1])

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversions]:
    """One process for all tests, because it takes seconds to start."""
    running = Conversions(tmp_path_factory.mktemp("kill"))
    yield running
    running.close()


def looks_whole(target: Path, form: str) -> bool:
    """Whether the target has its name; if so, it must be good."""
    if not target.exists():
        with pytest.raises(FileNotFoundError, match="No dataset at"):
            TaskDataset.open(f"{target}.partial")
        return False
    if form == "native":
        TaskDataset.open(target, verify=True)
    else:
        assert len(list(target.rglob("main_data.hdf5"))) == 3
    return True


@pytest.mark.parametrize(
    "count", [5, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("form", ["native", "minari"])
def test_killed_conversion_can_be_repeated(
    tmp_path: Path, form: str, count: int, conversions: Conversions
) -> None:
    before = conversions.before
    duration = conversions.run(form, tmp_path / "whole")
    assert looks_whole(tmp_path / "whole", form)
    moments = random.Random(form)
    interrupted = 0
    for number in range(count):
        target = tmp_path / f"target_{number}"
        moment = 0.05 + 0.9 * (number + moments.random()) / count
        conversions.run(form, target, moment * duration)
        if not looks_whole(target, form):
            interrupted += 1
            conversions.run(form, target, moments.random() * duration)
        if not looks_whole(target, form):
            data_command(["convert", str(before.path), str(target), "--to", form])
            assert not Path(f"{target}.partial").exists()
        result = target
        if form == "minari":
            assert looks_whole(target, form)
            result = tmp_path / f"back_{number}"
            data_command(["convert", str(target), str(result)])
        assert TaskDataset.open(result, verify=True).checksum == before.checksum
    assert interrupted >= count // 4


def test_conversion_goes_on_with_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.write_plain(tmp_path / "files")
    from offline_meta_rl.data_tools.formats.plain_folder import PlainFolder

    blocks, read = PlainFolder.blocks, []

    def interrupted(self: PlainFolder, task: int) -> object:
        read.append(task)
        if len(read) == 2:
            raise KeyboardInterrupt
        return blocks(self, task)

    monkeypatch.setattr(PlainFolder, "blocks", interrupted)
    command = ["convert", str(tmp_path / "files"), str(tmp_path / "native")]
    with pytest.raises(SystemExit, match="interrupted; the same command goes on"):
        data_command(command)
    assert not (tmp_path / "native").exists()
    data_command(command)
    assert read == [0, 1, 1]
    TaskDataset.open(tmp_path / "native", verify=True)
