"""Linear layers as the inner loop sees them: z, M and c that generate weights and biases.

``weight_transform``: theta = M z + c generates every number of the layer (MACAW, section 4.3).
``bias_transform``: M z adds to the biases only, y = x W + c_b + M z; the layer that stands in for
ordinary ones in the authors' runs without weight transform (its numbers are in
``BiasTransformLinear``). ``plain``: no z and M, an ordinary layer. Every tensor has a step size of
its own. Shapes: Z latent size, D = in * out + out numbers of one layer.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offline_meta_rl.networks.generated import LayerParameters, generate, split_theta

LayerKind = Literal["weight_transform", "bias_transform", "plain"]
Sizes = Sequence[tuple[int, int]]
"""(in, out) of every layer."""


@dataclass(frozen=True)
class GeneratedNetwork:
    """Size and kind of the layers of a policy or value function.

    Attributes:
        width: Units of every hidden layer.
        depth: Hidden layers.
        latent_size: Z of every weight-transform layer; 0 makes them plain ones.
        layer: ``weight_transform`` or, for the ablations, ``plain`` or ``bias_transform`` (the
            authors' layer in their runs without weight transform).
        match_parameters: Widen the hidden layers of the other kinds until each network has as many
            parameters as with the weight transform ("Equal Params" of the paper's Figure 5).
    """

    width: int = 100
    depth: int = 3
    latent_size: int = 100
    layer: LayerKind = "weight_transform"
    match_parameters: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the setting, what was expected and what was found.
        """
        for name, value, least in (
            ("width", self.width, 1),
            ("depth", self.depth, 1),
            ("latent_size", self.latent_size, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}.")

    @property
    def num_action_layers(self) -> int:
        """How many of ``policy_sizes`` the action needs; the rest are the advantage head."""
        return self.depth + 1

    def stack(self, sizes: Callable[[int], Sizes]) -> "LayerStack":
        """Return a network's layers.

        Args:
            sizes: Function from a width to (in, out) of every layer.
        """
        width = self.width
        if self.match_parameters:
            width = matching_width(sizes, width, self.latent_size, self.layer)
        return LayerStack(sizes(width), self.latent_size, self.layer)


TENSORS: dict[str, tuple[str, ...]] = {
    "weight_transform": ("z", "M", "c"),
    "bias_transform": ("z", "M", "weight", "bias"),
    "plain": ("weight", "bias"),
}
"""What has a step size of its own in each kind of layer, in this order."""


class WeightTransformLinear(nn.Module):
    """A linear layer whose weights and biases are theta = M z + c.

    The first in * out numbers of theta are the weight [in, out], row by row, the rest the bias.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        latent_size: Z.
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
        nn.init.normal_(self.latent, std=1.0 / self.out_features)
        bound = 1.0 / math.sqrt(self.latent.numel())
        nn.init.uniform_(self.matrix, -bound, bound)
        nn.init.uniform_(self.vector, -bound, bound)

    def layer(self) -> LayerParameters:
        """Return the meta-parameters as a tuple."""
        return LayerParameters(self.latent, self.matrix, self.vector)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the generated layer, [..., in] -> [..., out]."""
        weight, bias = split_theta(generate(self.layer()), self.in_features)
        return inputs @ weight[0] + bias[0]


class BiasTransformLinear(nn.Module):
    """A linear layer y = x W + b + M z; without z and M (``latent_size`` 0) an ordinary one.

    The authors' layer has as many latents as outputs, z ~ N(0, 1 / out^2) and M from Xavier's
    normal distribution. W and b start as those of ``nn.Linear``.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        latent_size: Z.
    """

    def __init__(self, in_features: int, out_features: int, latent_size: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.latent = nn.Parameter(torch.empty(latent_size))
        self.matrix = nn.Parameter(torch.empty(out_features, latent_size))
        self.vector = nn.Parameter(torch.empty(in_features * out_features + out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise z and M as the authors do, W and b as ``nn.Linear``."""
        if self.latent.numel():
            nn.init.normal_(self.latent, std=1.0 / self.out_features)
            nn.init.xavier_normal_(self.matrix)
        # What kaiming_uniform_ with a = sqrt(5) comes to in ``nn.Linear``, for weights and biases.
        bound = 1.0 / math.sqrt(self.in_features)
        nn.init.uniform_(self.vector, -bound, bound)

    layer = WeightTransformLinear.layer
    forward = WeightTransformLinear.forward


class LayerStack(nn.ModuleList):
    """Layers of one kind of given (in, out) sizes; ``networks`` says how they connect.

    Args:
        sizes: (in, out) of every layer.
        kind: Kind of every layer.
        latent_size: Z of weight-transform layers; 0 makes them plain ones.
    """

    def __init__(
        self, sizes: Sizes, latent_size: int, kind: LayerKind = "weight_transform"
    ) -> None:
        # Without a latent code theta = c: nothing is left of the transform.
        kind = "plain" if kind == "weight_transform" and not latent_size else kind
        super().__init__(_make(kind, i, o, latent_size) for i, o in sizes)
        self.kind = kind

    def layers(self) -> list[LayerParameters]:
        """Return the meta-parameters of every layer."""
        modules: Iterable[Any] = self
        return [module.layer() for module in modules]

    def log_step_sizes(self, initial: float) -> nn.Parameter:
        """Return a parameter for the logarithm of every tensor's step size, [layers, tensors]."""
        return log_parameter(initial, len(self), len(TENSORS[self.kind]))


def log_parameter(initial: float, *shape: int) -> nn.Parameter:
    """Return a parameter that holds the logarithm of a positive number."""
    return nn.Parameter(torch.full(shape, initial).log())


def count_parameters(sizes: Sizes, latent_size: int, kind: LayerKind) -> int:
    """Return how many numbers a ``LayerStack`` learns."""
    total = 0
    for fan_in, fan_out in sizes:
        plain = fan_in * fan_out + fan_out
        extra = {
            "weight_transform": plain * latent_size + latent_size,
            "bias_transform": fan_out * fan_out + fan_out,
            "plain": 0,
        }
        total += plain + extra[kind]
    return total


def matching_width(
    sizes: Callable[[int], Sizes], width: int, latent_size: int, kind: LayerKind
) -> int:
    """Return the width at which layers of a kind have as many parameters as weight transforms.

    "No WT-Equal Params" of MACAW's Figure 5. For half-cheetahs (``width`` and ``latent_size`` 100)
    it is 1139 for plain layers of the policy and 1058 for those of the value function.

    Args:
        sizes: Layer sizes of the network for a width.
        width: Units in each hidden layer of the weight-transform network.
        latent_size: Z of the weight-transform network.
        kind: Kind of the layers to widen.
    """
    wanted = count_parameters(sizes(width), latent_size, "weight_transform")

    def count(candidate: int) -> int:
        return count_parameters(sizes(candidate), latent_size, kind)

    # The count grows with the width, so the first width that is large enough can be bisected for.
    # The one below it may be closer.
    enough = bisect_left(range(10**6), wanted, key=count)
    return min((enough - 1, enough), key=lambda candidate: abs(count(candidate) - wanted))


def _make(kind: LayerKind, fan_in: int, fan_out: int, latent_size: int) -> nn.Module:
    if kind == "weight_transform":
        return WeightTransformLinear(fan_in, fan_out, latent_size)
    # The authors' layer has as many latents as outputs.
    return BiasTransformLinear(fan_in, fan_out, fan_out if kind == "bias_transform" else 0)
