"""The losses of MACAW's inner and outer loop, as functions of the meta-parameters and data.

Mitchell et al., 2021: Algorithms 1 and 2, Eqs. 1 to 6. No Lightning, no state: ``methods/macaw.py``
is the module around it. All tasks are one batch. Shapes: T tasks, B transitions, D numbers of one
generated layer, O/A observation/action size.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.losses import awr
from offline_meta_rl.losses.macaw_settings import MacawSettings
from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.generated import LayerParameters, ProbedMatrix
from offline_meta_rl.networks.inner_loop import AdaptedLayer, adapt_layers

Batch = Mapping[str, Tensor]
"""observation [T, B, O], action [T, B, A], return_to_go [T, B]; where advantages or targets are
bootstrapped also terminal_observation [T, B, O] and terminal_discount [T, B]; for ``td_lambda``
also reward [T, B], next_observation [T, B, O] and terminated [T, B] (bool)."""


class MetaParameters(NamedTuple):
    """Everything the outer loop learns; the last three as logarithms.

    Attributes:
        policy: layers of ``networks.policy_sizes``.
        value: layers of ``networks.value_sizes``.
        policy_step_sizes: [layers, 3], of (z, M, c); see ``inner.adapt`` for other layers.
        value_step_sizes: the same.
        advantage_coefficient: lambda of Eq. 3, [].
    """

    policy: list[LayerParameters]
    value: list[LayerParameters]
    policy_step_sizes: Tensor
    value_step_sizes: Tensor
    advantage_coefficient: Tensor


class Adapted(NamedTuple):
    """The generated layers of T tasks after the inner loop; the policy without advantage head.

    The last two hold the same layers as (z, M, c) of each task.
    """

    policy: list[Tensor]
    value: list[Tensor]
    policy_layers: list[AdaptedLayer]
    value_layers: list[AdaptedLayer]


def meta_loss(
    parameters: MetaParameters,
    inner: Batch,
    outer: Batch,
    task_weight: Tensor,
    *,
    num_steps: int,
    settings: MacawSettings,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outer loss of both networks (Eqs. 5 and 6) and what to log.

    Args:
        parameters: the meta-parameters.
        inner: D^tr.
        outer: D^ts.
        task_weight: weight of each task's loss, [T].
        num_steps: gradient steps of the inner loop.
        settings: of the losses.
    """
    adapted = inner_loop(parameters, inner, num_steps=num_steps, settings=settings)
    target = _target(adapted.value, outer, settings)
    if settings.authors.bootstrap_outer_value:
        target = _bootstrap(_target_value(parameters, inner, settings), outer)
    value = networks.value_forward(adapted.value, outer["observation"])
    value_loss = _value_loss(value, target, settings)

    advantage = _advantage(adapted.value, outer, settings)
    mean = networks.policy_forward(adapted.policy, outer["observation"])
    weight = awr.advantage_weights(advantage, settings.awr)
    policy_loss = awr.regression_loss(mean, outer["action"], weight, settings.awr.sigma)

    metrics = {
        "value_loss": value_loss,
        "policy_loss": policy_loss,
        "advantage": advantage.mean(dim=-1),
        "weight_max": weight.amax(dim=-1),
    }
    loss = (task_weight * (value_loss + policy_loss)).sum()
    return loss, {name: (task_weight * each).sum().detach() for name, each in metrics.items()}


def inner_loop(
    parameters: MetaParameters, data: Batch, *, num_steps: int, settings: MacawSettings
) -> Adapted:
    """Lines 7 and 8 of Algorithm 1; lines 5 and 6 of Algorithm 2, ``num_steps`` times.

    The value function takes all its steps first, which comes to the paper's order because they do
    not depend on the policy: step k of the policy uses the value function after k + 1 steps.
    """
    batches = _step_batches(data, num_steps, settings)
    values, value_layers = _adapt_value(parameters, batches, settings)
    advantages = [
        _advantage(value, batch, settings) for value, batch in zip(values[1:], batches, strict=True)
    ]

    def policy_loss(thetas: list[Tensor], step: int) -> Tensor:
        batch = batches[step]
        mean, predicted = networks.two_headed_forward(
            thetas,
            batch["observation"],
            batch["action"],
            rectify_action=settings.authors.rectify_head_action,
        )
        weight = awr.advantage_weights(advantages[step], settings.awr)
        loss = awr.regression_loss(mean, batch["action"], weight, settings.awr.sigma)
        if settings.inner.enriched:  # Eq. 3
            coefficient = settings.inner.positive(parameters.advantage_coefficient)
            loss = loss + coefficient * awr.advantage_loss(predicted, advantages[step])
        return loss.sum()

    policies, policy_layers = adapt_layers(
        parameters.policy,
        settings.inner.step_sizes(parameters.policy_step_sizes),
        policy_loss,
        num_tasks=len(data["observation"]),
        num_steps=num_steps,
        num_kept=settings.network.num_action_layers,
        first_order=settings.inner.first_order,
    )
    kept = settings.network.num_action_layers
    return Adapted(policies[-1][:kept], values[-1], policy_layers[:kept], value_layers)


def _step_batches(data: Batch, num_steps: int, settings: MacawSettings) -> list[Batch]:
    if not settings.authors.split_inner_batch:
        return [data] * num_steps
    parts = {name: value.chunk(max(num_steps, 1), dim=1) for name, value in data.items()}
    return [{name: part[step] for name, part in parts.items()} for step in range(num_steps)]


def _adapt_value(
    parameters: MetaParameters,
    batches: list[Batch],
    settings: MacawSettings,
    *,
    shrink: float = 1.0,
) -> tuple[list[list[Tensor]], list[AdaptedLayer]]:
    """Return the value function's layers after 0, 1, ... steps of ``shrink`` times their size."""

    def loss(thetas: list[Tensor], step: int) -> Tensor:
        value = networks.value_forward(thetas, batches[step]["observation"])
        return _value_loss(value, _target(thetas, batches[step], settings), settings).sum()

    return adapt_layers(
        parameters.value,
        shrink * settings.inner.step_sizes(parameters.value_step_sizes),
        loss,
        num_tasks=len(batches[0]["observation"]) if batches else 1,
        num_steps=len(batches),
        first_order=settings.inner.first_order,
    )


def _target_value(parameters: MetaParameters, data: Batch, settings: MacawSettings) -> list[Tensor]:
    # 0.9 phi + 0.1 phi' after one step is one step of a tenth of the size. No gradient.
    constant = pytree.tree_map(_constant, parameters.value, is_leaf=_is_probed)
    return _adapt_value(parameters._replace(value=constant), [data], settings, shrink=0.1)[0][-1]


def _bootstrap(value: list[Tensor], batch: Batch) -> Tensor:
    terminal = networks.value_forward(value, batch["terminal_observation"])
    return awr.bootstrapped_return(
        batch["return_to_go"], terminal, batch["terminal_discount"]
    ).detach()


def _target(value: list[Tensor], batch: Batch, settings: MacawSettings) -> Tensor:
    """Return what the value function regresses onto, [T, B], a constant for all gradients."""
    if settings.target.kind != "td_lambda":
        return batch["return_to_go"]
    return awr.td_lambda_return(
        batch["return_to_go"],
        batch["reward"],
        networks.value_forward(value, batch["next_observation"]).detach(),
        batch["terminated"],
        discount=settings.target.discount,
        td_lambda=settings.target.td_lambda,
    )


def _value_loss(value: Tensor, target: Tensor, settings: MacawSettings) -> Tensor:
    if settings.target.kind == "expectile":
        return awr.expectile_loss(value, target, settings.target.expectile)
    return awr.value_loss(value, target)


def _advantage(value: list[Tensor], batch: Batch, settings: MacawSettings) -> Tensor:
    bootstrap = settings.authors.bootstrap_advantage
    returns = _bootstrap(value, batch) if bootstrap else _target(value, batch, settings)
    return (returns - networks.value_forward(value, batch["observation"])).detach()


def _is_probed(node: object) -> bool:
    return isinstance(node, ProbedMatrix)


def _constant(tensor: Tensor | ProbedMatrix) -> Tensor:
    return tensor.matrix if isinstance(tensor, ProbedMatrix) else tensor.detach()
