"""The behaviour agent's replay: which reward the agent sees, and who may end its bootstrap."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datamodules import OnlineBuffer
from datamodules.replay import Replay
from offline_meta_rl.behaviour.shaping import ShapedReward, Shaping
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.locomotion.families import AntDir
from tests.methods import tiny


def terms(task: list[float], control: list[float]) -> dict[str, torch.Tensor]:
    values = {"task": task, "control": control, "alive": [1.0] * len(task)}
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_agent_sees_the_true_reward_unless_told_otherwise() -> None:
    shaped = ShapedReward(FAMILIES["ant_dir"], Shaping())
    found = shaped.reward(terms([2.0, 0.0], [-3.0, -8.0]), steps=0)
    torch.testing.assert_close(found, torch.tensor([2.0 - 1.5 + 1.0, -4.0 + 1.0]))


@pytest.mark.parametrize(("steps", "cost"), [(0, 0.1), (5, 0.3), (10, 0.5), (99, 0.5)])
def test_control_cost_is_annealed_and_the_bonus_is_not(steps: int, cost: float) -> None:
    shaping = Shaping(alive_bonus=0.25, control_cost=0.1, anneal_steps=10)
    found = ShapedReward(FAMILIES["ant_dir"], shaping).reward(terms([2.0], [-3.0]), steps)
    torch.testing.assert_close(found, torch.tensor([2.0 - 3.0 * cost + 0.25]))


class Agent:
    """Stands in for the agent, and notes what it saw."""

    def __init__(self) -> None:
        self.hparams: dict[str, object] = {}
        self.seen: list[torch.Tensor] = []

    def act(self, observation: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        assert noise is not None
        self.seen.append(observation)
        return noise.tanh()


def with_agent(data: OnlineBuffer) -> tuple[OnlineBuffer, Agent]:
    """Give a replay a stand-in for the agent."""
    agent = Agent()
    data.trainer = SimpleNamespace(lightning_module=agent)  # type: ignore[assignment]
    return data, agent


def ant(replay: Replay, **settings: Any) -> tuple[OnlineBuffer, Agent]:
    """Return the ants' replay, with a stand-in for the agent."""
    return with_agent(OnlineBuffer(family="ant_dir", replay=replay, num_threads=1, **settings))


def test_the_agent_is_told_its_task_when_it_acts_and_when_it_learns() -> None:
    data, agent = ant(Replay(batch_size=8, warmup_steps=3, updates_per_step=4))
    batch = next(iter(data))
    (seen,) = agent.seen
    assert seen.shape == (1, 50, 29)
    assert torch.equal(seen[0, :, 27:], data.task_features)
    assert batch.shape == (4, 1, 8)
    shapes = {name: column.shape[3:] for name, column in batch.items()}
    vectors = {"observation": (29,), "next_observation": (29,), "action": (8,)}
    assert shapes == {**vectors, "reward": (), "terminated": ()}
    replay = data.replay[: len(data.replay)]
    for row in batch.flatten():
        (kept,) = replay[(replay["observation"] == row["observation"][:27]).all(dim=1)]
        assert torch.equal(row["observation"][27:], kept["task_features"])
        following = torch.cat([kept["next_observation"], kept["task_features"]])
        assert torch.equal(row["next_observation"], following)
        assert torch.equal(row["action"], kept["action"])


def test_the_end_of_the_horizon_is_no_end_of_the_task() -> None:
    data, _ = with_agent(OnlineBuffer(family="point_robot", replay=Replay(warmup_steps=25)))
    next(iter(data))  # 26 steps, of which the 20th was the last of each episode
    replay = data.replay[: len(data.replay)]
    assert not replay["terminated"].any()
    assert (replay["observation"].view(26, 40, 2)[20].abs() <= 0.05).all()


def test_another_method_is_refused() -> None:
    data = OnlineBuffer(family="point_robot", replay=Replay(warmup_steps=0))
    data.trainer = SimpleNamespace(lightning_module=torch.nn.Linear(1, 1))  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"a method that acts, .* found Linear. Pass --model SAC"):
        next(iter(data))


def test_falling_is_penalised_where_the_episode_terminated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = np.arange(50) < 25
    monkeypatch.setattr(AntDir, "fallen", lambda self, qpos, qvel: half[: len(qpos)])
    replay = Replay(batch_size=8, warmup_steps=3, updates_per_step=4)
    data, _ = ant(replay, shaping=Shaping(fall_penalty=10.0))
    batch = next(iter(data))
    assert batch.shape == (4, 1, 8)
    assert "reward_terms" not in batch.keys()
    ended, reward = batch["terminated"], batch["reward"]
    assert ended.any()
    assert not ended.all()
    assert (reward[ended] < -7).all()  # the true reward of one step lies within a few units of 0
    assert (reward[~ended] > -7).all()


def test_relabelled_transitions_pay_what_their_new_task_would_have_paid() -> None:
    data, _ = ant(Replay(batch_size=8, warmup_steps=3, updates_per_step=20), relabel=0.5)
    batch = next(iter(data)).flatten()
    features = batch["observation"][:, 27:]
    torch.testing.assert_close(batch["next_observation"][:, 27:], features)
    replay = data.replay[: len(data.replay)]
    observations = batch["observation"][:, :27]
    source = (observations[:, None] == replay["observation"]).all(dim=-1).int().argmax(dim=1)
    changed = (replay["task_features"][source] != features).any(dim=-1)
    assert 0.3 < changed.float().mean() < 0.7
    terms = replay["reward_terms"][source]
    velocity = torch.stack([terms["velocity_x"], terms["velocity_y"]], dim=-1)
    expected = (velocity * features).sum(dim=-1)  # along the goal's unit vector
    expected = expected + 0.5 * terms["control"] + 1.0
    torch.testing.assert_close(batch["reward"], expected)


def test_agents_of_single_tasks_are_refused(tmp_path: Path) -> None:
    settings = tiny.config("SAC", tmp_path, max_steps=2)
    settings["model"]["init_args"] |= {"agents": "per_task", "num_tasks": 40}
    with pytest.raises(ValueError, match=r"found 40 in SAC and 1 in OnlineBuffer\. .*agents one"):
        tiny.fit(settings, tmp_path)


def test_loggers_get_plain_settings(tmp_path: Path) -> None:
    settings = tiny.config("SAC", tmp_path, max_steps=2)
    settings["trainer"]["logger"] = {
        "class_path": "CSVLogger",
        "init_args": {"save_dir": str(tmp_path), "name": "csv"},
    }
    tiny.fit(settings, tmp_path / "run")
    (file,) = tmp_path.glob("csv/*/hparams.yaml")
    found = yaml.safe_load(file.read_text())
    assert found["replay"] == {"batch_size": 4, "updates_per_step": 1, "warmup_steps": 2}
    assert found["losses"]["discount"] == 0.99
    assert found["shaping"]["alive_bonus"] is None


@pytest.mark.parametrize("family", ["walker_params", "point_robot"])
def test_relabelling_is_refused_where_tasks_differ_otherwise(family: str) -> None:
    with pytest.raises(ValueError, match="Set relabel to 0"):
        OnlineBuffer(family=family, relabel=0.5)
