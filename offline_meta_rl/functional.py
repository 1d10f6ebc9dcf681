"""Losses and weights of advantage-weighted regression, as pure functions.

Shapes: T tasks, B transitions, A action size. Everything here is batched over tasks; a mean is over
the B transitions of one task, so that tasks never mix.
"""

import math

import torch
from torch import Tensor


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of the value of each task (MACAW, Eq. 2).

    Args:
        value: V(s), [T, B].
        target: Monte-Carlo returns R(s, a), [T, B].

    Returns:
        [T].
    """
    return torch.square(value - target).mean(dim=-1)


def gaussian_log_prob(action: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Return log N(action; mean, sigma^2 I), summed over action dimensions.

    Args:
        action: [..., A].
        mean: [..., A].
        sigma: standard deviation of every dimension, > 0. MACAW's authors fix it at 0.2.

    Returns:
        [...].
    """
    normaliser = action.shape[-1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return -0.5 * torch.square((action - mean) / sigma).sum(dim=-1) - normaliser


def advantage_weights(
    advantage: Tensor, *, temperature: float, max_weight: float, standardise: bool
) -> Tensor:
    """Return the regression weights exp(advantage / T) of AWR (MACAW, Eq. 1).

    Args:
        advantage: R(s, a) - V(s), [T, B], without gradient.
        temperature: T in Eq. 1, > 0.
        max_weight: largest weight, > 1.
        standardise: bring each task's advantages to mean 0 and deviation 1 first. The paper does
            not print this; the authors' code does it, and raw returns would overflow the exponent.

    Returns:
        [T, B], in (0, max_weight].
    """
    if standardise:
        deviation = advantage.std(dim=-1, keepdim=True).clamp_min(1e-6)
        advantage = (advantage - advantage.mean(dim=-1, keepdim=True)) / deviation
    return torch.exp((advantage / temperature).clamp_max(math.log(max_weight)))


def awr_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Return the advantage-weighted regression loss of each task (MACAW, Eq. 1).

    Args:
        log_prob: log pi(a|s), [T, B].
        weight: from ``advantage_weights``, [T, B].

    Returns:
        [T].
    """
    return -(weight * log_prob).mean(dim=-1)


def advantage_loss(predicted: Tensor, advantage: Tensor) -> Tensor:
    """Return the squared error of the advantage head of each task (MACAW, Eq. 4).

    Args:
        predicted: A(s, a) of the policy's second head, [T, B].
        advantage: R(s, a) - V(s) in units of return, [T, B].

    Returns:
        [T].
    """
    return torch.square(predicted - advantage).mean(dim=-1)


def bootstrapped_return(
    return_to_go: Tensor, terminal_value: Tensor, terminal_discount: Tensor
) -> Tensor:
    """Return R + gamma^k V(s_end): the return of an episode cut off k steps later, [T, B].

    The authors' code uses it where the paper has the plain return; it bootstraps true ends too.

    Args:
        return_to_go: R, [T, B].
        terminal_value: V of the last observation of the transition's episode, [T, B].
        terminal_discount: gamma^k, [T, B].
    """
    return return_to_go + terminal_discount * terminal_value
