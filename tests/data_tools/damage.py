"""Ways to damage input, and a command that must be refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from offline_meta_rl.data_tools.command import data_command

Damage = Callable[[Path], None]


def refused(*arguments: str | Path) -> str:
    """Run a command that must be refused with one message; return the message."""
    with pytest.raises(SystemExit) as exit_info:
        data_command([str(argument) for argument in arguments])
    assert isinstance(exit_info.value.code, str)
    return exit_info.value.code


def cut(file: Path, share: float = 0.6) -> None:
    os.truncate(file, int(share * file.stat().st_size))


def edit_hdf5(file: Path, **arrays: Any) -> None:
    """Replace arrays; None removes one."""
    with h5py.File(file, "a") as stream:
        for key, values in arrays.items():
            del stream[key]
            if values is not None:
                stream[key] = values
