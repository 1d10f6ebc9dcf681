"""Lifetime replays: draws, whole episodes, and the dataset they become."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.lifetimes import LifetimeStorage, commit_lifetimes
from tests.helpers import writer_for

STEPS, ENDS = 60, {0: [14, 34, 59], 1: [19, 29, 40], 2: [9, 24, 30, 50]}
RETURNS = {"random": [0.0] * 3, "best_behaviour": [1.0] * 3}


def storage_in(folder: Path, *, ends: dict[int, list[int]] | None = None) -> LifetimeStorage:
    """Return replays of random numbers; the second episode of task 2 diverged."""
    storage = LifetimeStorage(
        folder, num_tasks=3, steps=STEPS, observation_size=4, action_size=2, terms=("task",)
    )
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        columns: dict[str, Any] = {
            "observation": rng.normal(size=(3, 4)),
            "action": rng.uniform(-1, 1, (3, 2)),
            "reward": rng.normal(size=3),
            "next_observation": rng.normal(size=(3, 4)),
            "reward_terms": np.full((3, 1), step),
        }
        last = [step in (ends or ENDS)[task] for task in range(3)]
        columns["terminated"] = np.array(last) & np.array([False, True, False])
        columns["truncated"] = np.array(last) & ~columns["terminated"]
        columns["diverged"] = np.array([False, False, ends is None and step == 24])
        storage.write(step, columns)
    return storage


def test_only_whole_episodes_become_the_dataset(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "data")
    storage = storage_in(writer.partial / "lifetimes")
    arrays = {key: value.copy() for key, value in storage.arrays.items()}
    commit_lifetimes(writer, storage, RETURNS)
    dataset = TaskDataset.open(tmp_path / "data", verify=True)
    assert dataset.manifest.num_transitions == [60, 41, 36]
    starts = {0: [0, 15, 35], 1: [0, 20, 30], 2: [0, 25, 31]}
    rows = {0: [*range(60)], 1: [*range(41)], 2: [*range(10), *range(25, 51)]}
    for key in ("observation", "action", "reward", "next_observation", "terminated", "truncated"):
        expected = np.concatenate([arrays[key][task][rows[task]] for task in range(3)])
        np.testing.assert_array_equal(dataset.transitions[key].numpy(), expected)
    # four stages of fifteen steps, by the first step of the episode
    stages = [start // 15 for task in range(3) for start in starts[task]]
    assert dataset.episodes["stage"].tolist() == stages
    assert not writer.partial.exists()


def test_files_of_whole_lifetimes_are_kept(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "data")
    ends = {key: [19, 39, 59] for key in range(3)}
    storage = storage_in(writer.partial / "lifetimes", ends=ends)
    expected = storage.arrays["observation"].reshape(-1, 4).copy()
    inode = (storage.folder / "observation.bin").stat().st_ino
    commit_lifetimes(writer, storage, RETURNS)
    dataset = TaskDataset.open(tmp_path / "data", verify=True)
    assert (tmp_path / "data/transitions/observation.bin").stat().st_ino == inode
    np.testing.assert_array_equal(dataset.transitions["observation"].numpy(), expected)
    np.testing.assert_array_equal(dataset.episodes["length"].numpy(), [20] * 9)


def test_files_are_copied_where_links_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise PermissionError("no links")

    checksums = []
    for name in ("linked", "copied"):
        writer = writer_for(tmp_path / name)
        ends = {key: [19, 39, 59] for key in range(3)}
        commit_lifetimes(writer, storage_in(writer.partial / "lifetimes", ends=ends), RETURNS)
        checksums.append(TaskDataset.open(tmp_path / name, verify=True).checksum)
        monkeypatch.setattr("os.link", unknown)
    assert checksums[0] == checksums[1]


def test_a_task_without_a_whole_episode_is_refused(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "data")
    storage = storage_in(writer.partial / "lifetimes", ends={0: [59], 1: [59], 2: []})
    with pytest.raises(ValueError, match=r"Tasks \[2\] have no whole episode, expected one"):
        commit_lifetimes(writer, storage, RETURNS)
    assert not (tmp_path / "data").exists()


def test_draws_are_uniform_over_each_tasks_own_past(tmp_path: Path) -> None:
    storage = storage_in(tmp_path / "lifetimes")
    generator = torch.Generator().manual_seed(0)
    rows = storage.draw((50, 300), 30, generator)
    assert rows.shape == (50, 3, 300)
    for task in range(3):
        steps = rows[:, task] - task * STEPS
        counts = torch.bincount(steps.flatten(), minlength=30)
        assert len(counts) == 30
        usable = [step for step in range(30) if not (task == 2 and step == 24)]
        assert counts.sum() == counts[usable].sum()
        assert float(counts[usable].min() / counts[usable].float().mean()) > 0.75
    found = storage.gather("observation", rows)
    expected = torch.from_numpy(storage.arrays["observation"]).reshape(-1, 4)[rows]
    assert torch.equal(found, expected)
    assert torch.equal(storage.gather_terms(rows)["task"], (rows % STEPS).float())


def test_nothing_but_divergence_is_refused(tmp_path: Path) -> None:
    storage = storage_in(tmp_path / "lifetimes")
    storage.arrays["diverged"][1] = True
    with pytest.raises(RuntimeError, match="diverges in nearly all of the first 30 steps"):
        storage.draw((1, 8), 30, torch.Generator())


def test_content_is_there_again_after_opening(tmp_path: Path) -> None:
    first = storage_in(tmp_path / "lifetimes")
    first.flush()
    again = LifetimeStorage(
        tmp_path / "lifetimes",
        num_tasks=3,
        steps=STEPS,
        observation_size=4,
        action_size=2,
        terms=("task",),
    )
    for key, values in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[key], values)
    assert again.fingerprint(40) == first.fingerprint(40) != first.fingerprint(41)
