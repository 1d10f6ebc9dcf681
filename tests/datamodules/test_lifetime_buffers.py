"""Lifetime buffers: what becomes of them, what the agents see, and that no kill spoils them."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import LifetimeBuffers
from datamodules.lifetimes import restricted_splits
from datamodules.replay import Replay
from offline_meta_rl.behaviour.shaping import Shaping
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.locomotion.families import AntDir
from tests.helpers import build
from tests.methods import tiny

pytestmark = [pytest.mark.filterwarnings("ignore:The dirpath has changed")]
TASKS = [3, 20]
LIFETIME, WARMUP = 1200, 200
LEARN = {"class_path": "BehaviourLearning", "init_args": {"every_n_steps": 100}}


def settings(lifetime: int = LIFETIME, warmup: int = WARMUP, **data: Any) -> dict[str, Any]:
    """Return the config of whole lifetimes of two point robots."""
    config = tiny.config("SAC_per_task", Path(), max_steps=lifetime - warmup, log_every_n_steps=50)
    config["trainer"] |= {"val_check_interval": 10_000, "callbacks": [LEARN]}
    config["model"]["init_args"] |= {
        "num_tasks": len(TASKS),
        "network": {"width": 32},
        "learning_rate": 3e-3,
        "losses": {
            "discount": 0.9,
            "initial_temperature": 0.1,
            "temperature_loss": "paper",
        },
    }
    config["data"]["init_args"] |= {
        "tasks": TASKS,
        "stages": 3,
        "lifetime_steps": lifetime,
        "replay": {"warmup_steps": warmup, "batch_size": 64},
        "steps_per_epoch": 100,
        **data,
    }
    config["checkpoint"] = {"every_n_train_steps": 20}
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that lived both lifetimes to their end."""
    root = tmp_path_factory.mktemp("run")
    tiny.fit(settings(), root)
    return root


def test_the_lifetimes_become_a_dataset(run: Path) -> None:
    dataset = TaskDataset.open(run / "dataset", verify=True)
    manifest, data = dataset.manifest, dataset.transitions
    assert not (run / "dataset.partial").exists()
    assert manifest.num_transitions == [LIFETIME, LIFETIME]
    assert manifest.stages == ["stage_0", "stage_1", "expert"]
    stage = dataset.episodes["stage"].reshape(2, LIFETIME // 20)
    assert stage.tolist() == [[0] * 20 + [1] * 20 + [2] * 20] * 2
    family = FAMILIES["point_robot"]
    goals = family.task_parameters(0)[TASKS]
    np.testing.assert_array_equal(manifest.task_parameters, goals)
    goal = torch.from_numpy(goals).repeat_interleave(LIFETIME, dim=0)
    distance = (data["next_observation"] - goal).norm(dim=1).float()
    torch.testing.assert_close(data["reward"], -distance, atol=1e-5, rtol=0)
    moved = data["observation"] + 0.1 * data["action"]
    torch.testing.assert_close(data["next_observation"], moved, atol=1e-6, rtol=0)
    last = torch.arange(2 * LIFETIME) % 20 == 19
    assert torch.equal(data["truncated"], last)
    assert not data["terminated"].any()
    following = torch.nonzero(~last)[:, 0]
    assert torch.equal(data["next_observation"][following], data["observation"][following + 1])
    warm = data["action"].reshape(2, LIFETIME, 2)[:, :WARMUP]
    assert abs(float(warm.mean())) < 0.1
    assert abs(float(warm.std()) - 3**-0.5) < 0.05  # of a uniform number in [-1, 1]


def test_reference_returns_are_of_the_final_mean_action(run: Path) -> None:
    references = TaskDataset.open(run / "dataset").manifest.reference_returns
    assert references["best_behaviour"] == references["stages"]["expert"]
    assert set(references) == {"random", "standing_still", "best_behaviour", "stages"}
    for task in range(2):
        assert references["random"][task] == pytest.approx(-20.5, abs=2.0)
        assert references["standing_still"][task] == pytest.approx(-20.0, abs=0.5)
        assert references["best_behaviour"][task] > references["stages"]["stage_0"][task] + 1.0
        assert references["best_behaviour"][task] > -9.0


def test_who_learned_is_in_a_file_and_a_picture(run: Path) -> None:
    report = json.loads((run / "behaviour_learning.json").read_text())
    assert report["failed"] == report["unknown"] == []
    assert set(report["tasks"]) == {"3", "20"}
    dataset = TaskDataset.open(run / "dataset")
    returns = dataset.returns_to_go(1.0)[dataset.episodes["start"]].reshape(2, -1)
    for row, task in enumerate(("3", "20")):
        found = report["tasks"][task]
        assert found["learned"]
        assert found["episodes"] == 60
        assert found["first"] == pytest.approx(float(returns[row, :6].mean()), abs=1e-4)
        assert found["last"] == pytest.approx(float(returns[row, -6:].mean()), abs=1e-4)
    picture = (run / "behaviour_learning_curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_a_finished_dataset_is_not_overwritten(run: Path) -> None:
    with pytest.raises(FileExistsError, match=r"its lifetimes are over. Pass another"):
        tiny.fit(settings(), run)


def live(root: str, seconds: float) -> None:
    """Live the lifetimes, from the last checkpoint if there is one, until killed.

    Args:
        root: the run's folder.
        seconds: of this process's computing until it kills itself; 0 for never.
    """
    signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    last = Path(root) / "checkpoints" / "last.ckpt"
    tiny.fit(SHORT, Path(root), *(["--ckpt_path", str(last)] if last.is_file() else []))


SHORT = settings(lifetime=240, warmup=40, stages=3)


def killed(root: Path, seconds: float) -> int | None:
    """Live in another process that is killed after so many seconds; return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=live, args=(str(root), seconds))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "moments", [4, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_kill_at_any_moment(moments: int, tmp_path: Path) -> None:
    """Every time a resumable state or a clean refusal, and in the end the same dataset."""
    whole = tmp_path / "whole"
    begin = time.process_time()
    tiny.fit(SHORT, whole)
    seconds = time.process_time() - begin
    expected = TaskDataset.open(whole / "dataset").checksum
    draw = random.Random(moments)
    root = tmp_path / "killed_0"
    codes = []
    for number in range(moments):
        codes.append(killed(root, draw.uniform(0.2, 1.0) * seconds))
        assert codes[-1] in (0, 1, -signal.SIGKILL)
        if (root / "dataset").exists():
            assert TaskDataset.open(root / "dataset", verify=True).checksum == expected
            root = tmp_path / f"killed_{number + 1}"
        elif not (root / "checkpoints" / "last.ckpt").is_file():
            shutil.rmtree(root / "dataset.partial", ignore_errors=True)  # as the refusal says
    assert codes.count(-signal.SIGKILL) >= moments // 4
    while not (root / "dataset").exists():
        assert killed(root, 0.0) == 0
    assert TaskDataset.open(root / "dataset", verify=True).checksum == expected


def test_replays_are_not_overwritten_by_a_new_run(tmp_path: Path) -> None:
    config = settings()
    config["trainer"]["max_steps"] = 40
    tiny.fit(config, tmp_path)
    with pytest.raises(FileExistsError, match=r"partial holds 240 steps .* Go on with --ckpt_path"):
        tiny.fit(config, tmp_path)
    with pytest.raises(ValueError, match="interrupted collection with other settings"):
        tiny.fit(settings(seed=1), tmp_path)


def test_agents_that_learned_elsewhere_are_refused(tmp_path: Path) -> None:
    config = settings()
    config["trainer"]["max_steps"] = 20
    saved = tiny.fit(config, tmp_path / "a")
    del saved["LifetimeBuffers"]
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"it holds no lifetimes: expected .* Start without"):
        tiny.fit(settings(), tmp_path / "b", "--ckpt_path", str(tmp_path / "other.ckpt"))


def test_replays_of_another_run_are_refused(tmp_path: Path) -> None:
    config = settings()
    config["trainer"]["max_steps"] = 40
    tiny.fit(config, tmp_path / "a")
    tiny.fit(config | {"seed_everything": 6}, tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "dataset.partial")
    shutil.copytree(tmp_path / "b" / "dataset.partial", tmp_path / "a" / "dataset.partial")
    with pytest.raises(ValueError, match=r"expected the replays of the checkpoint's run, 240"):
        tiny.fit(settings(), tmp_path / "a", "--ckpt_path", str(checkpoint(tmp_path / "a")))


def checkpoint(root: Path) -> Path:
    return root / "checkpoints" / "last.ckpt"


def test_full_disk_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device.*dataset\.partial.*Make room"):
        tiny.fit(settings(), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lifetime_steps": 119}, "expected at least 120, two episodes of 20 steps"),
        ({"replay": {"warmup_steps": 1200}}, "warmup_steps: expected 1 to 1199"),
        ({"replay": {"batch_size": 0}}, "batch_size: expected at least 1, found 0"),
        ({"shaping": {"anneal_steps": -1}}, "anneal_steps: expected at least 0, found -1"),
        ({"tasks": [3, 40]}, "expected different indices from 0 to 39"),
        ({"tasks": [3, 3]}, "expected different indices from 0 to 39"),
        ({"stages": 0}, "but one at least"),
        ({"family": "ants"}, "expected one of .* found 'ants'"),
    ],
)
def test_bad_settings(changed: dict[str, Any], message: str) -> None:
    arguments = settings()["data"]["init_args"] | changed
    with pytest.raises(ValueError, match=message):
        build(LifetimeBuffers, **arguments)


def test_more_updates_than_a_lifetime_are_refused(tmp_path: Path) -> None:
    config = settings()
    config["trainer"]["max_steps"] = 1001
    with pytest.raises(ValueError, match=r"max_steps: expected 1000, .* found 1001"):
        tiny.fit(config, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_tasks": 5}, "built for num_tasks 5, the data has 2. Set --model"),
        ({"agents": "one"}, "found 1 in SAC and 2 in LifetimeBuffers. With LifetimeBuffers set"),
    ],
)
def test_another_number_of_agents_is_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = settings()
    config["model"]["init_args"] |= changed
    with pytest.raises(ValueError, match=message):
        tiny.fit(config, tmp_path)
    assert not (tmp_path / "dataset.partial").exists()


def test_several_processes_are_refused(tmp_path: Path) -> None:
    data = build(LifetimeBuffers, **settings()["data"]["init_args"])
    data.trainer = SimpleNamespace(world_size=2, default_root_dir=str(tmp_path))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"in one process, found 2. Set --trainer.devices=1"):
        data.setup("fit")


def test_splits_of_chosen_tasks() -> None:
    splits = {"default": ((0, 1, 3), (2, 4)), "half": ((0,), (1, 2, 3, 4))}
    assert restricted_splits(splits, [3, 2]) == {"default": {"train": [0], "test": [1]}}
    expected = {"default": {"train": [0, 1], "test": [1, 0]}}
    assert restricted_splits(splits, [4, 2]) == expected


@pytest.mark.mujoco
def test_agents_see_the_shaped_reward_and_the_replay_keeps_the_true_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = np.arange(2) < 1
    monkeypatch.setattr(AntDir, "fallen", lambda self, qpos, qvel: half[: len(qpos)])
    data = LifetimeBuffers(
        family="ant_dir",
        tasks=[0, 5],
        lifetime_steps=400,
        stages=1,
        replay=Replay(warmup_steps=5, batch_size=64),
        shaping=Shaping(
            alive_bonus=0.25,
            control_cost=0.1,
            anneal_steps=10,
            fall_penalty=10.0,
            height_weight=2.0,
        ),
        num_threads=1,
    )
    agents = SimpleNamespace(
        hparams={},
        act=lambda observation, noise: noise.tanh(),
    )
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1,
        default_root_dir=str(tmp_path),
        max_steps=10,
        global_step=0,
        lightning_module=agents,
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.shape == (1, 2, 64)
    storage = data.storage
    assert storage is not None
    assert storage.terms == ("task", "control", "alive", "height")
    stored = storage.arrays["reward_terms"][:, :6]
    task, control, alive, height = (stored[..., index] for index in range(4))
    true = task + 0.5 * control + alive
    np.testing.assert_allclose(storage.arrays["reward"][:, :6], true, rtol=1e-5, atol=1e-5)
    cost = 0.1 + (0.5 - 0.1) * 6 / 10
    seen = task + cost * control + 0.25 * alive + 2.0 * height
    seen[0] -= 10.0  # the first falls at every step
    for index in range(2):
        found = np.unique(batch["reward"][0, index].numpy())
        np.testing.assert_allclose(found, np.unique(seen[index]), rtol=1e-5, atol=1e-5)
    assert storage.arrays["terminated"][0, :6].all()
    assert not storage.arrays["terminated"][1, :6].any()
    data.on_exception(KeyboardInterrupt())
