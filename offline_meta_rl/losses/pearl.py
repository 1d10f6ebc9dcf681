"""The losses of offline PEARL, as functions of parameters and data; all tasks are one batch.

Rakelly et al., 2019 (arXiv 1903.08254), Algorithm 1 and section 4.2, with the soft actor-critic of
their code: twin critics, a value function with a target (as in arXiv 1801.01290), a temperature of
alpha = 1 and scaled rewards. The latent variable is sampled once for each task; the encoder learns
from the critics' loss and from the divergence alone.

    critic    sum over the twins of (Q(s, a, z) - (r + discount * V_target(s', z~)))^2     (Eq. 2)
    value     (V(s, z~) - (min Q(s, a', z~) - alpha log pi(a' | s, z~)))^2,  a' ~ pi(. | s, z~)
    actor     alpha log pi(a' | s, z~) - min Q(s, a', z~)                                  (Eq. 3)
    kl        beta KL(q(z | c) || N(0, I))

where z~ is z without gradient. The behaviour-regularised variant adds a squared distance to the
data's actions to the actor's loss, relative to the mean size of Q, as TD3+BC does (Fujimoto and
Gu, 2021, arXiv 2106.06860, Eqs. 3 to 5). Shapes: T tasks, B transitions, C numbers of one
transition of context, Z latent size, O/A observation/action size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from offline_meta_rl.losses.awr import Weighting, advantage_weights
from offline_meta_rl.networks.actors import constant, tanh_sample
from offline_meta_rl.networks.context_encoder import (
    Gaussians,
    divergence_from_prior,
    draw_latent,
    posterior,
)
from offline_meta_rl.networks.stacked import Layers, conditioned_mlp

MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0


class PearlParameters(NamedTuple):
    """What is learned; every network but the encoder takes z beside its inputs.

    Attributes:
        encoder: One network of C -> 2 Z.
        actor: One network of O + Z -> 2 A, mean and log standard deviation before the tanh.
        critics: Two networks of O + A + Z -> 1.
        value: One network of O + Z -> 1.
    """

    encoder: Layers
    actor: Layers
    critics: Layers
    value: Layers


class PearlNoise(NamedTuple):
    """Standard normal numbers of one update.

    Attributes:
        latent: Noise of the sample of z, [T, Z].
        action: Noise of the actor's actions, [T, B, A].
    """

    latent: Tensor
    action: Tensor


@dataclass(frozen=True)
class PearlSettings:
    """What the losses depend on besides parameters and data.

    Attributes:
        discount: Gamma, per step.
        reward_scale: What rewards are multiplied by in the critics' targets.
        entropy_weight: Alpha, the temperature; the paper's is 1. Only its ratio to
            ``reward_scale`` matters to the actor, but values of a moderate size are learned sooner.
        kl_weight: Beta, of the divergence to the prior.
        policy_regularisation: Authors: weight of the mean squares of the actor's outputs (mean and
            log standard deviation before the tanh).
        behaviour_weight: Not in the paper: weight of the squared distance of the actor's actions
            to the data's, times the mean |Q| of the task. It is the reciprocal of TD3+BC's alpha,
            whose 2.5 is 0.4 here. 0 leaves the term out.
        advantage_temperature: Not in the paper: weigh the data's actions in the behaviour term by
            exp(standardised advantage / this), at most 20; None weighs all alike.
    """

    discount: float = 0.99
    reward_scale: float = 5.0
    entropy_weight: float = 1.0
    kl_weight: float = 0.1
    policy_regularisation: float = 1e-3
    behaviour_weight: float = 0.0
    advantage_temperature: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the setting, what was expected and what was found.
        """
        for name, value in (
            ("entropy_weight", self.entropy_weight),
            ("kl_weight", self.kl_weight),
            ("policy_regularisation", self.policy_regularisation),
            ("behaviour_weight", self.behaviour_weight),
        ):
            if value < 0.0:
                raise ValueError(f"{name}: expected at least 0, found {value}.")
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount: expected 0 to 1, found {self.discount}.")
        if self.reward_scale <= 0.0:
            raise ValueError(f"reward_scale: expected more than 0, found {self.reward_scale}.")
        temperature = self.advantage_temperature
        if temperature is not None and (temperature <= 0.0 or self.behaviour_weight == 0.0):
            raise ValueError(
                "advantage_temperature: expected more than 0, with a behaviour_weight of more than "
                f"0, found {temperature} and {self.behaviour_weight}. Set both, or leave it out."
            )


def conditioned_actor(actor: Layers, observation: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log standard deviation of the actions before the tanh, [T, B, A] each.

    Args:
        actor: One network of O + Z -> 2 A.
        observation: [T, B, O].
        latent: z, [T, Z].
    """
    mean, log_std = conditioned_mlp(actor, observation, latent)[0].chunk(2, dim=-1)
    return mean, log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)


def conditioned_values(
    critics: Layers, observation: Tensor, action: Tensor, latent: Tensor
) -> Tensor:
    """Return Q(s, a, z) of both critics in scaled units of return.

    Args:
        critics: Two networks of O + A + Z -> 1.
        observation: [T, B, O].
        action: [T, B, A].
        latent: z, [T, Z].

    Returns:
        [2, T, B].
    """
    inputs = torch.cat([observation, action], dim=-1)
    return conditioned_mlp(critics, inputs, latent).squeeze(-1)


def state_value(value: Layers, observation: Tensor, latent: Tensor) -> Tensor:
    """Return V(s, z) in scaled units of return.

    Args:
        value: One network of O + Z -> 1.
        observation: [T, B, O].
        latent: z, [T, Z].

    Returns:
        [T, B].
    """
    return conditioned_mlp(value, observation, latent)[0].squeeze(-1)


def pearl_losses(
    parameters: PearlParameters,
    target_value: Layers,
    context: Tensor,
    batch: Mapping[str, Tensor],
    noise: PearlNoise,
    task_weight: Tensor,
    settings: PearlSettings,
) -> dict[str, Tensor]:
    """Return the losses of one update and what to log, as weighted sums over tasks.

    Args:
        parameters: What is learned; each loss has gradients in its own network alone, ``critic`` in
            critics and encoder, ``kl`` in the encoder.
        target_value: V_target, a network like ``value``.
        context: c, [T, C_rows, C].
        batch: observation, next_observation [T, B, O], action [T, B, A], reward [T, B], terminated
            [T, B] bool. Nothing follows a terminated episode; what follows a truncated one counts.
        noise: Standard normal numbers behind z and the actor's actions.
        task_weight: Weight of each task's losses, [T]; 1 / T for a mean.
        settings: Weights and scales of the losses.

    Returns:
        ``critic``, ``value``, ``actor``, ``kl`` (times its weight): to be added. Detached:
        ``divergence`` (nats), ``data_value`` and ``policy_value`` (Q of the data's actions and of
        the actor's, in scaled units of return), ``entropy`` (nats), ``behaviour_distance`` (mean
        squared difference of the actor's and the data's actions).
    """
    q = posterior(parameters.encoder, context)
    return losses_given(q, parameters, target_value, batch, noise, task_weight, settings)


def losses_given(
    q: Gaussians,
    parameters: PearlParameters,
    target_value: Layers,
    batch: Mapping[str, Tensor],
    noise: PearlNoise,
    task_weight: Tensor,
    settings: PearlSettings,
) -> dict[str, Tensor]:
    """Return the losses of ``pearl_losses`` given q(z | c), [T, Z]; the encoder is not used."""
    # One z ~ q(z | c) for each task and update, shared by all its transitions, as in Algorithm 1.
    # Reparameterised, so that the critics' loss reaches the encoder.
    latent = draw_latent(q, noise.latent)
    # z~ of Eqs. 2 and 3: only the critics' loss and the divergence train the encoder (section 4.2).
    given = latent.detach()
    with torch.no_grad():
        after = state_value(target_value, batch["next_observation"], given)
        after = torch.where(batch["terminated"], 0.0, after)
        aim = settings.reward_scale * batch["reward"] + settings.discount * after
    # Eq. 2. The only use of z with its gradient.
    data_values = conditioned_values(
        parameters.critics, batch["observation"], batch["action"], latent
    )
    critic = (data_values - aim).square().sum(dim=0).mean(dim=-1)

    mean, log_std = conditioned_actor(parameters.actor, batch["observation"], given)
    action, log_density = tanh_sample(mean, log_std.exp(), noise.action)
    # Eq. 3. The critics are constants here, or they would learn to please the actor.
    critics = constant(parameters.critics)
    policy_value = conditioned_values(critics, batch["observation"], action, given).amin(dim=0)
    value = state_value(parameters.value, batch["observation"], given)
    # Aim of the value function and, with its gradient, what the actor maximises.
    soft_value = policy_value - settings.entropy_weight * log_density
    value_loss = (value - soft_value.detach()).square().mean(dim=-1)

    actor = -soft_value.mean(dim=-1)
    size = mean.square().mean(dim=(1, 2)) + log_std.square().mean(dim=(1, 2))
    actor = actor + settings.policy_regularisation * size
    # Computed even where its weight is 0, because it is logged: it shows how far the actor has left
    # the data.
    distance = (action - batch["action"]).square().mean(dim=-1)
    if settings.behaviour_weight > 0.0:
        # TD3+BC, Eqs. 3 to 5: relative to the mean |Q|, so that one weight suits any scale of
        # reward. Scale and weights are constants, only the distance is minimised.
        advantage = (data_values.amin(dim=0) - value).detach()
        scale = policy_value.detach().abs().mean(dim=-1)
        term = (_behaviour_weights(advantage, settings) * distance).mean(dim=-1)
        actor = actor + settings.behaviour_weight * scale * term
    divergence = divergence_from_prior(q)
    losses = {
        "critic": critic,
        "value": value_loss,
        "actor": actor,
        "kl": settings.kl_weight * divergence,
    }
    shown = {
        "divergence": divergence,
        "data_value": data_values.mean(dim=(0, 2)),
        "policy_value": policy_value.mean(dim=-1),
        "entropy": -log_density.mean(dim=-1),
        "behaviour_distance": distance.mean(dim=-1),
    }
    found = losses | {name: each.detach() for name, each in shown.items()}
    return {name: (task_weight * each).sum() for name, each in found.items()}


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the losses of ``pearl_losses`` that are to be minimised, []."""
    return losses["critic"] + losses["value"] + losses["actor"] + losses["kl"]


def _behaviour_weights(advantage: Tensor, settings: PearlSettings) -> Tensor:
    """Return the weight of every data action in the behaviour term, [T, B]."""
    if settings.advantage_temperature is None:
        return torch.ones_like(advantage)
    return advantage_weights(advantage, Weighting(temperature=settings.advantage_temperature))
