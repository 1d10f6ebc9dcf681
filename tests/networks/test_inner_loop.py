"""The closed form of the inner loop against plain autograd through every task's own weights."""

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.generated import LayerParameters
from offline_meta_rl.networks.inner_loop import adapt
from offline_meta_rl.networks.layers import LayerStack
from offline_meta_rl.networks.meta_gradient import meta_gradient
from tests.references import macaw as reference

TASKS, ROWS = 3, 7
SIZES = [(4, 6), (6, 5), (5, 1)]


def make_layers() -> list[LayerParameters]:
    stack = LayerStack(SIZES, latent_size=5).double()
    return [LayerParameters(*(tensor.detach() for tensor in layer)) for layer in stack.layers()]


def squared_error(thetas: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return torch.square(networks.value_forward(thetas, inputs) - targets).mean(dim=-1).sum()


def data() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(TASKS, ROWS, 4, dtype=torch.float64)
    return inputs, torch.randn(TASKS, ROWS, dtype=torch.float64)


def reference_adaptation(
    layers: list[LayerParameters], sizes: Tensor, inputs: Tensor, targets: Tensor, steps: int
) -> list[list[Tensor]]:
    """The layers of every task after the steps, each task by itself."""
    tasks = []
    for task in range(TASKS):
        own = [tuple(layer) for layer in layers]
        for _ in range(steps):
            error = torch.square(reference.value(own, inputs[task]) - targets[task]).mean()
            own = reference.inner_step(own, error, sizes)
        tasks.append([matrix @ latent + vector for latent, matrix, vector in own])
    return [torch.stack(layer) for layer in zip(*tasks, strict=True)]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_adapted_layers_equal_gradient_descent_on_own_weights(steps: int) -> None:
    layers, (inputs, targets) = make_layers(), data()
    sizes = 0.02 + 0.02 * torch.rand(len(layers), 3, dtype=torch.float64)
    for tensor in pytree.tree_leaves(layers):
        tensor.requires_grad_()
    found = adapt(
        layers,
        sizes,
        lambda thetas, _: squared_error(thetas, inputs, targets),
        num_tasks=TASKS,
        num_steps=steps,
    )
    expected = reference_adaptation(layers, sizes, inputs, targets, steps)
    assert len(found) == steps + 1
    for theta, other in zip(found[-1], expected, strict=True):
        torch.testing.assert_close(theta.expand_as(other), other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradient_equals_autograd_through_own_weights(steps: int) -> None:
    layers, (inputs, targets), (queries, answers) = make_layers(), data(), data()
    log_sizes = torch.full((len(layers), 3), -3.0, dtype=torch.float64)
    parameters = (layers, log_sizes)

    def loss(candidate: tuple[list[LayerParameters], Tensor]) -> tuple[Tensor, Tensor]:
        adapted = adapt(
            candidate[0],
            candidate[1].exp(),
            lambda thetas, _: squared_error(thetas, inputs, targets),
            num_tasks=TASKS,
            num_steps=steps,
        )
        return squared_error(adapted[-1], queries, answers), torch.zeros(())

    found, _ = meta_gradient(loss, parameters, TASKS, steps)
    leaves = pytree.tree_leaves(parameters)
    for leaf in leaves:
        leaf.requires_grad_()
    thetas = reference_adaptation(layers, log_sizes.exp(), inputs, targets, steps)
    expected = torch.autograd.grad(squared_error(thetas, queries, answers), leaves)
    assert len(expected) == 3 * len(layers) + 1
    for gradient, other in zip(pytree.tree_leaves(found), expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


def test_first_order_ignores_second_derivatives_only() -> None:
    """The first-order gradient is that of the loss at the adapted layers, moved by constants."""
    layers, (inputs, targets), (queries, answers) = make_layers(), data(), data()
    sizes = torch.full((len(layers), 3), 0.05, dtype=torch.float64)
    leaves = [tensor for layer in layers for tensor in layer]
    for leaf in leaves:
        leaf.requires_grad_()
    found = adapt(
        layers,
        sizes,
        lambda thetas, _: squared_error(thetas, inputs, targets),
        num_tasks=TASKS,
        num_steps=2,
        first_order=True,
    )
    gradients = torch.autograd.grad(squared_error(found[-1], queries, answers), leaves)
    expected = [torch.zeros_like(leaf) for leaf in leaves]
    for task in range(TASKS):
        own = [tuple(layer) for layer in layers]
        for _ in range(2):
            error = torch.square(reference.value(own, inputs[task]) - targets[task]).mean()
            own = reference.inner_step(own, error, sizes, create_graph=False)
        own = [tuple(t.detach().requires_grad_() for t in layer) for layer in own]
        error = torch.square(reference.value(own, queries[task]) - answers[task]).mean()
        flat = [tensor for layer in own for tensor in layer]
        for total, gradient in zip(expected, torch.autograd.grad(error, flat), strict=True):
            total += gradient
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


def one_step_weight_change(latent_size: int, width: int) -> Tensor:
    """Change of a hidden weight [width, width] after one step on one transition."""
    torch.manual_seed(1)
    stack = LayerStack([(4, width), (width, width), (width, 1)], latent_size).double()
    inputs, targets = torch.randn(1, 1, 4).double(), torch.randn(1, 1).double()
    thetas = adapt(
        stack.layers(),
        torch.full((3, 3 if latent_size else 2), 0.01).double(),
        lambda candidate, _: squared_error(candidate, inputs, targets),
        num_tasks=1,
        num_steps=1,
    )
    before, after = (networks.split_theta(theta[1], width)[0][0] for theta in thetas)
    return (after - before).detach()


def test_one_transition_changes_a_weight_by_rank_one_without_the_transform() -> None:
    change = one_step_weight_change(latent_size=0, width=20)
    assert torch.linalg.matrix_rank(change, rtol=1e-10) == 1


def test_one_transition_changes_a_weight_by_a_higher_rank_with_the_transform() -> None:
    """At most the latent's size where, as in the paper, layers are no wider than the latent."""
    change = one_step_weight_change(latent_size=20, width=20)
    assert 1 < torch.linalg.matrix_rank(change, rtol=1e-10) <= 20


def test_changes_through_the_latent_code_span_no_more_dimensions_than_it_has() -> None:
    """What bounds the update in general is a subspace of the latent's size, not the rank."""
    torch.manual_seed(2)
    stack = LayerStack(SIZES, 3).double()
    latent_only = torch.tensor([[0.1, 0.0, 0.0]] * 3).double()
    inputs = torch.randn(12, 1, 4).double()
    targets = torch.randn(12, 1).double()
    thetas = adapt(
        stack.layers(),
        latent_only,
        lambda candidate, _: squared_error(candidate, inputs, targets),
        num_tasks=12,
        num_steps=1,
    )
    changes = (thetas[1][1] - thetas[0][1]).detach()
    assert torch.linalg.matrix_rank(changes, rtol=1e-10) == 3
