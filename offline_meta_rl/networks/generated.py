"""Networks whose layers are generated from latent codes (MACAW, section 4.3 and Appendix B).

A *weight-transform* layer keeps a latent code z, a matrix M and a vector c and generates all
weights and biases of one linear layer, theta = M z + c (``layer_kinds`` has the modules and the
other kinds of layers). A network is a list of such layers; what runs on data are functions of the
generated ``theta``, one row per task, so that all tasks are one batched matrix product. Shapes: T
tasks, B transitions, Z latent size, D = in * out + out numbers of one generated layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ProbedMatrix:
    """A matrix M whose products carry probes, in place of being differentiated itself.

    See ``networks/meta_gradient.py``. Products are asked for in a fixed order: M v first, then
    M^T g and M v in turn.

    Args:
        matrix: M, [D, Z]; a constant of the differentiation.
        probes: Zeros of the products' shapes, one for each product, in order.
    """

    def __init__(self, matrix: Tensor, probes: list[Tensor]) -> None:
        self.matrix, self.probes = matrix, probes
        self.factors: list[Tensor] = []

    @property
    def shape(self) -> torch.Size:
        """Shape of the matrix, [D, Z]."""
        return self.matrix.shape

    def multiply(self, product: Tensor, factor: Tensor) -> Tensor:
        """Add the next probe to a product and keep its other factor.

        Args:
            product: M v, [N, D], or M^T g, [N, Z].
            factor: v, [N, Z], or g, [N, D].
        """
        self.factors.append(factor)
        return product + self.probes[len(self.factors) - 1]


class LayerParameters(NamedTuple):
    """Meta-parameters of one layer: latent z [Z], matrix M [D, Z], vector c [D].

    M may have fewer rows than D, the number of biases: then M z adds to the biases alone. With Z of
    0 the layer is an ordinary one, theta = c. See ``offline_meta_rl.networks.layers``.
    """

    latent: Tensor
    matrix: Tensor | ProbedMatrix
    vector: Tensor


def times(matrix: Tensor | ProbedMatrix, latent: Tensor) -> Tensor:
    """Return M v for each row v of ``latent``, [N, Z] -> [N, D]."""
    if isinstance(matrix, ProbedMatrix):
        return matrix.multiply(latent @ matrix.matrix.T, latent)
    return latent @ matrix.T


def transposed_times(matrix: Tensor | ProbedMatrix, gradient: Tensor) -> Tensor:
    """Return M^T g for each row g of ``gradient``, [N, D] -> [N, Z]."""
    if isinstance(matrix, ProbedMatrix):
        return matrix.multiply(gradient @ matrix.matrix, gradient)
    return gradient @ matrix


def add_product(theta: Tensor, product: Tensor) -> Tensor:
    """Add a product with M, [N, D] or shorter, to the last of theta's numbers, [N, D]."""
    # theta ends with the biases. An M with fewer rows reaches these alone.
    missing = theta.shape[-1] - product.shape[-1]
    return (nn.functional.pad(product, (missing, 0)) if missing else product) + theta


def generate(layer: LayerParameters) -> Tensor:
    """Return theta = M z + c, [1, D]."""
    # An ordinary layer (Z = 0) has no product with M.
    if not layer.latent.numel():
        return layer.vector[None]
    return add_product(layer.vector[None], times(layer.matrix, layer.latent[None]))


def split_theta(theta: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """Split theta [T, D] into weights [T, in, out] and biases [T, out]."""
    out_features = theta.shape[-1] // (in_features + 1)
    weight, bias = theta.split([in_features * out_features, out_features], dim=-1)
    return weight.unflatten(-1, (in_features, out_features)), bias


def linear(inputs: Tensor, theta: Tensor) -> Tensor:
    """Apply every task's own layer: inputs [T, B, in], theta [T, D] -> [T, B, out]."""
    weight, bias = split_theta(theta, inputs.shape[-1])
    return torch.baddbmm(bias[:, None], inputs, weight)


def relu(inputs: Tensor) -> Tensor:
    """Return max(x, 0) as x times a float mask.

    Its derivatives to any order are products with that mask; ``torch.relu``'s need a boolean one,
    which compiled code stores an element at a time (measured: a third of the whole outer step).
    """
    # sign is -1, 0 or 1, so the clamped mask is 1 exactly where the input is positive.
    return inputs * torch.sign(inputs.detach()).clamp_min(0.0)


def mlp(inputs: Tensor, thetas: Sequence[Tensor]) -> Tensor:
    """Apply layers with ReLU in between: inputs [T, B, in] -> [T, B, out] before any activation."""
    for theta in thetas[:-1]:
        inputs = relu(linear(inputs, theta))
    return linear(inputs, thetas[-1])


def value_sizes(observation_size: int, width: int, depth: int) -> list[tuple[int, int]]:
    """Return the layer sizes of the value function: ``depth`` hidden layers, one output."""
    return [(observation_size, width), *[(width, width)] * (depth - 1), (width, 1)]


def value_forward(thetas: Sequence[Tensor], observation: Tensor) -> Tensor:
    """Return V(s) in units of return, [T, B].

    Args:
        thetas: Generated layers of ``value_sizes``, [T, D] each.
        observation: [T, B, O].
    """
    return mlp(observation, thetas).squeeze(-1)


def policy_sizes(
    observation_size: int, action_size: int, width: int, depth: int, head_width: int
) -> list[tuple[int, int]]:
    """Return the layer sizes of the two-headed policy (MACAW, Figure 2).

    In order: ``depth`` body layers, the action head, then the two layers of the advantage head,
    which sees the body's output and the action.
    """
    body = [(observation_size, width), *[(width, width)] * (depth - 1)]
    head = [(width + action_size, head_width), (head_width, 1)]
    return [*body, (width, action_size), *head]


def policy_forward(thetas: Sequence[Tensor], observation: Tensor) -> Tensor:
    """Return the policy's mean action, [T, B, A] in (-1, 1).

    Args:
        thetas: Generated layers of body and action head, [T, D] each.
        observation: [T, B, O].
    """
    return torch.tanh(mlp(observation, thetas))


def two_headed_forward(
    thetas: Sequence[Tensor], observation: Tensor, action: Tensor, *, rectify_action: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean action and the predicted advantage of the policy.

    Args:
        thetas: Generated layers, all of ``policy_sizes``, [T, D] each.
        observation: [T, B, O].
        action: [T, B, A], seen by the advantage head only.
        rectify_action: Apply ReLU to the action too before the advantage head, so that negative
            components vanish, as in the authors' code.

    Returns:
        mean action [T, B, A] in (-1, 1), advantage [T, B] in units of return.
    """
    # Figure 2: both heads see the body's output; the advantage head sees the action too.
    body, (action_head, *advantage_head) = thetas[:-3], thetas[-3:]
    features = relu(mlp(observation, body))
    mean = torch.tanh(linear(features, action_head))
    head_action = relu(action) if rectify_action else action
    advantage = mlp(torch.cat([features, head_action], dim=-1), advantage_head)
    return mean, advantage.squeeze(-1)
