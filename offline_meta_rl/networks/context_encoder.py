"""The context encoder of PEARL: what a set of transitions says about its task.

Rakelly et al., 2019 (arXiv 1903.08254), section 4.1: q(z | c) is proportional to the product over
the transitions c_n of Gaussian factors Psi(z | c_n), each given by a network. The product does not
depend on the order of the transitions, nor on how they are split: the posterior of two sets is the
product of their posteriors. The prior N(0, I) is no factor of it; it enters through the divergence.
Shapes: T tasks, B transitions of context, C numbers of one transition, Z latent size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from offline_meta_rl.networks.stacked import HiddenLayers, Layers, stacked_mlp

MIN_VARIANCE = 1e-7
"""Floor of a factor's variance, as in the authors' code."""


@dataclass(frozen=True)
class ContextEncoder(HiddenLayers):
    """The network that infers the task from a context.

    Attributes:
        latent_size: Z.
        next_observation: Let the encoder see s' too: for tasks that differ in dynamics.
    """

    width: int = 200
    depth: int = 3
    latent_size: int = 5
    next_observation: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """What the encoder sees of a transition, in the order of its input."""
        seen = ("observation", "action", "reward")
        return (*seen, "next_observation") if self.next_observation else seen


class Gaussians(NamedTuple):
    """Diagonal Gaussians over the latent variable.

    Attributes:
        mean: [..., Z].
        variance: [..., Z], positive.
    """

    mean: Tensor
    variance: Tensor


def context_rows(context: Mapping[str, Tensor], fields: Sequence[str]) -> Tensor:
    """Join fields of a context into one row for each transition, [T, B, C].

    Args:
        context: Named fields of T contexts, [T, B] or [T, B, n].
        fields: Names of the fields, in the order of the row.
    """
    parts = (context[name] for name in fields)
    return torch.cat([part if part.ndim == 3 else part[..., None] for part in parts], dim=-1)


def factors(encoder: Layers, rows: Tensor) -> Gaussians:
    """Return Psi(z | c_n) of every transition, [T, B, Z].

    Args:
        encoder: One network of C -> 2 Z: means, then what ``softplus`` turns into variances.
        rows: [T, B, C].
    """
    # One encoder for all tasks: their transitions are one batch of N = 1 network.
    output = stacked_mlp(encoder, rows.flatten(0, 1)[None])[0].unflatten(0, rows.shape[:2])
    mean, raw_variance = output.chunk(2, dim=-1)
    return Gaussians(mean, F.softplus(raw_variance).clamp_min(MIN_VARIANCE))


def product(gaussians: Gaussians) -> Gaussians:
    """Return the normalised product of B Gaussians: [..., B, Z] -> [..., Z]."""
    # Precisions add up, and means are averaged by precision (section 4.1).
    precision = gaussians.variance.reciprocal()
    variance = precision.sum(dim=-2).reciprocal()
    return Gaussians(variance * (precision * gaussians.mean).sum(dim=-2), variance)


def posterior(encoder: Layers, rows: Tensor) -> Gaussians:
    """Return q(z | c) of T tasks, [T, Z].

    Args:
        encoder: One network of C -> 2 Z.
        rows: Contexts, one row for each transition, [T, B, C]; their order does not matter.
    """
    return product(factors(encoder, rows))


def draw_latent(gaussians: Gaussians, noise: Tensor) -> Tensor:
    """Return mean + standard deviation * noise, [..., Z]; noise is standard normal."""
    return gaussians.mean + gaussians.variance.sqrt() * noise


def divergence_from_prior(gaussians: Gaussians) -> Tensor:
    """Return KL(q || N(0, I)) in nats, summed over the Z numbers: [..., Z] -> [...]."""
    mean, variance = gaussians
    return 0.5 * (variance + mean.square() - 1.0 - variance.log()).sum(dim=-1)
