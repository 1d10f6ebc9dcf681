"""Networks whose layers are generated from latent codes (MACAW, section 4.3 and Appendix B).

A *weight-transform* layer keeps a latent code z, a matrix M and a vector c and generates all
weights and biases of one linear layer, theta = M z + c. A network is a list of such layers; what
runs on data are functions of the generated ``theta``, one row per task, so that all tasks are one
batched matrix product. Shapes: T tasks, B transitions, Z latent size, D = in * out + out numbers of
one generated layer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ProbedMatrix:
    """A matrix M whose products carry probes, in place of being differentiated itself.

    See ``offline_meta_rl.meta_gradient``. Products are asked for in a fixed order: M v first, then
    M^T g and M v in turn.

    Args:
        matrix: M, [D, Z], a constant.
        probes: zeros of the products' shapes.
    """

    def __init__(self, matrix: Tensor, probes: list[Tensor]) -> None:
        self.matrix, self.probes = matrix, probes
        self.factors: list[Tensor] = []

    def multiply(self, product: Tensor, factor: Tensor) -> Tensor:
        """Add the next probe to a product and keep its other factor."""
        self.factors.append(factor)
        return product + self.probes[len(self.factors) - 1]


class LayerParameters(NamedTuple):
    """Meta-parameters of one layer: latent z [Z], matrix M [D, Z], vector c [D]."""

    latent: Tensor
    matrix: Tensor | ProbedMatrix
    vector: Tensor


def times(matrix: Tensor | ProbedMatrix, latent: Tensor) -> Tensor:
    """Return M v for each row of ``latent`` [n, Z], as [n, D]."""
    if isinstance(matrix, ProbedMatrix):
        return matrix.multiply(latent @ matrix.matrix.T, latent)
    return latent @ matrix.T


def transposed_times(matrix: Tensor | ProbedMatrix, gradient: Tensor) -> Tensor:
    """Return M^T g for each row of ``gradient`` [n, D], as [n, Z]."""
    if isinstance(matrix, ProbedMatrix):
        return matrix.multiply(gradient @ matrix.matrix, gradient)
    return gradient @ matrix


class WeightTransformLinear(nn.Module):
    """A linear layer whose weights and biases are theta = M z + c.

    The first in * out numbers of theta are the weight [in, out], row by row, the rest the bias.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        latent_size: Z; 0 makes it an ordinary linear layer (theta = c), for the ablation.
    """

    def __init__(self, in_features: int, out_features: int, latent_size: int = 100) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        size = in_features * out_features + out_features
        self.latent = nn.Parameter(torch.empty(latent_size))
        self.matrix = nn.Parameter(torch.empty(size, latent_size))
        self.vector = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the authors do: z ~ N(0, 1 / out^2), M and c ~ U(-Z^-1/2, Z^-1/2)."""
        latent_size = self.latent.numel()
        nn.init.normal_(self.latent, std=1.0 / self.out_features) if latent_size else None
        bound = 1.0 / math.sqrt(latent_size or self.in_features)
        nn.init.uniform_(self.matrix, -bound, bound) if latent_size else None
        nn.init.uniform_(self.vector, -bound, bound)

    def layer(self) -> LayerParameters:
        """Return the meta-parameters as a tuple."""
        return LayerParameters(self.latent, self.matrix, self.vector)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the generated layer, [..., in] -> [..., out]."""
        weight, bias = split_theta(generate(self.layer()), self.in_features)
        return inputs @ weight[0] + bias[0]


class WeightTransformStack(nn.ModuleList):
    """Weight-transform layers of given (in, out) sizes; functions below say how they connect."""

    def __init__(self, sizes: Sequence[tuple[int, int]], latent_size: int) -> None:
        super().__init__(WeightTransformLinear(i, o, latent_size) for i, o in sizes)

    def layers(self) -> list[LayerParameters]:
        """Return the meta-parameters of every layer."""
        return [module.layer() for module in self]  # type: ignore[operator]


def generate(layer: LayerParameters) -> Tensor:
    """Return theta = M z + c, [1, D]."""
    return times(layer.matrix, layer.latent[None]) + layer.vector


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
    """Return V(s) in units of return: observation [T, B, O] -> [T, B]."""
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


def num_action_layers(depth: int) -> int:
    """Return how many of ``policy_sizes`` the action needs; the rest are the advantage head."""
    return depth + 1


def policy_forward(thetas: Sequence[Tensor], observation: Tensor) -> Tensor:
    """Return the mean action in (-1, 1): body and action head [T, D], [T, B, O] -> [T, B, A]."""
    return torch.tanh(mlp(observation, thetas))


def two_headed_forward(
    thetas: Sequence[Tensor], observation: Tensor, action: Tensor, *, rectify_action: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean action and the predicted advantage of the policy.

    Args:
        thetas: all layers of ``policy_sizes``, [T, D] each.
        observation: [T, B, O].
        action: [T, B, A], seen by the advantage head only.
        rectify_action: apply ReLU to the action too before the advantage head, so that negative
            components vanish, as in the authors' code.

    Returns:
        mean action [T, B, A] in (-1, 1), advantage [T, B] in units of return.
    """
    body, (action_head, *advantage_head) = thetas[:-3], thetas[-3:]
    features = relu(mlp(observation, body))
    mean = torch.tanh(linear(features, action_head))
    head_action = relu(action) if rectify_action else action
    advantage = mlp(torch.cat([features, head_action], dim=-1), advantage_head)
    return mean, advantage.squeeze(-1)


class BatchedPolicy(nn.Module):
    """The policies of T tasks with generated weights: what adaptation returns.

    Args:
        weights: per layer [T, in, out].
        biases: per layer [T, out].
        sigma: standard deviation of the action for stochastic use.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], *, sigma: float
    ) -> None:
        super().__init__()
        self.num_layers, self.sigma = len(weights), sigma
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight_{index}", weight.detach().clone())
            self.register_buffer(f"bias_{index}", bias.detach().clone())

    @classmethod
    def from_thetas(
        cls, thetas: Sequence[Tensor], observation_size: int, *, sigma: float
    ) -> "BatchedPolicy":
        """Build from the generated layers [T, D] of body and action head."""
        weights, biases, size = [], [], observation_size
        for theta in thetas:
            weight, bias = split_theta(theta, size)
            weights.append(weight)
            biases.append(bias)
            size = weight.shape[-1]
        return cls(weights, biases, sigma=sigma)

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}")

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self._layer(0)[0])

    def forward(self, observation: Tensor) -> Tensor:
        """Return mean actions: [T, E, O] -> [T, E, A] in (-1, 1)."""
        for index in range(self.num_layers):
            weight, bias = self._layer(index)
            observation = torch.baddbmm(bias[:, None], observation, weight)
            observation = observation.relu() if index < self.num_layers - 1 else observation.tanh()
        return observation

    def task(self, index: int) -> nn.Sequential:
        """Return the policy of one task as ordinary Linear, ReLU and Tanh layers."""
        modules: list[nn.Module] = []
        for layer in range(self.num_layers):
            weight, bias = (tensor[index] for tensor in self._layer(layer))
            linear_layer = nn.Linear(*weight.shape)
            linear_layer.load_state_dict({"weight": weight.T, "bias": bias})
            modules += [linear_layer, nn.ReLU()]
        return nn.Sequential(*modules[:-1], nn.Tanh())
