"""Damaged files in the layout of MACAW: one clear error each, and nothing like a dataset."""

import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.data_tools import layouts
from tests.data_tools.damage import Damage, cut, edit_hdf5, refused


def macaw_rows(key: str, file: Path) -> Any:
    with h5py.File(file) as stream:
        return stream[key][()]


MACAW: dict[str, tuple[Damage, str]] = {
    "cut short": (cut, "expected a whole HDF5 file, found one that cannot be read"),
    "missing key": (lambda f: edit_hdf5(f, next_obs=None), "'next_obs' is missing: expected obs"),
    "dtype": (
        lambda f: edit_hdf5(f, rewards=np.zeros((44, 1), np.int64)),
        "rewards: expected floating-point numbers, found int64",
    ),
    "unequal": (
        lambda f: edit_hdf5(f, rewards=np.zeros((43, 1), np.float32)),
        "expected arrays of equal length, found .*'rewards': 43",
    ),
    "empty task": (
        lambda f: edit_hdf5(
            f,
            **{
                key: macaw_rows(key, f)[:0]
                for key in ("obs", "actions", "rewards", "mc_rewards", "terminals")
            },
            **{key: macaw_rows(key, f)[:0] for key in ("terminal_discounts", "next_obs")},
        ),
        "found an empty task",
    ),
    "duplicate": (
        lambda f: shutil.copy(f, f.parent / "buffers_cheetah_vel_train_01_sub_task_0.hdf5"),
        "task 1 is there twice",
    ),
    "mixed up": (
        lambda f: edit_hdf5(f, obs=macaw_rows("obs", f)[::-1]),
        "next_obs: expected the observation that follows in time, found another",
    ),
    "returns": (
        lambda f: edit_hdf5(f, rewards=macaw_rows("rewards", f) + np.float32(1.0)),
        r"row \d+: mc_rewards: expected the discounted sum of the rewards",
    ),
    "environment": (
        lambda f: f.rename(f.parent / "buffers_ant_dir_train_1_sub_task_0.hdf5"),
        r"expected files of one environment, found \['ant_dir', 'cheetah_vel'\]",
    ),
}


@pytest.mark.parametrize("case", MACAW)
def test_macaw(tmp_path: Path, case: str) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    damage, message = MACAW[case]
    damage(tmp_path / "macaw" / "buffers_cheetah_vel_train_1_sub_task_0.hdf5")
    said = refused("convert", tmp_path / "macaw", tmp_path / "native", "--task_seed", "0")
    assert re.search(message, said), said
    assert not (tmp_path / "native").exists()


def test_macaw_without_task_parameters(tmp_path: Path) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    said = refused("convert", tmp_path / "macaw", tmp_path / "native")
    assert "expected the parameters of each task of cheetah_vel, found none" in said
