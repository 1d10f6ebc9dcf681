"""Networks of many independent agents as one: parameters stacked over networks.

Every layer of N networks is one batched product, so that N small networks cost about as much as a
few large kernels, in place of N times as many small ones. Nothing is shared: the gradient of a sum
of losses, one for each network, is for each network the gradient of its own. Shapes: N networks,
B rows.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Layers = list[tuple[Tensor, Tensor]]
"""Weight [N, in, out] and bias [N, 1, out] of every layer."""


def stacked_mlp(layers: Layers, inputs: Tensor) -> Tensor:
    """Apply N networks with ReLU between their layers.

    Args:
        layers: Weight [N, in, out] and bias [N, 1, out] of every layer.
        inputs: Each network's own rows, [N, B, in].

    Returns:
        [N, B, out], before any activation.
    """
    for weight, bias in layers[:-1]:
        inputs = torch.relu(torch.baddbmm(bias, inputs, weight))
    weight, bias = layers[-1]
    return torch.baddbmm(bias, inputs, weight)


def conditioned_mlp(layers: Layers, inputs: Tensor, latent: Tensor) -> Tensor:
    """Apply N networks to rows that are each joined by their task's latent variable.

    The first layer's product with the latent variable is taken once for each task, not once for
    each of its rows.

    Args:
        layers: N networks of I + Z inputs and at least one hidden layer.
        inputs: [T, B, I].
        latent: [T, Z].

    Returns:
        [N, T, B, out].
    """
    (weight, bias), *rest = layers
    size = inputs.shape[-1]
    # W [x; z] = W_x x + W_z z, and all rows of a task share z.
    own = torch.matmul(latent, weight[:, size:]) + bias
    shared = torch.matmul(inputs.flatten(0, 1), weight[:, :size])
    hidden = shared.unflatten(1, inputs.shape[:2]) + own[:, :, None]
    return stacked_mlp(rest, torch.relu(hidden).flatten(1, 2)).unflatten(1, inputs.shape[:2])


def of_tasks(layers: Layers, observation_size: int, num_tasks: int, task: Tensor | None) -> Layers:
    """Return one network for each of T tasks, from a network whose input names the task.

    The one-hot code that ends the network's input becomes a part of the first bias, and what is
    left is a function of the observation.

    Args:
        layers: One network (N = 1) that takes observation and code, O + T numbers.
        observation_size: O.
        num_tasks: T.
        task: Index of each task, [T]; None for a code of zeros.

    Returns:
        Layers of T networks, views of the one network's but for the first bias.
    """
    (weight, bias), *rest = [
        (weight.expand(num_tasks, -1, -1), bias.expand(num_tasks, -1, -1))
        for weight, bias in layers
    ]
    if task is not None:
        # W times a one-hot code is one row of W [in, out]; a code of zeros adds nothing.
        bias = bias + layers[0][0][0, observation_size + task][:, None]
    return [(weight[:, :observation_size], bias), *rest]


@dataclass(frozen=True)
class HiddenLayers:
    """The hidden layers of a network.

    Attributes:
        width: Units of each.
        depth: How many.
    """

    width: int
    depth: int

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the setting, what was expected and what was found.
        """
        if self.width < 1 or self.depth < 1:
            raise ValueError(
                f"width and depth: expected at least 1, found {self.width} and {self.depth}."
            )

    def sizes(self, inputs: int, outputs: int) -> list[int]:
        """Return input, hidden and output sizes of a network."""
        return [inputs, *[self.width] * self.depth, outputs]


class StackedMLP(nn.Module):
    """N networks of the same sizes.

    Weights and biases start as those of ``nn.Linear``: uniform within in_features ** -0.5.

    Args:
        num_networks: N.
        sizes: Input, hidden and output sizes, at least two.
    """

    def __init__(self, num_networks: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(fan_in)
            weight = torch.empty(num_networks, fan_in, fan_out).uniform_(-bound, bound)
            bias = torch.empty(num_networks, 1, fan_out).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def layers(self) -> Layers:
        """Return weight [N, in, out] and bias [N, 1, out] of every layer."""
        return list(zip(self.weights, self.biases, strict=True))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply every network to its own rows, [N, B, in] -> [N, B, out]."""
        return stacked_mlp(self.layers(), inputs)
