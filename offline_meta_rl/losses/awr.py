"""Advantage-weighted regression (Peng et al., 2019) as pure functions, and its settings.

MACAW uses it in its inner and outer loop and in online fine-tuning, multi-task AWR in training and
adapting, regularised PEARL for the weights of the data's actions. Shapes: T tasks, B transitions,
A action size. Everything is batched over tasks; a mean is over the B transitions of one task, so
that tasks never mix.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weighting:
    """How advantages become weights, exp(advantage / T).

    Attributes:
        temperature: T of Eq. 1, > 0. Smaller values trust the advantages more.
        max_weight: Largest weight, > 1.
        standardise_advantages: Bring each task's advantages to mean 0 and deviation 1 first. The
            paper does not print this; the authors' code does it.
    """

    temperature: float = 1.0
    max_weight: float = 20.0
    standardise_advantages: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the setting, what was expected and what was found.
        """
        if self.temperature <= 0.0:
            raise ValueError(f"temperature: expected more than 0, found {self.temperature}.")
        if self.max_weight <= 1.0:
            raise ValueError(f"max_weight: expected more than 1, found {self.max_weight}.")


@dataclass(frozen=True)
class AWRSettings(Weighting):
    """What the policy's loss depends on besides parameters and data.

    Attributes:
        sigma: Fixed standard deviation of the policy, > 0.
    """

    sigma: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the setting, what was expected and what was found.
        """
        super().__post_init__()
        if self.sigma <= 0.0:
            raise ValueError(f"sigma: expected more than 0, found {self.sigma}.")


def value_loss(value: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of the value of each task (MACAW, Eq. 2).

    Args:
        value: V(s), [T, B].
        target: Monte-Carlo returns R(s, a), [T, B].

    Returns:
        [T].
    """
    return torch.square(value - target).mean(dim=-1)


def expectile_loss(value: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Return the asymmetric squared error of each task (IQL, Kostrikov et al., 2021, Eq. 5).

    |tau - 1(u < 0)| u^2 with u = target - value. Above one half the value is drawn to the upper end
    of the returns seen at a state; tau = 1/2 is half of ``value_loss``.

    Args:
        value: V(s), [T, B].
        target: Monte-Carlo returns, [T, B].
        expectile: tau, in (0, 1).

    Returns:
        [T].
    """
    # Positive where the value is too low. With tau > 1/2 such errors weigh more, so the value
    # settles above the mean return.
    error = target - value
    weight = torch.abs(expectile - (error < 0).to(error.dtype))
    return (weight * torch.square(error)).mean(dim=-1)


def td_lambda_return(
    return_to_go: Tensor,
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    *,
    discount: float,
    td_lambda: float,
) -> Tensor:
    """Return (1 - lambda) (r + gamma V(s')) + lambda R: a lambda-return of single transitions.

    The lambda-return obeys G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}) (Sutton and
    Barto, 2018, section 12.1, in recursive form). Transitions drawn one by one do not know
    G_{t+1}; here the observed return R_{t+1} stands for it. lambda = 0 is TD(0), 1 is Monte-Carlo.

    Args:
        return_to_go: R, [T, B].
        reward: r, [T, B].
        next_value: V(s'), [T, B]; after a truncated episode too.
        terminated: True where the environment ended the episode, so nothing follows, [T, B] bool.
        discount: gamma per step; must be the one that ``return_to_go`` was computed with.
        td_lambda: lambda, in [0, 1].

    Returns:
        [T, B].
    """
    # Only termination ends the sum of rewards. A truncated episode would have gone on, so V(s')
    # counts there.
    one_step = reward + discount * torch.where(terminated, 0.0, next_value)
    return (1.0 - td_lambda) * one_step + td_lambda * return_to_go


def gaussian_log_prob(action: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Return log N(action; mean, sigma^2 I), summed over action dimensions.

    Args:
        action: [..., A], for example [T, B, A].
        mean: Mean action of the policy, [..., A].
        sigma: Standard deviation of every dimension, > 0. MACAW's authors fix it at 0.2.

    Returns:
        [...], in nats.
    """
    # Constant while sigma is fixed. Kept so that logged losses are true nats, comparable between
    # action sizes and sigmas.
    normaliser = action.shape[-1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    return -0.5 * torch.square((action - mean) / sigma).sum(dim=-1) - normaliser


def advantage_weights(advantage: Tensor, settings: Weighting) -> Tensor:
    """Return the regression weights exp(advantage / T) of AWR (MACAW, Eq. 1).

    Args:
        advantage: R(s, a) - V(s), [T, B], without gradient.
        settings: Temperature, largest weight, and whether to standardise advantages first.

    Returns:
        [T, B], in (0, max_weight].
    """
    if settings.standardise_advantages:
        # Raw returns would overflow the exponent; the floor keeps equal advantages finite.
        deviation = advantage.std(dim=-1, keepdim=True).clamp_min(1e-6)
        advantage = (advantage - advantage.mean(dim=-1, keepdim=True)) / deviation
    # The exponent is clipped, not the weight: exp of a large advantage would be infinite.
    limit = math.log(settings.max_weight)
    return torch.exp((advantage / settings.temperature).clamp_max(limit))


def regression_loss(mean: Tensor, action: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Return the advantage-weighted regression of each task (MACAW, Eq. 1).

    Args:
        mean: Mean actions of the policy, [T, B, A].
        action: Actions to regress onto, [T, B, A].
        weight: Regression weights from ``advantage_weights``, [T, B].
        sigma: Standard deviation of the policy, > 0.

    Returns:
        [T], in nats.
    """
    return -(weight * gaussian_log_prob(action, mean, sigma)).mean(dim=-1)


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
    """Return R + gamma^k V(s_end), the return of an episode that is cut off k steps later.

    The authors' code uses it where the paper has the plain return; it bootstraps true ends too.

    Args:
        return_to_go: R, [T, B].
        terminal_value: V of the last observation of the transition's episode, [T, B].
        terminal_discount: gamma^k, [T, B].

    Returns:
        [T, B], with the gradient of ``terminal_value``.
    """
    return return_to_go + terminal_discount * terminal_value
