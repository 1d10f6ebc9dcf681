"""Soft actor-critic's losses for N independent agents at once (Haarnoja et al., 2018).

As in arXiv 1812.05905: twin critics regress on the smaller of two target critics (Eq. 5 and 6), a
tanh-Gaussian actor is reparameterised (Eq. 9), the temperature is learned (Eq. 18). Every loss is a
vector [N], one entry for each agent and of that agent's tensors alone. An agent that has to solve
several tasks sees which one it is in as part of its observation. Shapes: N agents, each with a
batch of B transitions; O, A observation and action size; critics are 2 N networks, first those of
all agents, then their twins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from offline_meta_rl.networks.actors import SCALE, constant, tanh_sample
from offline_meta_rl.networks.stacked import Layers, stacked_mlp


@dataclass(frozen=True)
class SACSettings:
    """What soft actor-critic optimises.

    Attributes:
        discount: Per step, 0 to 1.
        initial_temperature: Weight of the entropy at the start, more than 0.
        target_entropy: Entropy of the actions, in nats, that the temperature is steered to. None
            for -A, the paper's choice.
        temperature_loss: ``logarithm``, in which the temperature's loss is linear, as TorchRL and
            Stable-Baselines3 have it, or ``paper``, Eq. 18, linear in the temperature itself. They
            vanish at the same entropy. With the paper's, steps get smaller as the temperature
            does, so it decays more slowly.

    Raises:
        ValueError: a value out of its range.
    """

    discount: float = 0.99
    initial_temperature: float = 1.0
    target_entropy: float | None = None
    temperature_loss: Literal["logarithm", "paper"] = "logarithm"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount: expected 0 to 1, found {self.discount}.")
        if self.initial_temperature <= 0.0:
            raise ValueError(
                f"initial_temperature: expected more than 0, found {self.initial_temperature}."
            )
        if self.temperature_loss not in ("logarithm", "paper"):
            raise ValueError(
                f"temperature_loss: expected logarithm or paper, found {self.temperature_loss!r}."
            )


class Agents(NamedTuple):
    """What N agents learn.

    Attributes:
        actors: N networks of O -> 2 A.
        critics: 2 N networks of O + A -> 1, those of all agents, then their twins.
        log_temperature: Logarithm of each agent's temperature, [N].
    """

    actors: Layers
    critics: Layers
    log_temperature: Tensor


def gaussian(actors: Layers, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the actions before the tanh, [N, B, A] each.

    Args:
        actors: Networks from O to 2 A numbers.
        observation: [N, B, O].
    """
    mean, raw_scale = stacked_mlp(actors, observation).chunk(2, dim=-1)
    return mean, SCALE(raw_scale)


def sample_action(actors: Layers, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions [N, B, A] in (-1, 1) and their log densities [N, B].

    Args:
        actors: Networks from O to 2 A numbers.
        observation: [N, B, O].
        noise: Standard normal, [N, B, A].
    """
    return tanh_sample(*gaussian(actors, observation), noise)


def twin_values(critics: Layers, observation: Tensor, action: Tensor) -> Tensor:
    """Return both critics' values of actions.

    Args:
        critics: 2 N networks of O + A -> 1.
        observation: [N, B, O].
        action: [N, B, A].

    Returns:
        [2, N, B], in units of return.
    """
    inputs = torch.cat([observation, action], dim=-1)
    # Networks 0 to N - 1 are the first critics, N to 2 N - 1 their twins; both see the same rows.
    values = stacked_mlp(critics, inputs.repeat(2, 1, 1))
    return values.view(2, *inputs.shape[:2])


def target_value(
    agents: Agents, targets: Layers, batch: Mapping[str, Tensor], noise: Tensor, discount: float
) -> Tensor:
    """Return r + discount * (min Q'(s', a') - alpha log pi(a'|s')), [N, B] (Eq. 3 and 6).

    Nothing follows a terminated episode; what follows a truncated one counts.

    Args:
        agents: Actors and temperatures.
        targets: The target critics Q', 2 N networks.
        batch: next_observation [N, B, O], reward [N, B], terminated [N, B] bool.
        noise: Standard normal, of a', [N, B, A].
        discount: Per step, 0 to 1.
    """
    following = batch["next_observation"]
    action, log_density = sample_action(agents.actors, following, noise)
    value = twin_values(targets, following, action).amin(dim=0)
    # Eq. 3: the soft value of s' has the entropy of what follows in it.
    value = value - agents.log_temperature.exp()[:, None] * log_density
    return batch["reward"] + discount * torch.where(batch["terminated"], 0.0, value)


def sac_losses(
    agents: Agents,
    targets: Layers,
    batch: Mapping[str, Tensor],
    noise: Tensor,
    settings: SACSettings,
) -> dict[str, Tensor]:
    """Return every agent's losses on its own batch.

    Args:
        agents: What is learned.
        targets: The target critics.
        batch: observation, next_observation [N, B, O], action [N, B, A], reward [N, B],
            terminated [N, B] bool.
        noise: Standard normal, [2, N, B, A]: for the actions that follow, and for the actor's loss.
        settings: Discount, and where the temperature is steered to.

    Returns:
        ``critic``, ``actor``, ``temperature``: losses [N], to be added; ``entropy``: [N], detached.
    """
    # Eq. 5 is minimised in the critics; what they regress onto is a constant of it (Eq. 6).
    with torch.no_grad():
        aim = target_value(agents, targets, batch, noise[0], settings.discount)
    values = twin_values(agents.critics, batch["observation"], batch["action"])
    critic_loss = 0.5 * (values - aim).square().sum(dim=0).mean(dim=-1)

    # Eq. 9: the action is a function of the noise, so the gradient of Q reaches the actor. The
    # critics must not move to please it.
    action, log_density = sample_action(agents.actors, batch["observation"], noise[1])
    value = twin_values(constant(agents.critics), batch["observation"], action).amin(dim=0)
    temperature = agents.log_temperature.exp()
    actor_loss = (temperature.detach()[:, None] * log_density - value).mean(dim=-1)

    aimed = settings.target_entropy
    aimed = -float(action.shape[-1]) if aimed is None else aimed
    # Eq. 18 is minimised in the temperature alone.
    entropy = -log_density.detach().mean(dim=-1)
    moved = temperature if settings.temperature_loss == "paper" else agents.log_temperature
    temperature_loss = moved * (entropy - aimed)
    return {
        "critic": critic_loss,
        "actor": actor_loss,
        "temperature": temperature_loss,
        "entropy": entropy,
    }
