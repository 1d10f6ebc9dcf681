"""Stacked agents against the same agents trained alone, in double precision."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.losses.sac import sac_losses
from offline_meta_rl.methods.per_task_sac import PerTaskSAC
from tests.references.sac import ReferenceAgent, random_batch

TASKS, ROWS, SIZES = 3, 7, (4, 2)
SETTINGS = {"hidden_size": 6, "learning_rate": 1e-2, "discount": 0.9, "target_update": 0.1}


def make(**settings: Any) -> PerTaskSAC:
    """Return agents of different temperatures, with targets apart from the critics, and Adam."""
    module = PerTaskSAC(
        num_tasks=TASKS, observation_size=SIZES[0], action_size=SIZES[1], **SETTINGS, **settings
    ).double()
    with torch.no_grad():
        module.log_temperature.copy_(torch.linspace(-2.0, 0.5, TASKS))
        for target in module.targets.parameters():
            target.add_(0.3 * torch.randn_like(target))
    optimizer = module.configure_optimizers()
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    module.optimizers = lambda: optimizer  # type: ignore[assignment, method-assign]
    module.lr_schedulers = list  # type: ignore[assignment, method-assign]
    return module


def batches(count: int) -> list[dict[str, Tensor]]:
    return [random_batch(TASKS, ROWS, *SIZES, dtype=torch.float64) for _ in range(count)]


def update(module: PerTaskSAC, batch: dict[str, Tensor], noise: Tensor, monkeypatch: Any) -> Any:
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    metrics = module.outer_step(TensorDict(batch, batch_size=[TASKS, ROWS]))
    monkeypatch.undo()
    return metrics


def test_each_agent_learns_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    alone = [
        ReferenceAgent(*SIZES, dtype=torch.float64, **SETTINGS).copy(module, task)  # type: ignore[arg-type]
        for task in range(TASKS)
    ]
    before = [parameter.clone() for parameter in module.parameters()]
    for batch in batches(5):
        noise = torch.randn(2, TASKS, ROWS, SIZES[1], dtype=torch.float64)
        metrics = update(module, batch, noise, monkeypatch)
        losses = [
            agent.update({key: value[task] for key, value in batch.items()}, noise[:, task])
            for task, agent in enumerate(alone)
        ]
        for name in ("critic", "actor"):
            expected = sum(loss[name] for loss in losses) / TASKS
            torch.testing.assert_close(metrics[name], expected, rtol=1e-9, atol=1e-11)
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert (parameter != old).reshape(len(old), -1).any(dim=1).all()
    for task, agent in enumerate(alone):
        stacked = ReferenceAgent(*SIZES, dtype=torch.float64, **SETTINGS).copy(module, task)  # type: ignore[arg-type]
        for part in ("actor", "critics", "targets"):
            pairs = zip(
                getattr(agent, part).parameters(), getattr(stacked, part).parameters(), strict=True
            )
            for expected, found in pairs:
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(
            stacked.log_temperature, agent.log_temperature, rtol=1e-9, atol=1e-11
        )


def test_one_task_never_moves_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other data of task 1 leaves every number of tasks 0 and 2 as it is."""
    batch, noise = batches(1)[0], torch.randn(2, TASKS, ROWS, SIZES[1], dtype=torch.float64)
    states = []
    for shift in (0.0, 100.0):
        torch.manual_seed(3)
        module = make()
        shifted = {key: value.clone() for key, value in batch.items()}
        shifted["reward"][1] += shift
        update(module, shifted, noise, monkeypatch)
        states.append(module.state_dict())
    others = [0, 2]
    for name, first in states[0].items():
        first, second = (value.unflatten(0, (-1, TASKS)) for value in (first, states[1][name]))
        assert torch.equal(first[:, others], second[:, others]), name
    first, second = (state["critics.weights.0"] for state in states)
    assert not torch.equal(first[1], second[1])


def test_only_a_terminated_episode_ends_the_bootstrap() -> None:
    module, batch = make(), batches(1)[0]
    batch["terminated"] = torch.zeros(TASKS, ROWS, dtype=torch.bool)
    batch["terminated"][0, 0] = True
    noise = torch.randn(2, TASKS, ROWS, SIZES[1], dtype=torch.float64)
    settings = {"discount": 0.9, "target_entropy": -2.0}

    def critic_loss(changed: dict[str, Tensor]) -> Tensor:
        losses = sac_losses(module.agents(), module.targets.layers(), changed, noise, **settings)
        return losses["critic"].detach()

    before = critic_loss(batch)
    for row, counts in ((0, False), (1, True)):
        changed = {key: value.clone() for key, value in batch.items()}
        changed["next_observation"][0, row] += 5.0
        assert (critic_loss(changed)[0] != before[0]) == counts
        assert torch.equal(critic_loss(changed)[1:], before[1:])


def test_density_is_that_of_the_squashed_sample_far_out_too() -> None:
    """The density stays finite where tanh rounds to one, in single precision."""
    module = PerTaskSAC(num_tasks=1, observation_size=1, action_size=1, hidden_size=2)
    with torch.no_grad():
        module.actors.biases[-1][..., 0] = 20.0
    batch = random_batch(1, 4, 1, 1)
    losses = sac_losses(
        module.agents(),
        module.targets.layers(),
        batch,
        torch.zeros(2, 1, 4, 1),
        discount=0.9,
        target_entropy=-1.0,
    )
    # log density of tanh(x) at x = 20 is that of x plus 2 x - 2 log 2
    assert -40.5 < float(losses["entropy"]) < -36.0


def test_act_gives_each_task_its_own_agent() -> None:
    module = make()
    observation = torch.randn(TASKS, 2, SIZES[0], dtype=torch.float64)
    noise = torch.randn(TASKS, 2, SIZES[1], dtype=torch.float64)
    mean, noisy = module.act(observation), module.act(observation, noise)
    for task in range(TASKS):
        agent = ReferenceAgent(*SIZES, dtype=torch.float64, **SETTINGS).copy(module, task)  # type: ignore[arg-type]
        with torch.no_grad():
            expected = agent.sample(observation[task], noise[task])[0]
            still = torch.tanh(agent.actor(observation[task])[:, : SIZES[1]])
        torch.testing.assert_close(noisy[task], expected)
        torch.testing.assert_close(mean[task], still)


@pytest.mark.slow
def test_compiled_losses_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, noise = batches(1)[0], torch.randn(2, TASKS, ROWS, SIZES[1], dtype=torch.float64)
    states = []
    for settings in ({}, {"compile": True, "compile_mode": "default"}):
        torch.manual_seed(3)
        module = make(**settings)
        update(module, batch, noise, monkeypatch)
        states.append(module.state_dict())
    for name, eager in states[0].items():
        torch.testing.assert_close(states[1][name], eager, rtol=1e-6, atol=1e-9)
