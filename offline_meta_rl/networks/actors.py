"""What the actor-critics share: tanh-Gaussian actors, critics with targets, Polyak averages.

A tanh-Gaussian actor draws an action as tanh(mean + scale * noise). Its network returns 2 A numbers
for each observation: the means and, before a softplus, the scales. Shapes: N stacked networks, B
rows, O, F and A sizes of observation, task features and action.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from offline_meta_rl.networks.stacked import HiddenLayers, Layers, StackedMLP


@dataclass(frozen=True)
class DeviationScale:
    """How a network's number becomes a standard deviation: softplus(x + shift) + floor.

    Attributes:
        floor: Smallest standard deviation.
        at_zero: Standard deviation above the floor where the network returns 0.
    """

    floor: float = 1e-3
    at_zero: float = 1.0

    def __call__(self, number: Tensor) -> Tensor:
        """Return standard deviations of any shape."""
        # The inverse of softplus: softplus(0 + shift) is at_zero.
        shift = math.log(math.expm1(self.at_zero))
        return F.softplus(number + shift) + self.floor


SCALE = DeviationScale()
TENSORDICT_SCALE = DeviationScale(floor=0.01, at_zero=0.99)
"""The ``biased_softplus_1.0`` of tensordict, which the behaviour policies that ship have."""


def tanh_sample(mean: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return tanh(mean + scale * noise) [..., A] and its log density [...].

    Args:
        mean: Before the tanh, [..., A].
        scale: Standard deviation before the tanh, [..., A].
        noise: Standard normal, [..., A].
    """
    before = mean + scale * noise
    normal = -0.5 * noise.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)
    # log(1 - tanh(x)^2) written so that it stays exact where tanh rounds to 1.
    log_slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
    return torch.tanh(before), (normal - log_slope).sum(dim=-1)


def constant(layers: Layers) -> Layers:
    """Return the same networks without gradients in their own parameters.

    The actor's loss is differentiated through the critics, but must not move them.
    """
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def with_target(num_networks: int, sizes: Sequence[int]) -> tuple[StackedMLP, StackedMLP]:
    """Return N networks to be learned, and their targets, which start equal.

    Args:
        num_networks: N; 2 for twin critics.
        sizes: Input, hidden and output sizes.
    """
    learned = StackedMLP(num_networks, sizes)
    # A copy would do, but runs of earlier versions drew the targets too. Without these draws every
    # random number after them would be another one.
    target = StackedMLP(num_networks, sizes)
    target.load_state_dict(learned.state_dict())
    return learned, target.requires_grad_(False)


def polyak(targets: Iterable[Tensor], learned: Iterable[Tensor], share: float) -> None:
    """Move targets towards what is learned, in place: target += share * (learned - target).

    Args:
        targets: The averages, changed in place, such as a module's ``parameters()``.
        learned: What the targets follow; as many tensors, of the same shapes.
        share: Share of the way, 0 to 1.
    """
    # One call for all tensors, in place of one for each.
    average = get_ema_multi_avg_fn(1.0 - share)
    average(list(targets), [tensor.detach() for tensor in learned], 1)


class BehaviourActor(nn.Module):
    """One policy for all tasks of a family: maps (observation, task features) to an action.

    Args:
        observation_size: O.
        task_feature_size: F.
        action_size: A.
        network: Hidden layers.
        scale: How the network's last A numbers become standard deviations.
    """

    def __init__(
        self,
        observation_size: int,
        task_feature_size: int,
        action_size: int,
        network: HiddenLayers,
        scale: DeviationScale = SCALE,
    ) -> None:
        super().__init__()
        sizes = network.sizes(observation_size + task_feature_size, 2 * action_size)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])
        self.scale = scale

    def forward(self, observation: Tensor, task_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation before the tanh, [..., A] each.

        Args:
            observation: [..., O].
            task_features: [..., F]; F may be 0.
        """
        numbers = self.network(torch.cat([observation, task_features], dim=-1))
        mean, raw_scale = numbers.chunk(2, dim=-1)
        return mean, self.scale(raw_scale)

    def act(
        self,
        observation: Tensor,
        task_features: Tensor,
        *,
        stochastic: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return actions [..., A] in [-1, 1].

        Args:
            observation: [..., O].
            task_features: [..., F]; F may be 0.
            stochastic: Sample the action; False for the mean action tanh(mean).
            generator: Source of randomness; None for the global state.
        """
        mean, scale = self(observation, task_features)
        if stochastic:
            mean = mean + scale * torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.tanh(mean)
