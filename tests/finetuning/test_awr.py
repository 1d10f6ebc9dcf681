"""Batched fine-tuning of many tasks against one agent after another; what ``all`` starts from."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from offline_meta_rl.finetuning.awr import ROWS_AT_ONCE, AwrLearner, network
from offline_meta_rl.finetuning.replay import OnlineReplay
from offline_meta_rl.methods.macaw import Macaw
from offline_meta_rl.networks.generated import LayerParameters
from tests.helpers import build
from tests.references.awr import ReferenceAwr, ordinary
from tests.references.macaw import Layer, inner_step, policy, random_batch, regression_weight, value
from tests.references.macaw import awr as awr_loss

TASKS, ROWS, SIZE, A = 3, 40, 3, 2
RATES = {"policy": 1e-2, "value": 3e-2}


def macaw(**options: Any) -> Macaw:
    torch.manual_seed(4)
    sizes = {
        "observation_size": SIZE,
        "action_size": A,
        "width": 7,
        "head_width": 5,
        "latent_size": 4,
    }
    steps = {"inner_policy_step": 0.05, "inner_value_step": 0.05}
    return build(Macaw, **sizes, **steps, **options).double()


def context() -> TensorDict:
    torch.manual_seed(5)
    return TensorDict(random_batch(TASKS, 16, SIZE, A, dtype=torch.float64), batch_size=[TASKS, 16])


def learner(module: Macaw, num_steps: int = 1, **options: Any) -> AwrLearner:
    rates = {f"{kind}_learning_rate": rate for kind, rate in RATES.items()}
    return module.fine_tuner(context(), num_steps, **{**rates, **options})


def replay(fields: tuple[str, ...]) -> OnlineReplay:
    """A replay of random numbers in double precision, with tasks of different lengths."""
    torch.manual_seed(6)
    result = OnlineReplay(TASKS, ROWS, fields, observation_size=SIZE, action_size=A)
    for name, column in result.columns.items():
        result.columns[name] = torch.randn_like(column, dtype=torch.float64)
    result.size = torch.tensor([ROWS, ROWS - 5, ROWS - 11])
    return result


def reference(agent: AwrLearner, task: int, bootstrap: bool) -> ReferenceAwr:
    """One task's agent, with copies of its parameters."""

    def layer(parameters: Any) -> Layer:
        if isinstance(parameters, LayerParameters):
            z, m, c = (part[task].detach().clone().requires_grad_() for part in parameters)
            return z, m, c
        return ordinary(parameters[task])

    layers = [[layer(parameters) for parameters in part] for part in (agent.policy, agent.value)]
    return ReferenceAwr(layers[0], layers[1], RATES, bootstrap=bootstrap)


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("parameters", ["theta", "all"])
def test_batched_updates_equal_a_loop_over_tasks(parameters: str, bootstrap: bool) -> None:
    agent = learner(macaw(), parameters=parameters, bootstrap_advantage=bootstrap)
    singles = [reference(agent, task, bootstrap) for task in range(TASKS)]
    rows = replay(agent.fields)
    generator = torch.Generator().manual_seed(0)
    for kind in ("value", "policy", "value", "policy"):
        extra = agent.prepare(kind, rows)
        for drawn in rows.draw((4, 9), generator):
            batch = rows.gather(drawn, agent.reads[kind], extra)
            found = agent.update(kind, batch, generator)[f"{kind}_loss"]
            for task, single in enumerate(singles):
                own = {name: column[task, drawn[task]] for name, column in rows.columns.items()}
                assert float(found[task]) == pytest.approx(single.update(kind, own), rel=1e-9)
    observation = torch.randn(TASKS, 11, SIZE, dtype=torch.float64)
    found = agent.act(observation)
    expected = torch.stack([s.mean_action(x) for s, x in zip(singles, observation, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    first = network(learner(macaw()).policy, SIZE)[0][0]
    assert (network(agent.policy, SIZE)[0][0] - first).abs().amax() > 1e-2  # something was learned


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_own_layers_are_those_of_gradient_descent_on_them(num_steps: int) -> None:
    module, data = macaw(), context()
    agent = learner(module, num_steps, parameters="all")
    thetas = learner(module, num_steps)
    for task in range(TASKS):
        own = {name: column[task] for name, column in data.items()}
        phi: Any = [tuple(layer.layer()) for layer in module.value]  # type: ignore[operator]
        theta: Any = [tuple(layer.layer()) for layer in module.policy]  # type: ignore[operator]
        for _ in range(num_steps):
            error = torch.square(value(phi, own["observation"]) - own["return_to_go"]).mean()
            phi = inner_step(phi, error, module.value_log_step_sizes.exp())
            advantage = (own["return_to_go"] - value(phi, own["observation"])).detach()
            mean, predicted = policy(theta, own["observation"], own["action"])
            assert predicted is not None
            loss = awr_loss(mean, own["action"], regression_weight(advantage))
            coefficient = module.log_advantage_coefficient.exp()
            loss = loss + coefficient * torch.square(predicted - advantage).mean()
            theta = inner_step(theta, loss, module.policy_log_step_sizes.exp())
        for found, expected in ((agent.value, phi), (agent.policy, theta)):
            for layer, wanted in zip(found, expected, strict=False):
                for part, number in zip(layer, wanted, strict=True):
                    torch.testing.assert_close(part[task], number, rtol=1e-9, atol=1e-10)
    observation = torch.randn(TASKS, 4, SIZE, dtype=torch.float64)
    torch.testing.assert_close(agent.act(observation), thetas.act(observation))
    adapted = module.adapt_tasks(data, num_steps)
    torch.testing.assert_close(thetas.act(observation), adapted(observation))


def test_tasks_do_not_mix() -> None:
    agents = [learner(macaw()) for _ in range(2)]
    rows = [replay(agent.fields) for agent in agents]
    for column in rows[1].columns.values():
        column[2] += 1.0
    generator = torch.Generator().manual_seed(0)
    drawn = rows[0].draw((1, 9), generator)[0]
    for agent, own in zip(agents, rows, strict=True):
        for kind in agent.updates:
            batch = own.gather(drawn, agent.reads[kind], agent.prepare(kind, own))
            agent.update(kind, batch, generator)
    for first, second in zip(agents[0].policy, agents[1].policy, strict=True):
        assert isinstance(first, torch.Tensor)
        assert isinstance(second, torch.Tensor)
        assert torch.equal(first[:2], second[:2])
        assert not torch.equal(first[2], second[2])


def test_noise_is_sigma_wide() -> None:
    agent = learner(macaw())
    observation, noise = (torch.randn(TASKS, 5, n, dtype=torch.float64) for n in (SIZE, A))
    torch.testing.assert_close(agent.act(observation, noise) - agent.act(observation), 0.2 * noise)


def test_advantages_of_a_large_replay_come_in_parts() -> None:
    agent = learner(macaw())
    rows = OnlineReplay(TASKS, ROWS_AT_ONCE + 3, agent.fields, observation_size=SIZE, action_size=A)
    for name, column in rows.columns.items():
        rows.columns[name] = torch.randn_like(column, dtype=torch.float64)
    rows.size += ROWS_AT_ONCE + 3
    advantage = agent.prepare("policy", rows)["advantage"]
    assert advantage.shape == (TASKS, ROWS_AT_ONCE + 3)
    single = reference(agent, 1, True)
    own = {name: column[1] for name, column in rows.columns.items()}
    end = value(single.value_layers, own["terminal_observation"])
    expected = own["return_to_go"] + own["terminal_discount"] * end
    expected = expected - value(single.value_layers, own["observation"])
    torch.testing.assert_close(advantage[1], expected)


def test_continues_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    agents = [learner(macaw()) for _ in range(2)]
    rows = replay(agents[0].fields)
    drawn = rows.draw((6, 9), generator)

    def learn(agent: AwrLearner, batches: torch.Tensor) -> None:
        for each in batches:
            for kind in agent.updates:
                batch = rows.gather(each, agent.reads[kind], agent.prepare(kind, rows))
                agent.update(kind, batch, generator)

    learn(agents[0], drawn)
    learn(agents[1], drawn[:3])
    third = learner(macaw())
    third.act(torch.zeros(TASKS, 1, SIZE, dtype=torch.float64))  # weights generated before loading
    third.load_state_dict(agents[1].state_dict())
    learn(third, drawn[3:])
    observation = torch.randn(TASKS, 5, SIZE, dtype=torch.float64)
    assert torch.equal(agents[0].act(observation), third.act(observation))


@pytest.mark.parametrize(
    ("layer", "parameters"),
    [("plain", "all"), ("bias_transform", "all"), ("weight_transform", "everything")],
)
def test_impossible_parameters_are_named(layer: Any, parameters: str) -> None:
    message = f"expected theta, or all .*; found {parameters} for layers of the kind {layer}"
    with pytest.raises(ValueError, match=message):
        learner(macaw(layer=layer), parameters=parameters)
    assert learner(macaw(layer=layer), parameters="theta").policy
