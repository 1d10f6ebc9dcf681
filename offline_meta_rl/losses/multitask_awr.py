"""The losses of multi-task AWR, and its adaptation by Adam (Mitchell et al., 2021, section 5).

Networks are those of ``networks/stacked.py``, one for each task. Shapes: T tasks, B transitions,
O/A observation/action size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from offline_meta_rl.losses import awr
from offline_meta_rl.losses.awr import AWRSettings
from offline_meta_rl.networks.stacked import Layers, stacked_mlp

Batch = Mapping[str, Tensor]
"""observation [T, B, O], action [T, B, A], return_to_go [T, B]; where returns are bootstrapped also
terminal_observation [T, B, O] and terminal_discount [T, B]."""


@dataclass(frozen=True)
class Bootstrap:
    """Where the authors use R + gamma^k V(s_end) in place of the return R.

    s_end is the last observation of the transition's episode, k steps later.

    Attributes:
        advantage: Bootstrap the returns in the policy's advantages.
        value: Bootstrap the value function's target too, as in their variant ``multitask``.
    """

    advantage: bool = False
    value: bool = False


@dataclass(frozen=True)
class Adaptation:
    """How the networks are fine-tuned on a context.

    Attributes:
        steps: Steps of Adam on each network, for ``adapt``, ``predict`` and held-out losses.
            ``Evaluate`` has its own numbers of steps.
        policy_rate: Learning rate of the policy.
        value_rate: Learning rate of the value function.
    """

    steps: int = 20
    policy_rate: float = 1e-3
    value_rate: float = 1e-5


@dataclass(frozen=True)
class MultitaskSettings:
    """What both losses depend on besides parameters and data.

    Attributes:
        awr: Settings of the policy's advantage-weighted regression.
        bootstrap: Where returns are bootstrapped.
    """

    awr: AWRSettings
    bootstrap: Bootstrap


class ActorCritic(NamedTuple):
    """A policy and a value function of each of T tasks.

    Attributes:
        policy: T networks of O -> A, mean actions before the tanh.
        value: T networks of O -> 1, in units of return.
    """

    policy: Layers
    value: Layers


def bootstrapped_value_loss(value: Layers, batch: Batch, settings: MultitaskSettings) -> Tensor:
    """Return the squared error of V(s) from the return of each task, [T]."""
    target = _returns(value, batch, settings.bootstrap.value)
    return awr.value_loss(_values(value, batch["observation"]), target)


def policy_loss(networks: ActorCritic, batch: Batch, settings: MultitaskSettings) -> Tensor:
    """Return the policy's loss of each task, [T]; the value function gets no gradient from it."""
    mean = torch.tanh(stacked_mlp(networks.policy, batch["observation"]))
    weight = awr.advantage_weights(_advantage(networks.value, batch, settings), settings.awr)
    return awr.regression_loss(mean, batch["action"], weight, settings.awr.sigma)


def losses(
    networks: ActorCritic, batch: Batch, task_weight: Tensor, settings: MultitaskSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of both losses over tasks, [], and what to log.

    Args:
        networks: Policy and value function of each of T tasks.
        batch: Transitions of T tasks, [T, B, ...].
        task_weight: Weight of each task's loss, [T].
        settings: Settings of both losses.
    """
    metrics = {
        "value_loss": bootstrapped_value_loss(networks.value, batch, settings),
        "policy_loss": policy_loss(networks, batch, settings),
        "advantage": _advantage(networks.value, batch, settings).mean(dim=-1),
    }
    loss = (task_weight * (metrics["value_loss"] + metrics["policy_loss"])).sum()
    return loss, {name: (task_weight * each).sum().detach() for name, each in metrics.items()}


def adapt_by_adam(
    networks: ActorCritic,
    context: Batch,
    *,
    num_steps: int,
    adaptation: Adaptation,
    settings: MultitaskSettings,
) -> ActorCritic:
    """Fine-tune every task's networks on its context, all tasks as one batch.

    Each of ``num_steps`` is a step of Adam on the value function, then one on the policy with the
    value function's new advantages. Adam starts fresh and acts on each number by itself, so each
    task is fine-tuned exactly as it would be alone.

    Args:
        networks: Policy and value function of each of T tasks to start from; they are not changed.
        context: Transitions of T tasks, [T, B, ...].
        num_steps: Steps of Adam on each network, >= 0.
        adaptation: Learning rates.
        settings: Settings of both losses.

    Returns:
        The networks after the last step, without gradient.
    """
    # Validation and ``adapt`` may run without gradients; fine-tuning needs them.
    with torch.enable_grad():
        copies = [[(_leaf(weight), _leaf(bias)) for weight, bias in layers] for layers in networks]
        tuned = ActorCritic(*copies)
        rates = (adaptation.policy_rate, adaptation.value_rate)
        adam_policy, adam_value = (
            torch.optim.Adam([tensor for layer in layers for tensor in layer], lr=rate)
            for layers, rate in zip(tuned, rates, strict=True)
        )
        for _ in range(num_steps):
            # The value function first: the policy's advantages are under its newest values.
            adam_value.zero_grad()
            torch.autograd.backward(bootstrapped_value_loss(tuned.value, context, settings).sum())
            adam_value.step()
            adam_policy.zero_grad()
            torch.autograd.backward(policy_loss(tuned, context, settings).sum())
            adam_policy.step()
    return ActorCritic(*[[(w.detach(), b.detach()) for w, b in layers] for layers in tuned])


def _leaf(tensor: Tensor) -> Tensor:
    # Contiguous: the layers of T tasks are expanded views of one network, whose rows share memory,
    # and Adam writes in place.
    return tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_()


def _values(value: Layers, observation: Tensor) -> Tensor:
    return stacked_mlp(value, observation).squeeze(-1)


def _returns(value: Layers, batch: Batch, bootstrap: bool) -> Tensor:
    """Return R, or R + gamma^k V(s_end), [T, B], without gradient."""
    if not bootstrap:
        return batch["return_to_go"]
    terminal = _values(value, batch["terminal_observation"])
    return awr.bootstrapped_return(
        batch["return_to_go"], terminal, batch["terminal_discount"]
    ).detach()


def _advantage(value: Layers, batch: Batch, settings: MultitaskSettings) -> Tensor:
    returns = _returns(value, batch, settings.bootstrap.advantage)
    # Detached: the policy's loss must not train the value function.
    return (returns - _values(value, batch["observation"])).detach()
