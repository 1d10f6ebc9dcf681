"""Pickles: plain values are read, code never runs, damage is one clear error."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_meta_rl.data_tools.formats.restricted_pickle import load_plain
from tests.data_tools import layouts
from tests.data_tools.damage import refused


class RunsCode:
    """Unpickles by calling a function."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


def test_pickle_that_would_run_code(tmp_path: Path) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    file = tmp_path / "macaw" / "env_cheetah_vel_train_task1.pkl"
    file.write_bytes(pickle.dumps([{"velocity": RunsCode(tmp_path / "ran")}]))
    pickles = ("--task_pickles", tmp_path / "macaw")
    said = refused("convert", tmp_path / "macaw", tmp_path / "native", *pickles)
    assert re.search(r"expected numbers, strings.*found (posix|nt)\.mkdir\. It was not read", said)
    assert not (tmp_path / "ran").exists()
    file.write_bytes(pickle.dumps([{"velocity": 1.0}])[:-4])
    said = refused("convert", tmp_path / "macaw", tmp_path / "native", *pickles)
    assert "expected a pickle, found one that cannot be read" in said
    file.write_bytes(pickle.dumps([{"speed": 1.0}]))
    said = refused("convert", tmp_path / "macaw", tmp_path / "native", *pickles)
    assert re.search("expected a list with one dict with the keys direction or velocity", said)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(tmp_path: Path, protocol: int) -> None:
    value = [
        {
            "goal": np.asarray([1.5, -2.0]),
            "turned": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
            "wide": np.arange(3, dtype=">f4"),
            "scalar": np.float64(0.25),
            "plain": (1, 2.5, "three", b"four", True, None),
        }
    ]
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(value, protocol))
    (found,) = load_plain(tmp_path / "task.pkl")
    for key in ("goal", "turned", "wide", "scalar"):
        np.testing.assert_array_equal(found[key], value[0][key])
        assert found[key].dtype == value[0][key].dtype
    assert found["plain"] == value[0]["plain"]


@pytest.mark.parametrize(
    "value",
    [{1, 2}, np.asarray([{}], dtype=object), np.dtype("f8"), complex(1, 2), Path("x"), os.system],
)
def test_other_pickles_are_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "task.pkl").write_bytes(pickle.dumps([value]))
    with pytest.raises(ValueError, match=r"expected numbers, strings, lists.*It was not read"):
        load_plain(tmp_path / "task.pkl")


def test_pickle_that_unfolds_without_end(tmp_path: Path) -> None:
    value: list[Any] = [1]
    for _ in range(40):
        value = [value, value]
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match="more than 100000 values"):
        load_plain(tmp_path / "task.pkl")
