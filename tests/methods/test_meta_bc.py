"""Meta behaviour cloning against a slow outer step with plain autograd, and what it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.methods.meta_bc import MetaBehaviourCloning
from tests.helpers import build
from tests.references import macaw as reference

TASKS, ROWS = 3, 16


def make(**options: Any) -> MetaBehaviourCloning:
    sizes = {"observation_size": 4, "action_size": 2, "width": 8, "latent_size": 6}
    return build(MetaBehaviourCloning, **sizes, **{"inner_policy_step": 0.02, **options}).double()


def random_batch() -> dict[str, Tensor]:
    batch = reference.random_batch(TASKS, ROWS, 4, 2, dtype=torch.float64)
    del batch["return_to_go"]  # it must not be needed
    return batch


def imitation(layers: list[reference.Layer], observation: Tensor, action: Tensor) -> Tensor:
    """Mean of -log N(a; mu(s), 0.2^2) of one task."""
    hidden = observation
    for layer in layers[:-1]:
        hidden = torch.relu(reference.apply(layer, hidden))
    mean = torch.tanh(reference.apply(layers[-1], hidden))
    return -torch.distributions.Normal(mean, 0.2).log_prob(action).sum(dim=-1).mean()


def slow_outer_losses(
    module: MetaBehaviourCloning, inner: dict[str, Tensor], outer: dict[str, Tensor], steps: int
) -> list[Tensor]:
    kind = module.policy.kind
    sizes = module.policy_log_step_sizes.exp()
    losses = []
    for task in range(TASKS):
        layers = [reference.own_tensors(layer, kind) for layer in module.policy]
        for _ in range(steps):
            loss = imitation(layers, inner["observation"][task], inner["action"][task])
            layers = reference.inner_step(layers, loss, sizes)
        losses.append(imitation(layers, outer["observation"][task], outer["action"][task]))
    return losses


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layer", ["weight_transform", "bias_transform", "plain"])
def test_outer_gradient_equals_the_slow_reference(layer: str, steps: int) -> None:
    module = make(layer=layer, num_inner_steps=steps)
    module.policy_log_step_sizes.data += torch.rand_like(module.policy_log_step_sizes)
    inner, outer = random_batch(), random_batch()
    weight = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    parameters = module.meta_parameters()
    gradient, metrics = module.outer_gradient(parameters, inner, outer, weight)
    losses = slow_outer_losses(module, inner, outer, steps)
    total = (weight * torch.stack(losses)).sum()
    torch.testing.assert_close(metrics["policy_loss"], total.detach())
    before = torch.stack(slow_outer_losses(module, inner, outer, 0))
    torch.testing.assert_close(metrics["policy_loss_before"], (weight * before).sum().detach())
    leaves = pytree.tree_leaves(parameters)
    expected = torch.autograd.grad(total, leaves, allow_unused=True)
    for leaf, found, other in zip(leaves, pytree.tree_leaves(gradient), expected, strict=True):
        assert other is not None or not leaf.numel()
        if other is not None:
            torch.testing.assert_close(found, other, rtol=1e-8, atol=1e-12)
    assert {id(leaf) for leaf in leaves} == {id(parameter) for parameter in module.parameters()}


def test_adaptation_imitates_the_context_and_needs_no_returns() -> None:
    torch.manual_seed(3)
    module = make(inner_policy_step=0.003).float()
    context = {name: value[0].float() for name, value in random_batch().items()}
    context["action"] = torch.full_like(context["action"], 0.5)
    errors = [
        (module.adapt(context, steps)(context["observation"]) - 0.5).square().mean().item()
        for steps in (0, 1, 10)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_held_out_losses_are_those_of_the_adapted_policies() -> None:
    module = make()
    parts = [TensorDict(random_batch(), batch_size=(TASKS, ROWS)) for _ in range(2)]
    losses = module.held_out_losses(*parts)
    policies = module.adapt_tasks(parts[0], 1)
    error = (policies(parts[1]["observation"]) - parts[1]["action"]).square().sum(dim=-1)
    constant = 2 * torch.tensor(0.2 * (2 * torch.pi) ** 0.5).log()
    expected = 0.5 * error.mean() / 0.2**2 + constant
    torch.testing.assert_close(losses["policy_loss"].float(), expected.float())


@pytest.mark.parametrize("missing", ["observation", "action"])
def test_context_without_what_it_imitates_is_refused(missing: str, tmp_path: Path) -> None:
    context = {name: value[0].float() for name, value in random_batch().items() if name != missing}
    with pytest.raises(ValueError, match=f"needs the fields observation, action; {missing} is"):
        make().float().adapt(context)
