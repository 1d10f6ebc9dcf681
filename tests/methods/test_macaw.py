"""MACAW against a slow outer step written from the paper, its variants, and its two theorems."""

from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.losses import awr
from offline_meta_rl.losses import macaw as macaw_losses
from offline_meta_rl.methods.macaw import Macaw
from offline_meta_rl.networks import generated as networks
from tests.helpers import build, make_dataset, task_buffers
from tests.references import macaw as reference

TASKS, ROWS = 3, 16


def make(**options: object) -> Macaw:
    sizes = {"width": 8, "head_width": 5, "latent_size": 6}
    steps = {"inner_policy_step": 0.03, "inner_value_step": 0.03}
    return build(Macaw, observation_size=4, action_size=2, **sizes, **steps, **options).double()  # type: ignore[arg-type]


def batches() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inner, outer = (
        reference.random_batch(TASKS, ROWS, 4, 2, dtype=torch.float64) for _ in range(2)
    )
    for batch in (inner, outer):
        batch["terminal_observation"] = torch.randn(TASKS, ROWS, 4, dtype=torch.float64)
        batch["terminal_discount"] = torch.rand(TASKS, ROWS, dtype=torch.float64)
    return inner, outer


def gradient_by_name(module: Macaw, inner: dict, outer: dict) -> dict[str, Tensor]:  # type: ignore[type-arg]
    parameters = module.meta_parameters()
    weight = torch.full((TASKS,), 1 / TASKS, dtype=torch.float64)
    gradient, _ = module.outer_gradient(parameters, inner, outer, weight)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    leaves = zip(pytree.tree_leaves(parameters), pytree.tree_leaves(gradient), strict=True)
    return {names[id(parameter)]: found for parameter, found in leaves}


@pytest.mark.parametrize("steps", [1, 3])
def test_outer_gradient_equals_the_slow_reference(steps: int) -> None:
    module, (inner, outer) = make(num_inner_steps=steps), batches()
    found = gradient_by_name(module, inner, outer)
    expected = reference.meta_gradient(module, inner, outer, steps)
    assert set(found) == set(expected) == {name for name, _ in module.named_parameters()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_losses_equal_the_slow_reference() -> None:
    module, (inner, outer) = make(), batches()
    weight = torch.full((TASKS,), 1 / TASKS, dtype=torch.float64)
    _, metrics = module.outer_gradient(module.meta_parameters(), inner, outer, weight)
    losses = [
        reference.outer_loss(
            [tuple(layer) for layer in module.policy.layers()],
            [tuple(layer) for layer in module.value.layers()],
            module.policy_log_step_sizes.exp(),
            module.value_log_step_sizes.exp(),
            module.log_advantage_coefficient.exp(),
            {key: value[task] for key, value in inner.items()},
            {key: value[task] for key, value in outer.items()},
        )
        for task in range(TASKS)
    ]
    value, policy = (torch.stack(column).mean() for column in zip(*losses, strict=True))
    torch.testing.assert_close(metrics["value_loss"], value.detach())
    torch.testing.assert_close(metrics["policy_loss"], policy.detach())


def test_every_part_of_the_gradient_is_there_and_the_head_steps_are_not() -> None:
    """With one inner step the head's step sizes never move; its weights and lambda do."""
    module, (inner, outer) = make(), batches()
    found = gradient_by_name(module, inner, outer)
    step_gradient = found.pop("policy_log_step_sizes")
    assert (step_gradient[: module.settings.network.num_action_layers] != 0).all()
    assert (step_gradient[module.settings.network.num_action_layers :] == 0).all()
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name


def test_policy_loss_gives_no_gradient_to_the_value_function() -> None:
    """Other outer actions change the policy's gradient and nothing of the value function's."""
    module, (inner, outer) = make(), batches()
    first = gradient_by_name(module, inner, outer)
    second = gradient_by_name(module, inner, {**outer, "action": -outer["action"]})
    for name in first:
        assert torch.equal(first[name], second[name]) is name.startswith("value"), name


def authors_losses(module: Macaw, inner: dict, outer: dict) -> tuple[Tensor, Tensor]:  # type: ignore[type-arg]
    """The authors' outer losses of one task, written out with one task's own tensors."""
    step = torch.nn.functional.softplus
    phi = [tuple(layer) for layer in module.value.layers()]
    theta = [tuple(layer) for layer in module.policy.layers()]

    def bootstrapped(layers: list, batch: dict) -> Tensor:  # type: ignore[type-arg]
        terminal = reference.value(layers, batch["terminal_observation"])
        return batch["return_to_go"] + batch["terminal_discount"] * terminal

    def head(hidden: Tensor, action: Tensor) -> Tensor:
        inputs = torch.relu(torch.cat([hidden, action], dim=-1))
        return reference.apply(theta[-1], torch.relu(reference.apply(theta[-2], inputs)))[:, 0]

    error = torch.square(reference.value(phi, inner["observation"]) - inner["return_to_go"]).mean()
    adapted = reference.inner_step(phi, error, step(module.value_log_step_sizes))
    target = [
        tuple(0.9 * old + 0.1 * new for old, new in zip(olds, news, strict=True))
        for olds, news in zip(phi, adapted, strict=True)
    ]
    estimate = reference.value(adapted, outer["observation"])
    value_loss = torch.square(estimate - bootstrapped(target, outer).detach()).mean()

    returns = bootstrapped(adapted, inner)
    advantage = (returns - reference.value(adapted, inner["observation"])).detach()
    hidden = inner["observation"]
    for layer in theta[:-3]:
        hidden = reference.apply(layer, torch.relu(hidden) if layer is not theta[0] else hidden)
    mean = torch.tanh(reference.apply(theta[-3], torch.relu(hidden)))
    loss = reference.awr(mean, inner["action"], reference.regression_weight(advantage))
    error = torch.square(head(hidden, inner["action"]) - advantage).mean()
    loss = loss + step(module.log_advantage_coefficient) * error
    theta_adapted = reference.inner_step(theta, loss, step(module.policy_log_step_sizes))
    advantage = (bootstrapped(adapted, outer) - estimate).detach()
    mean, _ = reference.policy(theta_adapted, outer["observation"], None)
    weight = reference.regression_weight(advantage)
    return value_loss, reference.awr(mean, outer["action"], weight)


def test_authors_variant_equals_its_slow_reference() -> None:
    module, (inner, outer) = (
        make(
            step_size_map="softplus",
            bootstrap_advantage=True,
            bootstrap_outer_value=True,
            rectify_head_action=True,
            split_inner_batch=True,
        ),
        batches(),
    )
    found = gradient_by_name(module, inner, outer)
    total = sum(
        sum(authors_losses(module, *({k: v[task] for k, v in b.items()} for b in (inner, outer))))
        for task in range(TASKS)
    )
    names, tensors = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(total / TASKS, tensors, allow_unused=True)
    for name, gradient in zip(names, expected, strict=True):
        gradient = torch.zeros_like(found[name]) if gradient is None else gradient
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_split_inner_batch_gives_each_step_its_own_part() -> None:
    module, (inner, _) = make(num_inner_steps=2, split_inner_batch=True), batches()
    parts = macaw_losses._step_batches(inner, 2, module.settings)
    for name, value in inner.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts], dim=1), value)


def test_latent_only_adaptation_leaves_matrices_out() -> None:
    module, (inner, outer) = make(adapt_matrices=False), batches()
    found = gradient_by_name(module, inner, outer)
    assert (found["value_log_step_sizes"][:, 0] != 0).all()
    assert (found["value_log_step_sizes"][:, 1:] == 0).all()


def test_bootstrapped_outer_value_refuses_several_inner_steps() -> None:
    with pytest.raises(ValueError, match="defined for one inner step, found inner\\.num_steps=3"):
        make(bootstrap_outer_value=True, num_inner_steps=3)


def transition_gradients(
    thetas: list[Tensor], state: Tensor, action: Tensor, advantage: Tensor, coefficient: float
) -> list[Tensor]:
    """Gradient of the inner loss of one transition in every generated layer [D]."""
    leaves = [theta.clone().requires_grad_() for theta in thetas]
    mean, predicted = networks.two_headed_forward(
        leaves, state[None, None], action[None, None], rectify_action=False
    )
    weight = advantage.exp()[None, None]
    loss = awr.regression_loss(mean, action[None, None], weight, 0.2).sum()
    if coefficient:
        error = awr.advantage_loss(predicted, advantage[None, None]).sum()
        loss = loss + coefficient * error
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf[0]) if g is None else g[0]
        for leaf, g in zip(leaves, gradients, strict=True)
    ]


def random_policy() -> list[Tensor]:
    sizes = networks.policy_sizes(4, 2, 8, depth=3, head_width=6)
    return [0.7 * torch.randn(1, i * o + o, dtype=torch.float64) for i, o in sizes]


def test_theorem_1_awr_gradients_are_ambiguous_and_enriched_ones_are_not() -> None:
    """Two (action, advantage) pairs with one AWR gradient.

    Assumptions: a Gaussian policy of fixed sigma, one state, unstandardised weights exp(A). The
    gradient depends on the pair only through exp(A) (a - mean).
    """
    thetas, state = random_policy(), torch.randn(4, dtype=torch.float64)
    mean = networks.policy_forward(thetas[:4], state[None, None])[0, 0]
    first, second = torch.tensor([0.5, -0.2], dtype=torch.float64)
    action = mean + torch.tensor([0.1, -0.3], dtype=torch.float64)
    other = mean + (action - mean) * (first - second).exp()
    assert not torch.allclose(action, other)

    def difference(coefficient: float) -> float:
        pairs = zip(
            transition_gradients(thetas, state, action, first, coefficient),
            transition_gradients(thetas, state, other, second, coefficient),
            strict=True,
        )
        return max((a - b).abs().max().item() for a, b in pairs)

    assert difference(coefficient=0.0) < 1e-12
    assert difference(coefficient=0.01) > 1e-3


def test_theorem_2_one_enriched_gradient_holds_state_action_and_advantage() -> None:
    """Read a transition back from its gradient and the parameters alone.

    Assumptions: at least one active unit with a gradient in the first layer and in the advantage
    head's first layer, and an advantage that the head does not predict exactly.
    """
    coefficient = 0.01
    thetas = random_policy()
    state = torch.randn(4, dtype=torch.float64)
    action = torch.tensor([0.4, -0.7], dtype=torch.float64)
    advantage = torch.tensor(1.3, dtype=torch.float64)
    gradients = transition_gradients(thetas, state, action, advantage, coefficient)

    def inputs_of(layer: int, in_features: int) -> Tensor:
        """dL/dW = x dL/db^T, so x is a column of dL/dW over the same entry of dL/db."""
        weight, bias = (g[0] for g in networks.split_theta(gradients[layer][None], in_features))
        unit = bias.abs().argmax()
        return weight[:, unit] / bias[unit]

    found_state = inputs_of(0, 4)
    found_action = inputs_of(4, 8 + 2)[8:]
    torch.testing.assert_close(found_state, state)
    torch.testing.assert_close(found_action, action)
    _, predicted = networks.two_headed_forward(
        thetas, found_state[None, None], found_action[None, None], rectify_action=False
    )
    output_gradient = gradients[5][-1]  # of the head's last bias: 2 lambda (A_theta - A)
    found_advantage = predicted[0, 0] - output_gradient / (2 * coefficient)
    torch.testing.assert_close(found_advantage, advantage)


def test_learning_rates_fall_linearly_to_their_share_at_max_steps(tmp_path: Path) -> None:
    """The base class steps the schedule; Lightning does not under manual optimization."""
    path = make_dataset(tmp_path / "data", num_tasks=7)
    data = task_buffers(path, inner_size=8, outer_size=8)
    module = make(final_learning_rate=0.1).float()
    trainer = lightning.Trainer(
        max_steps=10,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.1 * rate for rate in (1e-4, 1e-5, 1e-3)])
