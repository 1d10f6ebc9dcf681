"""Damaged and hostile input: one clear error each, and nothing that looks like a dataset."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from offline_meta_rl.data_tools.command import main
from offline_meta_rl.data_tools.restricted_pickle import load_plain
from tests.data_tools import layouts
from tests.helpers import make_dataset
from tests.test_storage import DiskOf

Damage = Callable[[Path], None]


def refused(*arguments: str | Path) -> str:
    """Run a command that must be refused with one message; return the message."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
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
        main(["validate", str(tmp_path / "files")])


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
    said = refused("convert", tmp_path / "macaw", tmp_path / "native", "--task-seed", "0")
    assert re.search(message, said), said
    assert not (tmp_path / "native").exists()


def test_macaw_without_task_parameters(tmp_path: Path) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    said = refused("convert", tmp_path / "macaw", tmp_path / "native")
    assert "expected the parameters of each task of cheetah_vel, found none" in said


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
    pickles = ("--task-pickles", tmp_path / "macaw")
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


def edit_metadata(folder: Path, **entries: Any) -> None:
    file = folder / "metadata.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps(metadata | entries))


def edit_episode(folder: Path, **arrays: Any) -> None:
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        for key, values in arrays.items():
            del file["episode_1"][key]
            if values is not None:
                file["episode_1"][key] = values


MINARI: dict[str, tuple[Damage, str]] = {
    "cut short": (lambda f: cut(f / "main_data.hdf5"), "expected a whole Minari dataset"),
    "metadata": (lambda f: cut(f / "metadata.json"), "expected the metadata of a Minari dataset"),
    "missing key": (
        lambda f: edit_episode(f, rewards=None),
        "episode 1: expected a whole Minari dataset.*or a key is missing",
    ),
    "dtype": (
        lambda f: edit_episode(f, terminations=np.zeros(7)),
        "episode 1: terminations: expected bool, found float64",
    ),
    "unequal": (
        lambda f: edit_episode(f, rewards=np.zeros(6, np.float32)),
        "episode 1: expected equally many actions, .* found .*'rewards': 6",
    ),
    "empty task": (lambda f: edit_metadata(f, total_episodes=0), "found an empty task"),
    "duplicate": (
        lambda f: shutil.copytree(f, f.parent.parent / "task-00-v0" / "data"),
        "task 0 is there twice",
    ),
    "version": (lambda f: edit_metadata(f, minari_version="99.0"), "of Minari .* found 99.0"),
    "no number": (
        lambda f: edit_metadata(f, dataset_id="mine/other-v0"),
        "expected the number of the task in the dataset's name, found 'mine/other'",
    ),
}


@pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")
@pytest.mark.parametrize("case", MINARI)
def test_minari(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_minari(tmp_path / "minari", monkeypatch)
    (tmp_path / "minari" / "description.yaml").write_text(layouts.DESCRIPTION)
    damage, message = MINARI[case]
    damage(tmp_path / "minari" / "mine" / "task-0-v0" / "data")
    said = refused("convert", tmp_path / "minari", tmp_path / "native")
    assert re.search(message, said, flags=re.DOTALL), said
    assert not (tmp_path / "native").exists()


DESCRIPTIONS = {
    "unknown key: 1": "unknown key 'unknown key': expected some of family",
    "horizon: long": "horizon: expected int, found str",
    "family: nothing": "expected the family of tasks, found 'nothing'. Pass --family",
    "environment: {id: Mine-v0}": "expected the horizon",
    "family: ant_dir\ntask_seed: 0": r"expected observations \[27\] and actions \[8\] of ant_dir",
    layouts.DESCRIPTION + "task_parameters: [[1], [2], [3]]": "one list of numbers for each of 2",
    layouts.DESCRIPTION + "splits: {a: {train: [0, 2], test: []}}": "split 'a': expected 'train'",
    "[": "expected YAML or JSON, found",
}


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_description(tmp_path: Path, text: str) -> None:
    layouts.write_plain(tmp_path / "files")
    (tmp_path / "files" / "description.yaml").write_text(text)
    said = refused("convert", tmp_path / "files", tmp_path / "native")
    assert re.search(DESCRIPTIONS[text], said), said


def test_dataset_of_another_version(tmp_path: Path) -> None:
    make_dataset(tmp_path / "dataset")
    edit = tmp_path / "dataset" / "manifest.json"
    edit.write_text(edit.read_text().replace('"schema_version": 1', '"schema_version": 3'))
    for command in ("info", "convert"):
        target = [tmp_path / "target"] if command == "convert" else []
        said = refused(command, tmp_path / "dataset", *target)
        assert "field 'schema_version': expected at most 2, found 3" in said


def test_nothing_there(tmp_path: Path) -> None:
    said = refused("convert", tmp_path / "nothing", tmp_path / "native")
    assert "No data at" in said
    said = refused("validate", tmp_path / "nothing")
    assert "No data at" in said


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    said = refused("convert", tmp_path / "macaw", tmp_path / "native")
    assert 'Install it with `pip install "offline_meta_rl[convert]"`' in said


@pytest.mark.parametrize("form", ["native", "minari"])
def test_full_disk(tmp_path: Path, form: str) -> None:
    make_dataset(tmp_path / "dataset")
    target = tmp_path / "target"
    command = ("convert", tmp_path / "dataset", target, "--to", form)
    with DiskOf(6000):
        said = refused(*command)
    assert re.search(r"Nothing but .*target\.partial was written.*Make room", said), said
    assert not target.exists()
    main([str(argument) for argument in command])
    assert target.is_dir()
    assert not Path(f"{target}.partial").exists()


def test_target_exists(tmp_path: Path) -> None:
    make_dataset(tmp_path / "dataset")
    for form in ("native", "minari"):
        said = refused("convert", tmp_path / "dataset", tmp_path / "dataset", "--to", form)
        assert "exists already; pass another path" in said


def test_partial_of_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "first")
    make_dataset(tmp_path / "second", seed=1)
    for form in ("native", "minari"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", _interrupt_at(os.rename, "task"))
            target = tmp_path / form
            with pytest.raises(SystemExit, match="interrupted; the same command goes on"):
                main(["convert", str(tmp_path / "first"), str(target), "--to", form])
        said = refused("convert", tmp_path / "second", target, "--to", form)
        assert "holds an interrupted collection with other settings" in said
        main(["convert", str(tmp_path / "first"), str(target), "--to", form])


def _interrupt_at(rename: Any, name: str) -> Any:
    """Let renames pass until one gives a finished task its name."""

    def interrupting(before: Any, after: Any) -> None:
        rename(before, after)
        if name in Path(after).name:
            raise KeyboardInterrupt

    return interrupting
