"""Multi-task AWR against slow references: the loss with its one-hot code, fine-tuning with Adam."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.methods.multitask_awr import MultitaskAWR
from tests.helpers import build, make_dataset, quiet_trainer, task_buffers
from tests.references import macaw as reference

TASKS, ROWS, ALL_TASKS = 3, 16, 7


def make(**options: Any) -> MultitaskAWR:
    sizes = {"observation_size": 4, "action_size": 2, "one_hot_tasks": ALL_TASKS, "width": 8}
    rates = {"adaptation_policy_rate": 0.01, "adaptation_value_rate": 0.03}
    return build(MultitaskAWR, **(sizes | rates | options)).double()


def random_batch() -> TensorDict:
    fields = reference.random_batch(TASKS, ROWS, 4, 2, dtype=torch.float64)
    fields["terminal_observation"] = torch.randn(TASKS, ROWS, 4, dtype=torch.float64)
    fields["terminal_discount"] = torch.rand(TASKS, ROWS, dtype=torch.float64)
    return TensorDict(fields, batch_size=(TASKS, ROWS))


def layers_of(network: torch.nn.Module) -> list[reference.Layer]:
    """Weight [in, out] and bias [out] of every layer, as views."""
    return [(weight[0], bias[0, 0]) for weight, bias in network.layers()]  # type: ignore[operator]


def slow_losses(
    module: MultitaskAWR,
    policy: list[reference.Layer],
    value: list[reference.Layer],
    data: TensorDict,
    task: int | None,
) -> tuple[Tensor, Tensor]:
    """Both losses of one task, whose code is appended to every observation."""
    inputs = with_code(data["observation"], task)
    estimate, returns = reference.value(value, inputs), data["return_to_go"]
    terminal = reference.value(value, with_code(data["terminal_observation"], task))
    bootstrapped = (returns + data["terminal_discount"] * terminal).detach()
    target = bootstrapped if module.settings.bootstrap.value else returns
    returns = bootstrapped if module.settings.bootstrap.advantage else returns
    hidden = inputs
    for layer in policy[:-1]:
        hidden = torch.relu(reference.apply(layer, hidden))
    mean = torch.tanh(reference.apply(policy[-1], hidden))
    weight = reference.regression_weight((returns - estimate).detach())
    return reference.squared_error(estimate, target), reference.awr(mean, data["action"], weight)


def with_code(observation: Tensor, task: int | None) -> Tensor:
    code = torch.zeros(len(observation), ALL_TASKS, dtype=observation.dtype)
    if task is not None:
        code[:, task] = 1.0
    return torch.cat([observation, code], dim=-1)


VARIANTS = [
    {},
    {"bootstrap_advantage": True},
    {"bootstrap_advantage": True, "bootstrap_value": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=["paper", "standard", "multitask"])
def test_gradient_is_that_of_one_network_told_the_task(options: dict[str, bool]) -> None:
    module, batch = make(**options), random_batch()
    task, weight = torch.tensor([5, 0, 3]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found, metrics = module.gradient(module.networks(), dict(batch), task, weight)
    policy, value = layers_of(module.policy), layers_of(module.value)
    total, by_name = torch.zeros((), dtype=torch.float64), {"value_loss": 0.0, "policy_loss": 0.0}
    for row, (index, share) in enumerate(zip(task.tolist(), weight, strict=True)):
        losses = slow_losses(module, policy, value, batch[row], index)
        total = total + share * sum(losses)
        for name, loss in zip(by_name, losses, strict=True):
            by_name[name] += (share * loss.detach()).item()
    leaves = pytree.tree_leaves(module.networks())
    expected = torch.autograd.grad(total, leaves)
    for gradient, other in zip(pytree.tree_leaves(found), expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)
    for name, loss in by_name.items():
        assert metrics[name].item() == pytest.approx(loss, rel=1e-9)


def test_codes_of_other_tasks_get_no_gradient() -> None:
    module, batch = make(), random_batch()
    task, weight = torch.tensor([5, 0, 3]), torch.full((TASKS,), 1 / TASKS, dtype=torch.float64)
    (policy, _), _ = module.gradient(module.networks(), dict(batch), task, weight)
    moved = policy[0][0][0, 4:].abs().amax(dim=-1) > 0
    assert moved.nonzero()[:, 0].tolist() == [0, 3, 5]


def adam_alone(module: MultitaskAWR, data: TensorDict, num_steps: int) -> list[reference.Layer]:
    """One task's fine-tuning with torch's Adam on full networks, a code of zeros appended."""
    policy, value = (
        [tuple(t.detach().clone().requires_grad_() for t in layer) for layer in layers_of(network)]
        for network in (module.policy, module.value)
    )
    adam_value = torch.optim.Adam([t for layer in value for t in layer], lr=0.03)
    adam_policy = torch.optim.Adam([t for layer in policy for t in layer], lr=0.01)
    for _ in range(num_steps):
        adam_value.zero_grad()
        slow_losses(module, policy, value, data, None)[0].backward()
        adam_value.step()
        adam_policy.zero_grad()
        slow_losses(module, policy, value, data, None)[1].backward()
        adam_policy.step()
    return policy


@pytest.mark.parametrize(("num_steps", "options"), [(1, {}), (20, {}), (20, VARIANTS[2])])
def test_fine_tuning_of_all_tasks_equals_adam_on_each_alone(
    num_steps: int, options: dict[str, bool]
) -> None:
    module, context = make(**options), random_batch()
    with torch.no_grad():  # as while validating
        found = module.adapt_tasks(context, num_steps)
    for task in range(TASKS):
        policy = adam_alone(module, context[task], num_steps)
        for layer, (weight, bias) in enumerate(policy):
            own = found.get_buffer(f"weight_{layer}")[task]
            expected = weight[:4] if layer == 0 else weight
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-11)
            own = found.get_buffer(f"bias_{layer}")[task]
            torch.testing.assert_close(own, bias, rtol=1e-9, atol=1e-11)


def test_before_adaptation_the_policy_is_the_one_of_no_task() -> None:
    module, context = make(), random_batch()
    observation = context["observation"]
    found = module.adapt_tasks(context, 0)(observation)
    inputs = with_code(observation.flatten(0, 1), None)
    expected = torch.tanh(module.policy(inputs[None]))[0].view_as(found)
    torch.testing.assert_close(found, expected)


def test_adapt_and_held_out_losses_take_the_methods_own_number_of_steps() -> None:
    module, context, query = make(adaptation_steps=4).float(), random_batch(), random_batch()
    context, query = context.float(), query.float()
    one = {name: context[name][0] for name in ("observation", "action", "return_to_go")}
    observation = one["observation"]
    assert torch.equal(module.adapt(one)(observation), module.adapt(one, 4)(observation))
    assert not torch.equal(module.adapt(one)(observation), module.adapt(one, 3)(observation))
    losses = module.held_out_losses(context, query)
    tuned = module.fine_tuned(context, 4)
    values = [[(weight[t], bias[t, 0]) for weight, bias in tuned.value] for t in range(TASKS)]
    errors = [
        reference.squared_error(
            reference.value(values[t], query["observation"][t]), query["return_to_go"][t]
        )
        for t in range(TASKS)
    ]
    torch.testing.assert_close(losses["value_loss"], torch.stack(errors).mean())


def test_another_number_of_tasks_is_refused(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "data", num_tasks=6)
    data = task_buffers(path, inner_size=4, outer_size=4)
    with pytest.raises(ValueError, match=r"fields .*'terminal_discount'\], found .* Set --data"):
        quiet_trainer(tmp_path, 1).fit(
            make(bootstrap_value=True, one_hot_tasks=6).float(), datamodule=data
        )
    with pytest.raises(
        ValueError, match=r"built for num_tasks 7, the data has 6\. Set --model.*num_tasks=6"
    ):
        quiet_trainer(tmp_path, 1).fit(make().float(), datamodule=data)
