"""Collecting a dataset: quotas, labels, resuming, two processes, a full disk."""

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from offline_meta_rl.behaviour import collect as module
from offline_meta_rl.behaviour.collect import (
    collect,
    collect_task,
    default_dataset_path,
)
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.behaviour.episodes import Episode, usable_episodes
from offline_meta_rl.behaviour.policy import load_behaviour
from offline_meta_rl.behaviour.untrained import WithUntrained
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.writer import DatasetWriter
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.point_robot import PointRobot
from offline_meta_rl.evaluation.rollout import Episodes
from offline_meta_rl.reports.command import report_command as report

QUOTA = 60


class SmallRobot(PointRobot):
    """The point robot with four tasks."""

    num_tasks = 4
    splits = {"default": ((0, 1, 2), (3,))}  # noqa: RUF012


@pytest.fixture
def family() -> SmallRobot:
    return SmallRobot()


def small(family: PointRobot, path: Path, seed: int = 0) -> Path:
    """Collect quickly."""
    return collect(family, path, Collection(seed=seed, transitions_per_stage=QUOTA))


def assert_same_data(first: Path, second: Path) -> None:
    a, b = TaskDataset.open(first), TaskDataset.open(second)
    assert a.checksum == b.checksum
    for key, value in a.transitions.items():
        assert torch.equal(value, b.transitions[key]), key


def test_what_is_collected(family: SmallRobot, tmp_path: Path) -> None:
    path = small(family, tmp_path / "data")
    dataset = TaskDataset.open(path)
    manifest, episodes = dataset.manifest, dataset.episodes
    assert manifest.stages == load_behaviour(family).stages
    assert manifest.environment == {"id": family.env_id, "version": 1, "kwargs": {}}
    assert dataset.split() == ([0, 1, 2], [3])
    np.testing.assert_array_equal(manifest.task_parameters, family.task_parameters(0))
    for task in range(4):
        for stage in range(4):
            mine = (episodes["task"] == task) & (episodes["stage"] == stage)
            assert int(episodes["length"][mine].sum()) == QUOTA  # three whole episodes of 20
    # Every reward is the true one of its task, and steps follow one another.
    data = dataset.transitions
    goal = torch.tensor(manifest.task_parameters)
    rows = [dataset.task_rows(task) for task in range(4)]
    task_of = torch.cat([torch.full((b - a,), t) for t, (a, b) in enumerate(rows)])
    distance = (data["next_observation"] - goal[task_of]).norm(dim=1)
    torch.testing.assert_close(data["reward"], -distance.float(), atol=1e-5, rtol=0)
    moved = data["observation"] + 0.1 * data["action"]
    torch.testing.assert_close(data["next_observation"], moved, atol=1e-6, rtol=0)
    last = torch.zeros(len(dataset), dtype=torch.bool)
    last[episodes["start"] + episodes["length"] - 1] = True
    assert torch.equal(data["truncated"], last)
    assert not data["terminated"].any()
    following = torch.nonzero(~last)[:, 0]
    assert torch.equal(data["next_observation"][following], data["observation"][following + 1])


def test_reference_returns(family: SmallRobot, tmp_path: Path) -> None:
    manifest = TaskDataset.open(small(family, tmp_path / "data")).manifest
    references = manifest.reference_returns
    assert references["best_behaviour"] == references["stages"]["expert"]
    assert np.mean(references["random"]) < -18.0 < -7.0 < np.mean(references["best_behaviour"])
    # Standing still: the goal is 1 m away in each of 20 steps.
    np.testing.assert_allclose(references["standing_still"], -20.0, atol=0.5)


def test_same_seed_same_data(family: SmallRobot, tmp_path: Path) -> None:
    paths = [small(family, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert_same_data(paths[0], paths[1])
    a, c = TaskDataset.open(paths[0]), TaskDataset.open(paths[2])
    assert not torch.equal(a.transitions["action"], c.transitions["action"])


def test_finished_dataset_is_left_alone(
    family: SmallRobot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small(family, tmp_path / "data")
    monkeypatch.setattr(module, "collect_task", None)
    assert small(family, path) == path


def test_interrupted_collection_resumes_with_equal_data(
    family: SmallRobot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(family, tmp_path / "whole")
    path, done = tmp_path / "data", []

    def interrupted(*args: object, **kwargs: object) -> list[Episode]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return collect_task(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "collect_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(family, path)
    assert not path.exists()
    monkeypatch.undo()
    counted: list[int] = []

    def counting(*args: object, **kwargs: object) -> list[Episode]:
        counted.append(1)
        return collect_task(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "collect_task", counting)
    small(family, path)
    assert len(counted) == 2, "tasks 0 and 1 were kept"
    assert_same_data(whole, path)


def test_full_disk_leaves_no_dataset(
    family: SmallRobot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    written, sync = [], os.fsync

    def full(descriptor: int) -> None:
        written.append(1)
        if len(written) == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*data\.partial.*Make room"):
        small(family, path)
    assert not path.exists()
    monkeypatch.undo()
    small(family, path)
    assert_same_data(small(family, tmp_path / "whole"), path)


def _collect_in_process(path: Path, queue: "multiprocessing.Queue[str]") -> None:
    torch.set_num_threads(1)
    small(SmallRobot(), path)
    queue.put(TaskDataset.open(path).checksum)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_make_one_dataset(family: SmallRobot, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[str] = context.Queue()
    processes = [
        context.Process(target=_collect_in_process, args=(tmp_path / "data", queue))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    checksums = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert checksums[0] == checksums[1]
    assert not (tmp_path / "data.partial").exists()


def test_other_settings_are_not_mixed(
    family: SmallRobot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    monkeypatch.setattr(DatasetWriter, "commit", None)
    with pytest.raises(TypeError, match="not callable"):
        small(family, path, seed=0)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="interrupted collection with other settings"):
        small(family, path, seed=1)


def test_diverged_episodes_are_dropped() -> None:
    steps, envs = 3, 2
    column = np.zeros((steps, envs), dtype=np.float32)
    episodes = Episodes(
        returns=np.zeros(envs),
        lengths=np.array([2, 3]),
        diverged=np.array([True, False]),
        observation=np.arange(steps * envs, dtype=np.float32).reshape(steps, envs, 1),
        action=column[..., None],
        reward=column,
        next_observation=column[..., None],
        terminated=column.astype(bool),
        truncated=column.astype(bool),
    )
    (kept,) = usable_episodes(episodes, np.array([0, 1]))
    assert kept.stage == 1
    assert kept.columns["observation"][:, 0].tolist() == [1.0, 3.0, 5.0]


def test_falling_bodies_fill_the_quota_with_usable_episodes() -> None:
    family = FAMILIES["walker_params"]
    behaviour = load_behaviour(family)
    parameters = family.task_parameters(0)[0]
    episodes = collect_task(
        family, behaviour, parameters, seed=0, transitions_per_stage=300, num_threads=1
    )
    for stage in range(len(behaviour.stages)):
        mine = [e.columns for e in episodes if e.stage == stage]
        assert sum(len(e["reward"]) for e in mine) >= 300
        for columns in mine:
            ended = columns["terminated"] | columns["truncated"]
            assert ended.nonzero()[0].tolist() == [len(ended) - 1]
    assert any(e.columns["terminated"].any() for e in episodes)


def test_endless_divergence_is_an_error(
    family: SmallRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "offline_meta_rl.behaviour.episodes.usable_episodes", lambda episodes, stages: []
    )
    with pytest.raises(RuntimeError, match=r"Collected \[0, 0, 0, 0\] .* expected 20 each"):
        collect_task(
            family,
            load_behaviour(family),
            family.task_parameters(0)[0],
            seed=0,
            transitions_per_stage=20,
        )


def test_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    family = FAMILIES["point_robot"]
    monkeypatch.setenv("OFFLINE_META_RL_DATA", str(tmp_path))
    path = default_dataset_path(family)
    assert path.parent == tmp_path
    others = [
        default_dataset_path(family, Collection(seed=1)),
        default_dataset_path(family, Collection(task_seed=1)),
        default_dataset_path(family, Collection(transitions_per_stage=7)),
        default_dataset_path(FAMILIES["sparse_point_robot"]),
    ]
    assert len({path, *others}) == 5
    monkeypatch.delenv("OFFLINE_META_RL_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home" / ".cache" / "offline_meta_rl" / "datasets"
    assert default_dataset_path(family).parent == home


def test_description_of_a_dataset(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "TRANSITIONS_PER_TASK", 80)
    report(["dataset", "point_robot"])
    table = capsys.readouterr().out
    assert "| expert | -4." in table
    assert "| random actions | -2" in table
    (path,) = data_root.glob("point_robot-*-n20-script-1")
    report(["dataset", str(path)])
    assert capsys.readouterr().out in table


def test_untrained_stage(family: SmallRobot, tmp_path: Path) -> None:
    collection = Collection(transitions_per_stage=QUOTA, untrained_episodes=2)
    path = collect(family, tmp_path / "data", collection, num_threads=1)
    dataset = TaskDataset.open(path)
    assert dataset.manifest.stages == ["untrained", "random", "poor", "medium", "expert"]
    stage, length = (dataset.episodes[name] for name in ("stage", "length"))
    assert int(length[stage == 0].sum()) == 2 * family.horizon * dataset.manifest.num_tasks
    assert int(length[stage == 4].sum()) == QUOTA * dataset.manifest.num_tasks
    start, end = dataset.task_rows(0)
    assert stage[0] == 0  # before the others: "first" rows are these
    mean = WithUntrained(load_behaviour(family), family, 2).act(
        0, dataset.transitions["observation"][:40], np.zeros((1, 2)), stochastic=False
    )
    noise = dataset.transitions["action"][start:end][:40] - mean
    assert 0.1 < float(noise.std()) < 0.3  # sigma 0.2
    assert float(mean.abs().max()) < 0.9  # not saturated, as an untrained network's
    assert default_dataset_path(family) != default_dataset_path(
        family, Collection(untrained_episodes=2)
    )


def test_untrained_stage_needs_observations() -> None:
    with pytest.raises(ValueError, match=r"untrained_episodes: .* found two_drawer_lite"):
        default_dataset_path(FAMILIES["two_drawer_lite"], Collection(untrained_episodes=2))
