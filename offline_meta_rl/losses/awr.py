"""Advantage-weighted regression of many tasks: losses, and fine-tuning by Adam (Peng et al., 2019).

MACAW uses the weights and the policy's loss in its inner and outer loop, multi-task AWR all of it.
Networks are those of ``stacked_networks``, one for each task. Shapes: T tasks, B transitions, O/A
observation/action size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from offline_meta_rl.losses import functional
from offline_meta_rl.networks.stacked import Layers, stacked_mlp

Batch = Mapping[str, Tensor]
"""observation [T, B, O], action [T, B, A], return_to_go [T, B]; where returns are bootstrapped also
terminal_observation [T, B, O] and terminal_discount [T, B]."""


@dataclass(frozen=True)
class AWRSettings:
    """What the policy's loss depends on besides parameters and data.

    Attributes:
        sigma: fixed standard deviation of the policy.
        temperature: T of exp(advantage / T).
        max_weight: largest weight.
        standardise_advantages: per task and batch, before the exponent.
    """

    sigma: float
    temperature: float
    max_weight: float
    standardise_advantages: bool


@dataclass(frozen=True)
class ActorCriticSettings(AWRSettings):
    """What both losses depend on besides parameters and data.

    Attributes:
        bootstrap_advantage: the policy's advantages use R + gamma^k V(s_end) in place of R.
        bootstrap_value: so does the target of the value function.
    """

    bootstrap_advantage: bool = False
    bootstrap_value: bool = False


class ActorCritic(NamedTuple):
    """A policy and a value function of each of T tasks."""

    policy: Layers
    value: Layers


def regression_weights(advantage: Tensor, settings: AWRSettings) -> Tensor:
    """Return the weights of advantages without gradient, [T, B] -> [T, B]."""
    return functional.advantage_weights(
        advantage,
        temperature=settings.temperature,
        max_weight=settings.max_weight,
        standardise=settings.standardise_advantages,
    )


def regression_loss(mean: Tensor, action: Tensor, weight: Tensor, settings: AWRSettings) -> Tensor:
    """Return the weighted regression of each task, [T], of mean actions [T, B, A] onto actions."""
    return functional.awr_loss(functional.gaussian_log_prob(action, mean, settings.sigma), weight)


def value_loss(value: Layers, batch: Batch, settings: ActorCriticSettings) -> Tensor:
    """Return the squared error of V(s) from the return of each task, [T]."""
    target = _returns(value, batch, settings.bootstrap_value)
    return functional.value_loss(_values(value, batch["observation"]), target)


def policy_loss(networks: ActorCritic, batch: Batch, settings: ActorCriticSettings) -> Tensor:
    """Return the policy's loss of each task, [T]; the value function gets no gradient from it."""
    mean = torch.tanh(stacked_mlp(networks.policy, batch["observation"]))
    weight = regression_weights(_advantage(networks.value, batch, settings), settings)
    return regression_loss(mean, batch["action"], weight, settings)


def losses(
    networks: ActorCritic, batch: Batch, task_weight: Tensor, settings: ActorCriticSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of both losses over tasks, [], and what to log.

    Args:
        networks: of the T tasks.
        batch: of the T tasks.
        task_weight: weight of each task's loss, [T].
        settings: of both losses.
    """
    metrics = {
        "value_loss": value_loss(networks.value, batch, settings),
        "policy_loss": policy_loss(networks, batch, settings),
        "advantage": _advantage(networks.value, batch, settings).mean(dim=-1),
    }
    loss = (task_weight * (metrics["value_loss"] + metrics["policy_loss"])).sum()
    return loss, {name: (task_weight * each).sum().detach() for name, each in metrics.items()}


def fine_tune(
    networks: ActorCritic,
    context: Batch,
    *,
    num_steps: int,
    policy_learning_rate: float,
    value_learning_rate: float,
    settings: ActorCriticSettings,
) -> ActorCritic:
    """Fine-tune every task's networks on its context, all tasks as one batch.

    Each of ``num_steps`` is a step of Adam on the value function, then one on the policy with the
    value function's new advantages. Adam starts fresh and acts on each number by itself, so each
    task is fine-tuned exactly as it would be alone.

    Returns:
        The networks after the last step, without gradient.
    """
    with torch.enable_grad():
        copies = [[(_leaf(weight), _leaf(bias)) for weight, bias in layers] for layers in networks]
        tuned = ActorCritic(*copies)
        rates = (policy_learning_rate, value_learning_rate)
        adam_policy, adam_value = (
            torch.optim.Adam([tensor for layer in layers for tensor in layer], lr=rate)
            for layers, rate in zip(tuned, rates, strict=True)
        )
        for _ in range(num_steps):
            adam_value.zero_grad()
            torch.autograd.backward(value_loss(tuned.value, context, settings).sum())
            adam_value.step()
            adam_policy.zero_grad()
            torch.autograd.backward(policy_loss(tuned, context, settings).sum())
            adam_policy.step()
    return ActorCritic(*[[(w.detach(), b.detach()) for w, b in layers] for layers in tuned])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_()


def _values(value: Layers, observation: Tensor) -> Tensor:
    return stacked_mlp(value, observation).squeeze(-1)


def _returns(value: Layers, batch: Batch, bootstrap: bool) -> Tensor:
    """Return R, or R + gamma^k V(s_end), [T, B], without gradient."""
    if not bootstrap:
        return batch["return_to_go"]
    terminal = _values(value, batch["terminal_observation"])
    return functional.bootstrapped_return(
        batch["return_to_go"], terminal, batch["terminal_discount"]
    ).detach()


def _advantage(value: Layers, batch: Batch, settings: ActorCriticSettings) -> Tensor:
    returns = _returns(value, batch, settings.bootstrap_advantage)
    return (returns - _values(value, batch["observation"])).detach()
