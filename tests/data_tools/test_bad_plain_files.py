"""Damaged plain files: one clear error each, and nothing that looks like a dataset."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_meta_rl.data_tools.command import data_command
from tests.data_tools import layouts
from tests.data_tools.damage import Damage, cut, refused


def edit_plain(file: Path, **arrays: Any) -> None:
    """Replace arrays of the second task; None removes one."""
    columns = layouts.forward_task(1) | arrays
    layouts.write_plain_task(file, {k: v for k, v in columns.items() if v is not None})


def empty_columns() -> dict[str, Any]:
    return {key: values[:0] for key, values in layouts.forward_task(1).items()}


def column(key: str) -> Any:
    return layouts.forward_task(1)[key]


PLAIN: dict[str, tuple[Damage, str]] = {
    "cut short": (cut, "expected a whole .* file, found one that cannot be read"),
    "missing key": (lambda f: edit_plain(f, reward=None), "'reward' is missing: expected obs"),
    "dtype": (
        lambda f: edit_plain(f, reward=np.full(44, b"one")),
        "reward: expected numbers, found",
    ),
    "flags": (
        lambda f: edit_plain(f, terminated=np.zeros(44)),
        "terminated: expected bool, found float64",
    ),
    "unequal": (
        lambda f: edit_plain(f, action=column("action")[:-1]),
        "expected arrays of equal length, found .*'action': 43",
    ),
    "empty task": (lambda f: edit_plain(f, **empty_columns()), "found an empty task"),
    "duplicate": (
        lambda f: shutil.copy(f, f.with_stem("task_00")),
        "task 0 is there twice: task_0.* and task_00",
    ),
    "gap": (lambda f: f.rename(f.with_stem("task_5")), r"expected tasks 0 to 5, found none for \["),
    "no number": (lambda f: f.rename(f.with_stem("other")), "expected the number of the task"),
    "lengths": (
        lambda f: edit_plain(f, length=np.asarray([20, 20])),
        "length: expected positive lengths that sum to 44 rows, found a sum of 40",
    ),
    "stages": (
        lambda f: edit_plain(f, stage=np.asarray([0, 0])),
        "stage: expected one for each episode, found 2 stages and 3 or more episodes",
    ),
    "no end": (
        lambda f: edit_plain(f, truncated=np.zeros(44, bool), terminated=np.zeros(44, bool)),
        "expected episodes of at most 20 steps",
    ),
    "open end": (
        lambda f: edit_plain(f, terminated=np.zeros(44, bool)),
        "row 40: expected the last episode to end",
    ),
    "nan": (
        lambda f: edit_plain(f, reward=np.full(44, np.nan, np.float32)),
        "Task 1: reward: expected finite numbers, found NaN or infinity in row 0",
    ),
    "sizes": (
        lambda f: edit_plain(f, action=np.zeros((44, 3), np.float32)),
        "expected observations and actions as in the first task",
    ),
}


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("case", PLAIN)
def test_plain_files(tmp_path: Path, case: str, suffix: str) -> None:
    layouts.write_plain(tmp_path / "files", suffix)
    damage, message = PLAIN[case]
    damage(tmp_path / "files" / f"task_1{suffix}")
    said = refused("convert", tmp_path / "files", tmp_path / "native")
    assert re.search(message, said), said
    assert not (tmp_path / "native").exists()
    with pytest.raises(SystemExit):
        data_command(["validate", str(tmp_path / "files")])


def test_plain_files_with_python_objects(tmp_path: Path) -> None:
    layouts.write_plain(tmp_path / "files")
    edit_plain(tmp_path / "files" / "task_1.npz", reward=np.asarray([{}] * 44, dtype=object))
    said = refused("convert", tmp_path / "files", tmp_path / "native")
    assert re.search(r"reward: expected numbers, found Python objects \(a pickle", said)


def test_plain_files_in_column_major_order(tmp_path: Path) -> None:
    layouts.write_plain(tmp_path / "files")
    turned = np.asfortranarray(column("observation"))
    edit_plain(tmp_path / "files" / "task_1.npz", observation=turned)
    said = refused("convert", tmp_path / "files", tmp_path / "native")
    assert "observation: expected rows one after another, found column-major order" in said
