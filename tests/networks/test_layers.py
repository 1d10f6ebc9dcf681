"""Plain and bias-transform layers: what they compute, how many parameters they have, one step."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.inner_loop import adapt
from offline_meta_rl.networks.layers import (
    BiasTransformLinear,
    GeneratedNetwork,
    LayerKind,
    LayerStack,
    count_parameters,
    matching_width,
)

CHEETAH = partial(networks.policy_sizes, 20, 6, depth=3, head_width=32)
KINDS: list[LayerKind] = ["weight_transform", "bias_transform", "plain"]


def numbers(stack: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in stack.parameters())


def test_bias_transform_adds_a_transformed_latent_to_the_bias() -> None:
    layer = BiasTransformLinear(3, 2, latent_size=4)
    inputs = torch.randn(5, 3)
    weight, bias = layer.vector[:6].view(3, 2), layer.vector[6:]
    expected = inputs @ weight + bias + layer.matrix @ layer.latent
    torch.testing.assert_close(layer(inputs), expected)


def test_plain_layer_is_an_ordinary_one() -> None:
    layer = BiasTransformLinear(3, 2, latent_size=0)
    inputs = torch.randn(5, 3)
    expected = F.linear(inputs, layer.vector[:6].view(3, 2).T, layer.vector[6:])
    torch.testing.assert_close(layer(inputs), expected)
    assert layer.vector.abs().max() <= 3**-0.5
    assert numbers(layer) == 3 * 2 + 2


def test_initial_numbers_of_the_bias_transform_have_the_authors_spread() -> None:
    layer = BiasTransformLinear(50, 100, latent_size=100)
    assert layer.latent.std().item() == pytest.approx(0.01, rel=0.25)
    assert layer.matrix.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert layer.vector.abs().max().item() == pytest.approx(50**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("observation_size", "action_size", "policy", "value"),
    [(20, 6, 57_763, 52_703), (27, 8, 58_759, 53_403), (17, 6, 57_463, 52_403)],
    ids=["cheetah", "ant", "walker"],
)
def test_parameter_counts_of_the_bias_transform_are_the_authors(
    observation_size: int, action_size: int, policy: int, value: int
) -> None:
    sizes = networks.policy_sizes(observation_size, action_size, 100, 3, 32)
    assert numbers(LayerStack(sizes, 100, "bias_transform")) == policy
    sizes = networks.value_sizes(observation_size, 100, 3)
    assert numbers(LayerStack(sizes, 100, "bias_transform")) == value


@pytest.mark.parametrize("kind", KINDS)
def test_counted_parameters_are_there(kind: LayerKind) -> None:
    stack = LayerStack(CHEETAH(30), 7, kind)
    assert numbers(stack) == count_parameters(CHEETAH(30), 7, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [CHEETAH, partial(networks.value_sizes, 27, depth=3)])
def test_matched_layers_have_as_many_parameters_within_a_percent(
    kind: LayerKind, sizes: partial[list[tuple[int, int]]]
) -> None:
    wanted = count_parameters(sizes(100), 100, "weight_transform")
    found = numbers(GeneratedNetwork(layer=kind, match_parameters=True).stack(sizes))
    assert found == pytest.approx(wanted, rel=0.01)
    if kind == "plain" and sizes is CHEETAH:
        assert matching_width(sizes, 100, 100, kind) == 1139
    narrow = GeneratedNetwork(layer=kind).stack(sizes)
    assert (numbers(narrow) == wanted) is (kind == "weight_transform")


def test_latent_size_0_makes_plain_layers() -> None:
    stack = LayerStack([(3, 4), (4, 1)], 0)
    assert stack.kind == "plain"
    assert [tuple(stack.log_step_sizes(0.1).shape), numbers(stack)] == [(2, 2), 16 + 5]


def test_one_step_on_a_bias_transform_is_gradient_descent_on_its_four_tensors() -> None:
    """One layer, one task, with torch's own autograd on weight, bias, z and M."""
    layer = BiasTransformLinear(3, 2, latent_size=2).double()
    inputs, targets = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    sizes = torch.tensor([[0.3, 0.2, 0.1, 0.05]], dtype=torch.float64)

    def loss(thetas: list[Tensor], step: int) -> Tensor:
        return (networks.linear(inputs[None], thetas[0]) - targets).square().mean()

    found = adapt([layer.layer()], sizes, loss, num_tasks=1, num_steps=1)[1][0]
    own = [layer.latent, layer.matrix, layer.vector[:6].view(3, 2), layer.vector[6:]]
    own = [tensor.detach().clone().requires_grad_() for tensor in own]
    latent, matrix, weight, bias = own
    error = (inputs @ weight + bias + matrix @ latent - targets).square().mean()
    gradients = torch.autograd.grad(error, own)
    latent, matrix, weight, bias = (
        tensor - size * gradient
        for tensor, size, gradient in zip(own, sizes[0], gradients, strict=True)
    )
    expected = torch.cat([weight.reshape(-1), bias + matrix @ latent])
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14)
