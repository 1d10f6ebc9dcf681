"""Who learned and who failed, told from replays."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from callbacks.behaviour_learning import BehaviourLearning
from offline_meta_rl.behaviour.learning import lifetime_report, task_report
from offline_meta_rl.data.lifetimes import LifetimeStorage
from offline_meta_rl.envs import FAMILIES

FAMILY = FAMILIES["point_robot"]
EPISODES, HORIZON = 40, 20


def lifetimes(folder: Path, returns: NDArray[np.float64]) -> Any:
    """Return what LifetimeBuffers offers, with episodes of given returns [T, E]."""
    tasks = [5, 17][: len(returns)]
    storage = LifetimeStorage(
        folder / "lifetimes",
        num_tasks=len(tasks),
        steps=EPISODES * HORIZON,
        observation_size=2,
        action_size=2,
    )
    storage.arrays["reward"][:] = np.repeat(returns / HORIZON, HORIZON, axis=1)
    storage.arrays["truncated"][:, HORIZON - 1 :: HORIZON] = True
    return SimpleNamespace(
        storage=storage,
        family=FAMILY,
        tasks=tasks,
        parameters=FAMILY.task_parameters(0)[tasks],
        env_steps=EPISODES * HORIZON - 1,  # the last episode is not over
        planned_updates=100,
        evaluation={"seed": 0, "task_seed": 0, "tasks": tasks, "num_threads": 1},
        num_agents=len(tasks),
        seed=0,
        task_seed=0,
    )


def trainer(folder: Path, data: Any) -> Any:
    return SimpleNamespace(default_root_dir=str(folder), datamodule=data, global_step=100)


def test_failed_agents_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    returns = np.stack([np.linspace(-20, -4, EPISODES), np.linspace(-20, -14, EPISODES)])
    with caplog.at_level(logging.INFO):
        BehaviourLearning().on_train_end(trainer(tmp_path, lifetimes(tmp_path, returns)), None)  # type: ignore[arg-type]
    report = json.loads((tmp_path / "behaviour_learning.json").read_text())
    assert report["failed"] == [17]
    assert report["unknown"] == []
    assert report["tasks"]["5"]["learned"] is True
    assert report["tasks"]["17"]["first"] == pytest.approx(returns[1, :4].mean(), abs=1e-4)
    assert report["tasks"]["17"]["last"] == pytest.approx(returns[1, 35:39].mean(), abs=1e-4)
    assert report["tasks"]["17"]["episodes"] == 39
    assert report["tasks"]["17"]["parameters"] == pytest.approx(FAMILY.task_parameters(0)[17])
    failures = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(failures) == 1
    assert failures[0].startswith("The agent of task 17 (")
    assert "failed to learn: mean return -19.8 over the first" in failures[0]
    assert any("1 of 2 agents learned" in record.message for record in caplog.records)
    assert (tmp_path / "behaviour_learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_last_returns_are_logged(tmp_path: Path) -> None:
    returns = np.stack([np.arange(EPISODES), 2.0 * np.arange(EPISODES)])
    logged: dict[str, float] = {}
    module = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    run = trainer(tmp_path, lifetimes(tmp_path, returns))
    callback = BehaviourLearning(every_n_steps=50, last_episodes=3)
    callback.on_train_start(run, module)  # type: ignore[arg-type]
    callback.on_train_batch_end(run, module, None, None, 0)  # type: ignore[arg-type]
    assert logged == {}
    run.global_step = 150
    callback.on_train_batch_end(run, module, None, None, 0)  # type: ignore[arg-type]
    assert logged["behaviour/return_task_5"] == pytest.approx(37.0, abs=1e-3)
    assert logged["behaviour/return_task_17"] == pytest.approx(74.0, abs=1e-3)
    assert logged["behaviour/return"] == pytest.approx(55.5, abs=1e-3)


def test_what_cannot_be_judged_is_unknown() -> None:
    report = lifetime_report([4], [torch.arange(20.0).double().numpy()], [0.0], None)
    assert report["unknown"] == [4]
    assert report["failed"] == []
    assert task_report(np.zeros(0), 0.0, 1.0)["learned"] is None


def test_more_than_half_of_the_range_is_learning() -> None:
    returns = np.repeat([0.0, 5.0], 10)
    assert task_report(returns, random=0.0, shipped=9.9)["learned"] is True
    assert task_report(returns, random=0.0, shipped=10.0)["learned"] is False


def test_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected data of LifetimeBuffers, found SimpleNamespace"):
        BehaviourLearning().on_train_start(trainer(tmp_path, SimpleNamespace()), None)  # type: ignore[arg-type]
