"""Descriptions, versions, targets and disks that do not fit: one clear error each."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from offline_meta_rl.data_tools.command import data_command
from tests.data.test_writer import DiskOf
from tests.data_tools import layouts
from tests.data_tools.damage import refused
from tests.helpers import make_dataset

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
    data_command([str(argument) for argument in command])
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
                data_command(["convert", str(tmp_path / "first"), str(target), "--to", form])
        said = refused("convert", tmp_path / "second", target, "--to", form)
        assert "holds an interrupted collection with other settings" in said
        data_command(["convert", str(tmp_path / "first"), str(target), "--to", form])


def _interrupt_at(rename: Any, name: str) -> Any:
    """Let renames pass until one gives a finished task its name."""

    def interrupting(before: Any, after: Any) -> None:
        rename(before, after)
        if name in Path(after).name:
            raise KeyboardInterrupt

    return interrupting
