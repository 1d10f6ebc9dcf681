"""Diagonal Gaussians: their parameters from a network's outputs, densities, divergences.

A network's output for a Gaussian of size Z is [..., 2 Z]: the means, then what ``softplus`` turns
into standard deviations (plus 1e-5), as in MELD (Zhao et al., 2020).
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

MIN_STD = 1e-5
SLOPE = 0.2
"""Of leaky rectifiers on their negative side, in all networks of the filter."""


class GaussianMLP(nn.Module):
    """Two hidden layers with leaky rectifiers, and the parameters of a Gaussian.

    Args:
        in_features: Numbers in the input.
        hidden_size: Units in both hidden layers.
        out_features: Z, numbers in the Gaussian.
    """

    def __init__(self, in_features: int, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.last = nn.Linear(hidden_size, 2 * out_features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return a Gaussian's parameters: [..., in] -> [..., 2 Z]."""
        hidden = F.leaky_relu(self.first(inputs), SLOPE)
        hidden = F.leaky_relu(self.second(hidden), SLOPE)
        output: Tensor = self.last(hidden)
        return output


def mean_and_std(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Split a network's output [..., 2 Z] into mean and standard deviation, [..., Z] each."""
    mean, raw = parameters.chunk(2, dim=-1)
    return mean, F.softplus(raw.contiguous()) + MIN_STD  # on a slice it takes 8 times as long


def draw(parameters: Tensor, noise: Tensor) -> Tensor:
    """Return the sample mean + std * noise, [..., Z], of a network's output [..., 2 Z]."""
    mean, std = mean_and_std(parameters)
    return torch.addcmul(mean, std, noise)


def mean_and_variance(parameters: Tensor) -> Tensor:
    """Return mean and variance side by side, [..., 2 Z]: a belief (Reflective Explorer, 3.7)."""
    mean, std = mean_and_std(parameters)
    return torch.cat([mean, std.square()], dim=-1)


def divergence(posterior: Tensor, prior: Tensor) -> Tensor:
    """Return KL(posterior || prior) in nats, summed over the Z numbers: [..., 2 Z] -> [...]."""
    mean, std = mean_and_std(posterior)
    prior_mean, prior_std = mean_and_std(prior)
    ratio = std / prior_std
    distance = (mean - prior_mean) / prior_std
    # KL of diagonal Gaussians: 1/2 (s^2/p^2 + (m - n)^2/p^2 - 1) - log(s/p).
    return (0.5 * (ratio.square() + distance.square() - 1.0) - ratio.log()).sum(dim=-1)


class _Difference(FunctionCtx):
    """What the gradient of squared errors needs."""

    difference: Tensor
    shape: torch.Size


class _SquaredErrors(torch.autograd.Function):
    """Three passes over the numbers, where autograd would take eight: images are most of them."""

    @staticmethod
    def forward(ctx: _Difference, found: Tensor, wanted: Tensor) -> Tensor:
        difference = (found - wanted).flatten(1)
        ctx.difference, ctx.shape = difference, found.shape
        # A squared norm, because a sum of squares would write every square to memory first.
        return torch.linalg.vector_norm(difference, dim=1).square()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Difference, gradient: Tensor) -> tuple[Tensor, None]:
        return (ctx.difference * (2.0 * gradient[:, None])).view(ctx.shape), None


def squared_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the sum of squared differences of each row, [N, ...] -> [N]; ``wanted`` is given."""
    errors: Tensor = _SquaredErrors.apply(found, wanted)
    return errors


def log_density_scale(std: float) -> tuple[float, float]:
    """Return (a, c) with log N(x; m, std^2) = -a (x - m)^2 - c."""
    return 0.5 / std**2, math.log(std) + 0.5 * math.log(2.0 * math.pi)
