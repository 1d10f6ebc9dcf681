"""The behaviour agent's replay: which reward the agent sees, and who may end its bootstrap."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from datamodules import OnlineBuffer
from offline_meta_rl.envs.locomotion.families import AntDir
from offline_meta_rl.networks.actors import BehaviourActor


def terms(task: list[float], control: list[float]) -> TensorDict:
    values = {"task": task, "control": control, "alive": [1.0] * len(task)}
    return TensorDict(
        {name: torch.tensor(value)[:, None] for name, value in values.items()}, [len(task)]
    )


def ant(**settings: float) -> OnlineBuffer:
    return OnlineBuffer(family="ant_dir", batch_size=8, num_threads=1, **settings)


def test_the_agent_sees_the_true_reward_unless_told_otherwise() -> None:
    found = ant().reward(terms([2.0, 0.0], [-3.0, -8.0]))
    torch.testing.assert_close(found, torch.tensor([[2.0 - 1.5 + 1.0], [-4.0 + 1.0]]))


@pytest.mark.parametrize(("steps", "cost"), [(0, 0.1), (5, 0.3), (10, 0.5), (99, 0.5)])
def test_control_cost_is_annealed_and_the_bonus_is_not(steps: int, cost: float) -> None:
    data = ant(alive_bonus=0.25, control_cost=0.1, anneal_steps=10)
    data.env_steps = steps
    found = data.reward(terms([2.0], [-3.0]))
    torch.testing.assert_close(found, torch.tensor([[2.0 - 3.0 * cost + 0.25]]))


def served(data: OnlineBuffer) -> TensorDict:
    """Return the first batch of training, with a stand-in for the agent."""
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(actor=BehaviourActor(27, 2, 8, 16))
    )
    return next(iter(data))


def test_falling_is_penalised_where_the_episode_terminated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = np.arange(50) < 25
    monkeypatch.setattr(AntDir, "fallen", lambda self, qpos, qvel: half[: len(qpos)])
    batch = served(ant(fall_penalty=10.0, warmup_steps=3, updates_per_step=4))
    assert batch.shape == (4, 8)
    assert "reward_terms" not in batch["next"].keys()
    ended, reward = batch["next", "terminated"], batch["next", "reward"]
    assert ended.any()
    assert not ended.all()
    assert (reward[ended] < -7).all()  # the true reward of one step lies within a few units of 0
    assert (reward[~ended] > -7).all()


def test_relabelled_transitions_pay_what_their_new_task_would_have_paid() -> None:
    data = ant(warmup_steps=3, updates_per_step=20, relabel=0.5)
    batch = served(data)
    features = batch["task_features"].flatten(0, 1)
    torch.testing.assert_close(batch["next", "task_features"].flatten(0, 1), features)
    replay = data.replay[: len(data.replay)]
    observations = batch["observation"].flatten(0, 1)
    source = (observations[:, None] == replay["observation"]).all(dim=-1).int().argmax(dim=1)
    changed = (replay["task_features"][source] != features).any(dim=-1)
    assert 0.3 < changed.float().mean() < 0.7
    terms = replay["next", "reward_terms"][source]
    velocity = torch.cat([terms["velocity_x"], terms["velocity_y"]], dim=-1)
    expected = (velocity * features).sum(dim=-1, keepdim=True)  # along the goal's unit vector
    expected = expected + 0.5 * terms["control"] + 1.0
    torch.testing.assert_close(batch["next", "reward"].flatten(0, 1), expected)


def test_relabelling_is_refused_where_bodies_differ() -> None:
    with pytest.raises(ValueError, match="Set relabel to 0"):
        OnlineBuffer(family="walker_params", relabel=0.5)
