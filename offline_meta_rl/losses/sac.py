"""Soft actor-critic's losses for T independent agents at once (Haarnoja et al., 2018).

As in arXiv 1812.05905: twin critics regress on the smaller of two target critics (Eq. 5 and 6), a
tanh-Gaussian actor is reparameterised (Eq. 9), the temperature is learned (Eq. 18). Every loss is a
vector [T], one entry for each agent and of that agent's tensors alone. Shapes: T agents, each with
a batch of B transitions; O, A observation and action size; critics are 2 T networks, first those
of all agents, then their twins.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from offline_meta_rl.networks.stacked import Layers, stacked_mlp

MIN_SCALE = 1e-3
UNIT_SCALE = math.log(math.e - 1.0)  # softplus of it is 1


class Agents(NamedTuple):
    """What T agents learn: actors, critics, and logarithms of temperatures [T]."""

    actors: Layers
    critics: Layers
    log_temperature: Tensor


def gaussian(actors: Layers, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and scale of the actions before the tanh, [T, B, A] each.

    Args:
        actors: networks from O to 2 A numbers.
        observation: [T, B, O].
    """
    mean, raw_scale = stacked_mlp(actors, observation).chunk(2, dim=-1)
    return mean, F.softplus(raw_scale + UNIT_SCALE) + MIN_SCALE


def sample_action(actors: Layers, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions [T, B, A] in (-1, 1) and their log densities [T, B].

    Args:
        actors: see ``gaussian``.
        observation: [T, B, O].
        noise: standard normal, [T, B, A].
    """
    return tanh_sample(*gaussian(actors, observation), noise)


def tanh_sample(mean: Tensor, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return tanh(mean + scale * noise) [..., A] and its log density [...].

    Args:
        mean: before the tanh, [..., A].
        scale: standard deviation before the tanh, [..., A].
        noise: standard normal, [..., A].
    """
    before = mean + scale * noise
    normal = -0.5 * noise.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)
    # log(1 - tanh(x)^2), exact for large |x| too
    log_slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
    return torch.tanh(before), (normal - log_slope).sum(dim=-1)


def twin_values(critics: Layers, observation: Tensor, action: Tensor) -> Tensor:
    """Return both critics' values [2, T, B] of observations [T, B, O] and actions [T, B, A]."""
    inputs = torch.cat([observation, action], dim=-1)
    values = stacked_mlp(critics, inputs.repeat(2, 1, 1))
    return values.view(2, *inputs.shape[:2])


def target_value(
    agents: Agents, targets: Layers, batch: Mapping[str, Tensor], noise: Tensor, discount: float
) -> Tensor:
    """Return r + discount * (min Q'(s', a') - alpha log pi(a'|s')), [T, B].

    Nothing follows a terminated episode; what follows a truncated one counts.
    """
    following = batch["next_observation"]
    action, log_density = sample_action(agents.actors, following, noise)
    value = twin_values(targets, following, action).amin(dim=0)
    value = value - agents.log_temperature.exp()[:, None] * log_density
    return batch["reward"] + discount * torch.where(batch["terminated"], 0.0, value)


def sac_losses(
    agents: Agents,
    targets: Layers,
    batch: Mapping[str, Tensor],
    noise: Tensor,
    *,
    discount: float,
    target_entropy: float,
) -> dict[str, Tensor]:
    """Return every agent's losses on its own batch.

    Args:
        agents: what is learned.
        targets: the target critics.
        batch: observation, next_observation [T, B, O], action [T, B, A], reward [T, B],
            terminated [T, B] bool.
        noise: standard normal, [2, T, B, A]: for the actions that follow, and for the actor's loss.
        discount: per step.
        target_entropy: that the temperature steers to, nats.

    Returns:
        ``critic``, ``actor``, ``temperature``: losses [T], to be added; ``entropy``: [T], detached.
    """
    with torch.no_grad():
        aim = target_value(agents, targets, batch, noise[0], discount)
    values = twin_values(agents.critics, batch["observation"], batch["action"])
    critic_loss = 0.5 * (values - aim).square().sum(dim=0).mean(dim=-1)

    action, log_density = sample_action(agents.actors, batch["observation"], noise[1])
    constant = [(weight.detach(), bias.detach()) for weight, bias in agents.critics]
    value = twin_values(constant, batch["observation"], action).amin(dim=0)
    temperature = agents.log_temperature.exp()
    actor_loss = (temperature.detach()[:, None] * log_density - value).mean(dim=-1)

    entropy = -log_density.detach().mean(dim=-1)
    temperature_loss = temperature * (entropy - target_entropy)
    return {
        "critic": critic_loss,
        "actor": actor_loss,
        "temperature": temperature_loss,
        "entropy": entropy,
    }
