"""Stacked agents against the same agents trained alone, and against TorchRL's losses."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.losses.sac import SACSettings, sac_losses
from offline_meta_rl.methods.sac import SAC
from offline_meta_rl.networks.actors import TENSORDICT_SCALE
from offline_meta_rl.networks.stacked import HiddenLayers
from tests.benchmarks.torchrl_sac import TorchRLAgent, as_torchrl
from tests.helpers import Batches, quiet_trainer
from tests.references.sac import ReferenceAgent, random_batch

TASKS, ROWS, SIZES = 3, 7, (4, 2)
WIDTH = 6
SETTINGS = {"learning_rate": 1e-2, "target_update": 0.1}
LOSSES = SACSettings(discount=0.9, temperature_loss="paper")


def make(agents: Any = "per_task", **settings: Any) -> SAC:
    """Return agents of different temperatures, with targets apart from the critics, and Adam.

    A single agent is told its task by one of the numbers that it sees.
    """
    told = agents == "one"
    module = SAC(
        agents=agents,
        num_tasks=TASKS,
        observation_size=SIZES[0] - told,
        task_feature_size=1,
        action_size=SIZES[1],
        network=HiddenLayers(width=WIDTH, depth=2),
        losses=LOSSES,
        **(SETTINGS | settings),
    ).double()
    with torch.no_grad():
        module.log_temperature.copy_(torch.linspace(-2.0, 0.5, module.num_agents))
        for target in module.targets.parameters():
            target.add_(0.3 * torch.randn_like(target))
    optimizer = module.configure_optimizers()
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    module.optimizers = lambda: optimizer  # type: ignore[assignment, method-assign]
    module.lr_schedulers = list  # type: ignore[assignment, method-assign]
    return module


def alone(module: SAC, agent: int) -> ReferenceAgent:
    """Return a copy of one agent, written with ordinary layers."""
    reference = ReferenceAgent(*SIZES, WIDTH, discount=0.9, dtype=torch.float64, **SETTINGS)  # type: ignore[arg-type]
    return reference.copy(module, agent)


def batches(count: int, agents: int = TASKS) -> list[dict[str, Tensor]]:
    return [random_batch(agents, ROWS, *SIZES, dtype=torch.float64) for _ in range(count)]


def noise_for(agents: int) -> Tensor:
    return torch.randn(2, agents, ROWS, SIZES[1], dtype=torch.float64)


def update(module: SAC, batch: dict[str, Tensor], noise: Tensor, monkeypatch: Any) -> Any:
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    metrics = module.outer_step(TensorDict(batch, batch_size=[module.num_agents, ROWS]))
    monkeypatch.undo()
    return metrics


@pytest.mark.parametrize("agents", ["one", "per_task"])
def test_each_agent_learns_as_it_would_alone(agents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(agents)
    number = module.num_agents
    assert number == (1 if agents == "one" else TASKS)
    references = [alone(module, agent) for agent in range(number)]
    before = [parameter.clone() for parameter in module.parameters()]
    for batch in batches(5, number):
        noise = noise_for(number)
        metrics = update(module, batch, noise, monkeypatch)
        losses = [
            agent.update({key: value[index] for key, value in batch.items()}, noise[:, index])
            for index, agent in enumerate(references)
        ]
        for name in ("critic", "actor"):
            expected = sum(loss[name] for loss in losses) / number
            torch.testing.assert_close(metrics[name], expected, rtol=1e-9, atol=1e-11)
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert (parameter != old).reshape(len(old), -1).any(dim=1).all()
    for index, agent in enumerate(references):
        stacked = alone(module, index)
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
    batch, noise = batches(1)[0], noise_for(TASKS)
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
    module, batch, noise = make(), batches(1)[0], noise_for(TASKS)
    batch["terminated"] = torch.zeros(TASKS, ROWS, dtype=torch.bool)
    batch["terminated"][0, 0] = True

    def critic_loss(changed: dict[str, Tensor]) -> Tensor:
        losses = sac_losses(module.learned(), module.targets.layers(), changed, noise, LOSSES)
        return losses["critic"].detach()

    before = critic_loss(batch)
    for row, counts in ((0, False), (1, True)):
        changed = {key: value.clone() for key, value in batch.items()}
        changed["next_observation"][0, row] += 5.0
        assert (critic_loss(changed)[0] != before[0]) == counts
        assert torch.equal(critic_loss(changed)[1:], before[1:])


def copy_into_torchrl(module: SAC, agent: TorchRLAgent) -> None:
    """Give TorchRL's agent the parameters of the only agent of a stack."""
    named = dict(agent.loss.named_parameters()) | dict(agent.loss.named_buffers())
    prefixes = {
        "actor_network_params.module.0.module.0": module.actors,
        "qvalue_network_params.module.network": module.critics,
        "target_qvalue_network_params.module.network": module.targets,
    }
    with torch.no_grad():
        for prefix, stack in prefixes.items():
            for number, (weight, bias) in enumerate(stack.layers()):
                key = f"{prefix}.{2 * number}".replace(".", "_")
                found = {name.replace(".", "_"): tensor for name, tensor in named.items()}
                found[f"{key}_weight"].copy_(weight.mT.squeeze(0))
                found[f"{key}_bias"].copy_(bias[:, 0].squeeze(0))
        agent.loss.log_alpha.copy_(module.log_temperature[0])


def test_losses_are_those_of_torchrl(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its errors squared."""
    monkeypatch.setattr("offline_meta_rl.losses.sac.SCALE", TENSORDICT_SCALE)
    module, batch, noise = make("one"), batches(1, 1)[0], noise_for(1)
    noise[1] = noise[0]
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noise[0, 0])
    agent = TorchRLAgent(*SIZES, WIDTH, discount=0.9)
    agent.loss.double()
    copy_into_torchrl(module, agent)
    expected = agent.losses(as_torchrl({name: column[0] for name, column in batch.items()}))
    losses = SACSettings(discount=0.9)
    found = sac_losses(module.learned(), module.targets.layers(), batch, noise, losses)
    for name in ("critic", "actor", "temperature"):
        torch.testing.assert_close(found[name][0], expected[name], rtol=1e-6, atol=1e-8)
    mine = torch.autograd.grad(found["actor"].sum(), [module.actors.weights[0]])[0][0]
    theirs = torch.autograd.grad(expected["actor"], agent.learned, allow_unused=True)
    (same,) = (g for g in theirs if g is not None and g.shape == mine.mT.shape)
    torch.testing.assert_close(mine.mT, same, rtol=1e-6, atol=1e-8)


def test_temperature_s_two_losses_agree_on_where_to_go() -> None:
    module, batch, noise = make(), batches(1)[0], noise_for(TASKS)
    parts = (module.learned(), module.targets.layers(), batch, noise)
    gradients = []
    for kind in ("logarithm", "paper"):
        losses = sac_losses(*parts, SACSettings(discount=0.9, temperature_loss=kind))  # type: ignore[arg-type]
        gradients += torch.autograd.grad(losses["temperature"].sum(), [module.log_temperature])
        torch.testing.assert_close(
            losses["temperature"],
            (module.log_temperature if kind == "logarithm" else module.log_temperature.exp())
            * (losses["entropy"] + SIZES[1]),
        )
    torch.testing.assert_close(gradients[1], module.log_temperature.exp() * gradients[0])


def test_density_is_that_of_the_squashed_sample_far_out_too() -> None:
    """The density stays finite where tanh rounds to one, in single precision."""
    module = SAC(observation_size=1, action_size=1, network=HiddenLayers(2, 2))
    with torch.no_grad():
        module.actors.biases[-1][..., 0] = 20.0
    batch, noise = random_batch(1, 4, 1, 1), torch.zeros(2, 1, 4, 1)
    losses = sac_losses(module.learned(), module.targets.layers(), batch, noise, LOSSES)
    # log density of tanh(x) at x = 20 is that of x plus 2 x - 2 log 2
    assert -40.5 < float(losses["entropy"]) < -36.0


def test_target_entropy_is_minus_the_action_size_unless_given() -> None:
    module, batch, noise = make(), batches(1)[0], noise_for(TASKS)
    parts = (module.learned(), module.targets.layers(), batch, noise)
    usual, given, other = (
        sac_losses(*parts, replace(LOSSES, target_entropy=entropy))["temperature"]
        for entropy in (None, -float(SIZES[1]), 1.0)
    )
    assert torch.equal(usual, given)
    difference = -(1.0 + SIZES[1]) * module.log_temperature.exp()
    torch.testing.assert_close(other - usual, difference)


def test_act_gives_each_task_its_own_agent() -> None:
    module = make()
    observation = torch.randn(TASKS, 2, SIZES[0], dtype=torch.float64)
    noise = torch.randn(TASKS, 2, SIZES[1], dtype=torch.float64)
    mean, noisy = module.act(observation), module.act(observation, noise)
    for task in range(TASKS):
        agent = alone(module, task)
        with torch.no_grad():
            expected = agent.sample(observation[task], noise[task])[0]
            still = torch.tanh(agent.actor(observation[task])[:, : SIZES[1]])
        torch.testing.assert_close(noisy[task], expected)
        torch.testing.assert_close(mean[task], still)


def test_actor_of_a_snapshot_acts_as_the_agent() -> None:
    module = make("one").float()
    observation, features = torch.randn(5, SIZES[0] - 1), torch.randn(5, 1)
    seen = torch.cat([observation, features], dim=1)[None]
    actor = module.behaviour_actor()
    found = actor.act(observation, features, stochastic=False)
    torch.testing.assert_close(found, module.act(seen)[0])
    torch.manual_seed(3)
    found = actor.act(observation, features, stochastic=True)
    torch.manual_seed(3)
    torch.testing.assert_close(found, module.act(seen, torch.randn(1, 5, SIZES[1]))[0])
    with torch.no_grad():
        actor.network[0].weight.fill_(0.0)  # type: ignore[union-attr]
    assert not (module.actors.weights[0] == 0.0).all(), "a snapshot is a copy"
    with pytest.raises(TypeError, match="Expected one agent for all tasks, found agents: per_task"):
        make().behaviour_actor()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_an_update_moves_every_weight_as_plain_adam_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path: losses, gradients, Lightning's optimizer step."""
    noise = torch.randn(2, 1, ROWS, SIZES[1])
    module, plain = make("one").float(), make("one").float()
    plain.load_state_dict(module.state_dict())
    batch = random_batch(1, ROWS, *SIZES)
    learned = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=plain.learning_rate, fused=False)
    losses = sac_losses(plain.learned(), plain.targets.layers(), batch, noise, LOSSES)
    sum(losses[name].sum() for name in ("actor", "critic", "temperature")).backward()  # type: ignore[union-attr]
    optimizer.step()
    for name in ("_trainer", "optimizers", "lr_schedulers"):
        delattr(module, name)
    module._trainer = None
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    batches_of_one = Batches(TensorDict(batch, batch_size=[1, ROWS])[None])
    trainer.fit(module, train_dataloaders=batches_of_one)
    moved = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for (name, found), expected in zip(moved, learned, strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agents": "two"}, "agents: expected one or per_task, found 'two'"),
        ({"agents": "per_task"}, "per_task needs num_tasks, found none"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAC(observation_size=1, action_size=1, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.1}, "discount: expected 0 to 1, found 1.1"),
        ({"initial_temperature": 0.0}, "initial_temperature: expected more than 0, found 0.0"),
        ({"temperature_loss": "log"}, "expected logarithm or paper, found 'log'"),
    ],
)
def test_bad_settings_of_the_losses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SACSettings(**settings)


@pytest.mark.slow
def test_compiled_losses_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, noise = batches(1)[0], noise_for(TASKS)
    states = []
    for settings in ({}, {"compile": True, "compile_mode": "default"}):
        torch.manual_seed(3)
        module = make(**settings)
        update(module, batch, noise, monkeypatch)
        states.append(module.state_dict())
    for name, eager in states[0].items():
        torch.testing.assert_close(states[1][name], eager, rtol=1e-6, atol=1e-9)
