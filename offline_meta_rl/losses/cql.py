"""Conservative Q-learning's losses (Kumar et al., 2020), as The Reflective Explorer states them.

Section 3.7 and Eq. 3 of Rafailov et al. (2021), with the belief in place of the state: the critics
minimise half the squared TD error plus a weight times (Q of actions from a wide distribution - Q of
the data's actions); the backup is r + discount * Q(b', a') with a' ~ pi(b'), without entropy; the
actor maximises Q. Twin critics with targets and the smaller of the two, as every implementation has
them. Shapes: B rows, N sampled actions of a group, O/A observation (or belief) and action size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.networks.actors import constant, tanh_sample
from offline_meta_rl.networks.stacked import Layers, stacked_mlp

MAX_LOG_STD = 2.0


class CQLParameters(NamedTuple):
    """What is learned.

    Attributes:
        actor: One network of O -> 2 A, mean and log standard deviation before the tanh.
        critics: Two networks of O + A -> 1, the twins.
    """

    actor: Layers
    critics: Layers


@dataclass(frozen=True)
class Conservatism:
    """The conservative term of the critics' loss; the defaults are the paper's formula.

    Attributes:
        weight: Factor of the term, beta of Eq. 3. With 0 nothing is sampled for it: the paper's
            "No CQL".
        form: ``uniform``, the paper's E_{a ~ uniform} Q - E_data Q, or ``logsumexp``, CQL(H) of
            Kumar et al. (2020): log mean exp Q over uniform actions, pi(b)'s and pi(b')'s, all
            valued at b.
        temperature: t of t log mean exp (Q / t), more than 0; CQL(H) has 1. Where Q differs by less
            than 1 between actions, as with rewards of 0 and 1, the logarithm is hardly more than
            the mean. A smaller t gives the highest values more weight, as larger rewards would.
        num_actions: N, sampled actions in each group, at least 1.
        importance_weights: Subtract each action's log density inside ``logsumexp``. Off by default:
            the density of a nearly deterministic actor is so large that the term vanishes exactly
            at the actor's own actions.

    Raises:
        ValueError: a value out of its range.
    """

    weight: float = 1.0
    form: Literal["uniform", "logsumexp"] = "uniform"
    temperature: float = 1.0
    num_actions: int = 10
    importance_weights: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.form not in ("uniform", "logsumexp"):
            raise ValueError(f"form: expected uniform or logsumexp, found {self.form!r}.")
        check_at_least(self, 0, "weight")
        check_at_least(self, 1, "num_actions")
        if self.temperature <= 0.0:
            raise ValueError(f"temperature: expected more than 0, found {self.temperature}.")

    def group_sizes(self) -> tuple[int, int]:
        """Return how many uniform actions, and how many of pi(b) and of pi(b') each, are sampled.

        Nothing is sampled where nothing is used.
        """
        if self.weight == 0:
            return 0, 0
        return self.num_actions, self.num_actions if self.form == "logsumexp" else 0


@dataclass(frozen=True)
class CQLSettings:
    """What the losses depend on; the defaults are the paper's formulas.

    Attributes:
        discount: Per step, 0 to 1.
        conservatism: The conservative term.
        entropy_weight: Weight of the actor's log density in its loss, at least 0; the paper has 0.
        min_log_std: Floor of the logarithm of the actor's standard deviation, below 2.

    Raises:
        ValueError: a value out of its range.
    """

    discount: float = 0.99
    conservatism: Conservatism = Conservatism()
    entropy_weight: float = 0.0
    min_log_std: float = -20.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount: expected 0 to 1, found {self.discount}.")
        check_at_least(self, 0, "entropy_weight")
        if self.min_log_std >= MAX_LOG_STD:
            raise ValueError(
                f"min_log_std: expected less than {MAX_LOG_STD}, found {self.min_log_std}."
            )


class CQLNoise(NamedTuple):
    """All random numbers of one update.

    Attributes:
        backup: Standard normal [B, A], of a' ~ pi(b').
        actor: Standard normal [B, A], of the action that the actor's loss values.
        uniform: Actions [B, N, A], uniform in [-1, 1].
        policy: Standard normal [B, N, A], of the group from pi(b).
        following: Standard normal [B, N, A], of the group from pi(b').
    """

    backup: Tensor
    actor: Tensor
    uniform: Tensor
    policy: Tensor
    following: Tensor


def draw_cql_noise(
    shape: tuple[int, ...],
    conservatism: Conservatism,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> CQLNoise:
    """Draw the random numbers of one update, in a fixed order.

    Args:
        shape: Shape of the data's actions, [..., A].
        conservatism: How many actions are sampled; a group that is not used has N = 0.
        device: Device that the numbers are drawn on.
        dtype: Floating-point type of the numbers.
        generator: Source of randomness; None for the global state.

    Returns:
        Noise of every action of the update; shapes as in ``CQLNoise``.
    """
    *rows, size = shape
    uniform, policy = conservatism.group_sizes()
    normal = partial(torch.randn, device=device, dtype=dtype, generator=generator)
    backup, actor = normal(*rows, size), normal(*rows, size)
    share = torch.rand(*rows, uniform, size, device=device, dtype=dtype, generator=generator)
    following = [normal(*rows, policy, size) for _ in range(2)]
    return CQLNoise(backup, actor, 2.0 * share - 1.0, *following)


def actor_gaussian(actor: Layers, observation: Tensor, min_log_std: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the actions before the tanh, [B, A] each.

    Args:
        actor: One network of O -> 2 A.
        observation: [B, O].
        min_log_std: Floor of the logarithm of the standard deviation.
    """
    mean, log_std = stacked_mlp(actor, observation[None])[0].chunk(2, dim=-1)
    # Without an entropy term nothing but the floor keeps the actor from becoming deterministic. The
    # default bounds, -20 and 2, are those of soft actor-critic's code.
    return mean, log_std.clamp(min_log_std, MAX_LOG_STD).exp()


def values_of_actions(critics: Layers, observation: Tensor, actions: Tensor) -> Tensor:
    """Return both critics' values of M actions at each observation.

    The first layer's product with the observation is taken once, not once for each action.

    Args:
        critics: Two networks of O + A -> 1.
        observation: [B, O].
        actions: [B, M, A].

    Returns:
        [2, B, M].
    """
    # W [b; a] = W_b b + W_a a. All M actions of a row share b, so W_b b is taken once for each row.
    (weight, bias), *rest = critics
    num_rows, num_actions, _ = actions.shape
    size = observation.shape[-1]
    shared = torch.baddbmm(bias, observation.expand(2, -1, -1), weight[:, :size])
    own = torch.matmul(actions.flatten(0, 1), weight[:, size:])
    hidden = shared[:, :, None] + own.unflatten(1, (num_rows, num_actions))
    values = stacked_mlp(rest, torch.relu(hidden).flatten(1, 2))
    return values.view(2, num_rows, num_actions)


def conservative_actions(
    parameters: CQLParameters,
    batch: Mapping[str, Tensor],
    noise: CQLNoise,
    settings: CQLSettings,
) -> tuple[Tensor, Tensor]:
    """Return the sampled actions of all groups [B, M, A] and their log densities [B, M].

    Groups in order: uniform, pi(b), pi(b'), of those that the settings use.

    Args:
        parameters: Actor and critics.
        batch: observation and next_observation, [B, O].
        noise: Random numbers of this update.
        settings: Form of the conservative term, floor of the actor's deviation.
    """
    # mu of Eq. 3, the wide sampling distribution: uniform over [-1, 1]^A, of density 2^-A.
    actions = [noise.uniform]
    uniform_log_density = -math.log(2.0) * noise.uniform.shape[-1]
    densities = [torch.full_like(noise.uniform[..., 0], uniform_log_density)]
    groups = {"observation": noise.policy, "next_observation": noise.following}
    if settings.conservatism.form == "logsumexp":
        # CQL(H) adds the actor's own actions, at the observation and at the next one. Both are
        # valued at the observation, as in the code of CQL's authors.
        for name, normal in groups.items():
            mean, std = actor_gaussian(parameters.actor, batch[name], settings.min_log_std)
            action, density = tanh_sample(mean[:, None], std[:, None], normal)
            actions.append(action)
            densities.append(density)
    return torch.cat(actions, dim=1), torch.cat(densities, dim=1)


def conservative_penalty(
    sampled: Tensor, data: Tensor, log_density: Tensor, conservatism: Conservatism
) -> Tensor:
    """Return the conservative term of every row and critic, [2, B], without its weight.

    With ``logsumexp`` the number of actions is divided out, so that a constant Q costs nothing.

    Args:
        sampled: Q of the sampled actions, [2, B, M].
        data: Q of the data's action, [2, B].
        log_density: Log densities of the sampled actions, [B, M], in nats.
        conservatism: Form of the term, temperature, importance weights.
    """
    if conservatism.form == "uniform":
        # E_{a ~ mu} Q(b, a) - Q(b, a_data), the bracket of Eq. 3.
        return sampled.mean(dim=-1) - data
    exponent = sampled / conservatism.temperature
    if conservatism.importance_weights:
        # Importance sampling: dividing by the density makes the mean over samples an estimate of
        # the integral of exp Q over all actions.
        exponent = exponent - log_density
    mean = torch.logsumexp(exponent, dim=-1) - math.log(sampled.shape[-1])
    return conservatism.temperature * mean - data


def backup(
    parameters: CQLParameters,
    targets: Layers,
    batch: Mapping[str, Tensor],
    noise: Tensor,
    settings: CQLSettings,
) -> Tensor:
    """Return r + discount * min Q'(b', a') with a' ~ pi(b'); the reward alone at the end.

    Args:
        parameters: The actor that a' is drawn from.
        targets: The target critics Q'.
        batch: next_observation [B, O], reward [B], terminated [B] bool.
        noise: Standard normal, of a', [B, A].
        settings: Discount, floor of the actor's deviation.

    Returns:
        [B], in units of return.
    """
    following = batch["next_observation"]
    mean, std = actor_gaussian(parameters.actor, following, settings.min_log_std)
    action, _ = tanh_sample(mean, std, noise)
    # The smaller of the twins: one critic's errors that are too high would be maximised over.
    value = values_of_actions(targets, following, action[:, None])[..., 0].amin(dim=0)
    return batch["reward"] + settings.discount * torch.where(batch["terminated"], 0.0, value)


def cql_losses(
    parameters: CQLParameters,
    targets: Layers,
    batch: Mapping[str, Tensor],
    noise: CQLNoise,
    row_weight: Tensor,
    settings: CQLSettings,
) -> dict[str, Tensor]:
    """Return the losses of one update and what to log, as weighted sums over rows.

    Args:
        parameters: What is learned; the losses' gradients are of the actor through ``actor`` and of
            the critics through ``critic`` and ``penalty`` alone.
        targets: The target critics.
        batch: observation, next_observation [B, O], action [B, A], reward [B], terminated [B] bool.
        noise: All random numbers.
        row_weight: Weight of every row's loss, [B]; 1 / B for a mean.
        settings: Discount, conservative term, actor.

    Returns:
        ``critic`` (half the squared TD error, summed over the twins), ``penalty`` (likewise, times
        its weight; left out where that is 0), ``actor``: to be added. Detached: ``value`` (mean Q
        of the data's actions), ``policy_value`` (Q of the actor's), ``entropy`` (nats).
    """
    observation, data_action = batch["observation"], batch["action"][:, None]
    conservatism = settings.conservatism
    conservative = conservatism.weight > 0
    # The backup is a constant of Eq. 3's minimisation, and the sampled actions are given: the
    # conservative term must not move the actor.
    with torch.no_grad():
        aim = backup(parameters, targets, batch, noise.backup, settings)
        actions, density = data_action, data_action[..., 0]
        if conservative:
            sampled, density = conservative_actions(parameters, batch, noise, settings)
            actions = torch.cat([data_action, sampled], dim=1)
    # Data and sampled actions are valued in one call, the data's action first.
    values = values_of_actions(parameters.critics, observation, actions)
    data_value = values[..., 0]
    # Second line of Eq. 3, half the squared TD error.
    losses = {"critic": 0.5 * ((data_value - aim).square().sum(dim=0) * row_weight).sum()}
    if conservative:
        # First line of Eq. 3, times beta.
        penalty = conservative_penalty(values[..., 1:], data_value, density, conservatism)
        losses["penalty"] = conservatism.weight * (penalty.sum(dim=0) * row_weight).sum()

    action, log_density = tanh_sample(
        *actor_gaussian(parameters.actor, observation, settings.min_log_std), noise.actor
    )
    # Last formula of section 3.7: the actor maximises Q. The critics are constants of it, or they
    # would learn to please the actor.
    critics = constant(parameters.critics)
    policy_value = values_of_actions(critics, observation, action[:, None])[..., 0].amin(dim=0)
    actor = settings.entropy_weight * log_density - policy_value
    return losses | {
        "actor": (actor * row_weight).sum(),
        "value": (data_value.detach().mean(dim=0) * row_weight).sum(),
        "policy_value": (policy_value.detach() * row_weight).sum(),
        "entropy": -(log_density.detach() * row_weight).sum(),
    }
