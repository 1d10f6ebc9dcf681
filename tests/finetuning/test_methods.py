"""What every method that can be fine-tuned online promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.finetuning.learner import OnlineLearner
from offline_meta_rl.finetuning.replay import FIELDS, OnlineReplay
from offline_meta_rl.methods.base import MetaModule
from tests.helpers import build
from tests.methods import tiny

CLASSES = {method.__name__: method for method in tiny.method_classes()}
CAN = [name for name, c in CLASSES.items() if c.fine_tuner is not MetaModule.fine_tuner]
CANNOT = [name for name in CLASSES if name not in CAN]
TASKS, ROWS = 3, 30


def agents(name: str, num_steps: int = 1) -> OnlineLearner:
    """Agents adapted to contexts with every field a replay can hold."""
    torch.manual_seed(1)
    module: Any = build(CLASSES[name], **tiny.config(name, Path())["model"]["init_args"])
    return module.fine_tuner(TensorDict(columns(2), batch_size=[TASKS, ROWS]), num_steps)


def columns(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = {"observation", "next_observation", "terminal_observation", "action"}
    found = {
        name: torch.randn(TASKS, ROWS, *([2] if name in wide else []), generator=generator)
        for name in FIELDS
    }
    return {**found, "terminated": found["terminated"] > 2, "action": found["action"].tanh()}


def learn(agent: OnlineLearner, data: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Show an episode and take every kind of update three times; return the metrics."""
    replay = OnlineReplay(TASKS, ROWS, agent.fields, observation_size=2, action_size=2)
    kept = torch.ones(TASKS, ROWS, dtype=torch.bool)
    episode = {name: data[name] for name in agent.fields}
    replay.add(episode, kept)
    agent.observe(episode, kept)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for kind in agent.updates:
        extra = agent.prepare(kind, replay)
        for rows in replay.draw((3, 8), generator):
            batch = replay.gather(rows, agent.reads[kind], extra)
            found |= agent.update(kind, batch, generator)
    return found


def actions(agent: OnlineLearner, noise: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs, drawn = (torch.randn(TASKS, 4, 2, generator=generator) for _ in range(2))
    return agent.act(inputs, drawn if noise else None)


def test_some_can() -> None:
    assert "Macaw" in CAN


@pytest.mark.parametrize("name", CANNOT)
def test_others_say_so(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} cannot be fine-tuned online"):
        agents(name)


@pytest.mark.parametrize("name", CAN)
def test_what_a_learner_declares(name: str) -> None:
    agent = agents(name)
    assert set(agent.fields) <= set(FIELDS)
    assert set(agent.reads) == set(agent.updates)
    assert all(set(names) <= set(agent.fields) for names in agent.reads.values())
    assert all(count >= 0 for count in agent.updates.values())


@pytest.mark.parametrize("name", CAN)
def test_learning_moves_the_actions_and_reports_each_task(name: str) -> None:
    agent = agents(name)
    before = actions(agent).clone()
    assert before.shape == (TASKS, 4, 2)
    assert not torch.equal(actions(agent, noise=True), before)
    metrics = learn(agent, columns(3))
    assert metrics
    assert all(value.shape == (TASKS,) and not value.requires_grad for value in metrics.values())
    assert not torch.equal(actions(agent), before)


@pytest.mark.parametrize("name", CAN)
def test_adaptation_counts(name: str) -> None:
    assert not torch.equal(actions(agents(name, 0)), actions(agents(name, 1)))


@pytest.mark.parametrize("name", CAN)
def test_tasks_do_not_mix(name: str) -> None:
    one, other = agents(name), agents(name)
    changed = {key: value.clone() for key, value in columns(3).items()}
    for value in changed.values():
        value[1] = value[1].flip(0) if value.dtype == torch.bool else value[1] + 0.5
    learn(one, columns(3))
    learn(other, changed)
    assert torch.equal(actions(one)[[0, 2]], actions(other)[[0, 2]])
    assert not torch.equal(actions(one)[1], actions(other)[1])


@pytest.mark.parametrize("name", CAN)
def test_a_learner_continues_where_it_was(name: str) -> None:
    one, other = agents(name), agents(name, 0)
    learn(one, columns(3))
    other.load_state_dict(one.state_dict())
    for agent in (one, other):
        learn(agent, columns(4))
    assert tiny.difference(one.state_dict(), other.state_dict()) is None
    assert torch.equal(actions(one, noise=True), actions(other, noise=True))
