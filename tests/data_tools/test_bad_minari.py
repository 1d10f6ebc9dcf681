"""Damaged Minari datasets: one clear error each, and nothing that looks like a dataset."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.data_tools import layouts
from tests.data_tools.damage import Damage, cut, refused


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
