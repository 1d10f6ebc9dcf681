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
        policy: Meta-parameters of the policy's layers, in the order of ``policy_sizes``.
        value: Meta-parameters of the value function's layers, in the order of ``value_sizes``.
        policy_step_sizes: Logarithms of the inner step sizes of each layer's (z, M, c),
            [layers, 3]; see ``inner_loop.adapt`` for other kinds of layers.
        value_step_sizes: The same for the value function.
        advantage_coefficient: Logarithm of lambda of Eq. 3, [].
    """

    policy: list[LayerParameters]
    value: list[LayerParameters]
    policy_step_sizes: Tensor
    value_step_sizes: Tensor
    advantage_coefficient: Tensor


class Adapted(NamedTuple):
    """The generated layers of T tasks after the inner loop; the policy without advantage head.

    Attributes:
        policy: Layers of body and action head, [T, D] each.
        value: Layers of the value function, [T, D] each.
        policy_layers: The policy's layers as each task's own (z, M, c).
        value_layers: The value function's layers as each task's own (z, M, c).
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
        parameters: The meta-parameters.
        inner: D^tr, the transitions to adapt on, [T, B, ...].
        outer: D^ts, other transitions of the same tasks, [T, B, ...].
        task_weight: Weight of each task's loss, [T].
        num_steps: Gradient steps of the inner loop.
        settings: Networks, inner loop and losses.

    Returns:
        The loss summed over tasks, [], and weighted means over tasks to log, [] each.
    """
    # Lines 7 and 8: phi'_i and theta'_i from D^tr.
    adapted = inner_loop(parameters, inner, num_steps=num_steps, settings=settings)
    # Line 10, Eq. 5: L_V of phi'_i on D^ts.
    target = _target(adapted.value, outer, settings)
    if settings.authors.bootstrap_outer_value:
        # The authors bootstrap from a value function that is mostly the meta-trained one.
        target = _bootstrap(_target_value(parameters, inner, settings), outer)
    value = networks.value_forward(adapted.value, outer["observation"])
    value_loss = _value_loss(value, target, settings)

    # Line 11, Eq. 6: L^AWR of theta'_i on D^ts, with advantages under phi'_i. Without lambda L^ADV:
    # the enriched loss is for the inner loop alone (section 4.2).
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
    # Lines 10 and 11 in one backward pass. Advantages are detached, so each loss has gradients in
    # its own network alone, and the sum has both.
    loss = (task_weight * (value_loss + policy_loss)).sum()
    return loss, {name: (task_weight * each).sum().detach() for name, each in metrics.items()}


def inner_loop(
    parameters: MetaParameters, data: Batch, *, num_steps: int, settings: MacawSettings
) -> Adapted:
    """Lines 7 and 8 of Algorithm 1; lines 5 and 6 of Algorithm 2, ``num_steps`` times.

    The value function takes all its steps first, which comes to the paper's order because they do
    not depend on the policy: step k of the policy uses the value function after k + 1 steps.

    Args:
        parameters: The meta-parameters theta, phi.
        data: D^tr or, when adapting, D; transitions of T tasks, [T, B, ...].
        num_steps: Gradient steps, >= 0.
        settings: Networks, inner loop and losses.

    Returns:
        The generated layers of T tasks, [T, D] each.
    """
    # Line 6: D^tr. One batch for all steps, unless the authors' variant splits it.
    batches = _step_batches(data, num_steps, settings)
    # Line 7 (Algorithm 2: line 5): phi' = phi - eta_1 grad L_V(phi, D^tr).
    values, value_layers = _adapt_value(parameters, batches, settings)
    advantages = [
        # R - V_phi'(s) under the adapted value function; values[0] is phi before any step.
        _advantage(value, batch, settings)
        for value, batch in zip(values[1:], batches, strict=True)
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
        # Eq. 3: L_pi = L^AWR + lambda L^ADV. From the gradient of L^AWR alone advantage and action
        # cannot be told apart (Theorem 1); with L^ADV they can (Theorem 2).
        if settings.inner.enriched:
            coefficient = settings.inner.positive(parameters.advantage_coefficient)
            loss = loss + coefficient * awr.advantage_loss(predicted, advantages[step])
        return loss.sum()

    # Line 8 (Algorithm 2: line 6): theta' = theta - alpha_1 grad L_pi(theta, phi', D^tr).
    policies, policy_layers = adapt_layers(
        parameters.policy,
        settings.inner.step_sizes(parameters.policy_step_sizes),
        policy_loss,
        num_tasks=len(data["observation"]),
        num_steps=num_steps,
        # The advantage head is not used after the last step, so that step does not update it.
        num_kept=settings.network.num_action_layers,
        first_order=settings.inner.first_order,
    )
    kept = settings.network.num_action_layers
    return Adapted(policies[-1][:kept], values[-1], policy_layers[:kept], value_layers)


def _step_batches(data: Batch, num_steps: int, settings: MacawSettings) -> list[Batch]:
    if not settings.authors.split_inner_batch:
        # Line 6 draws one D^tr, and section 4.1 takes "one or a few" steps on it.
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
        # The sum over tasks: row t of its gradient is task t's own gradient.
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
    # A target: neither loss is differentiated through it.
    terminal = networks.value_forward(value, batch["terminal_observation"])
    return awr.bootstrapped_return(
        batch["return_to_go"], terminal, batch["terminal_discount"]
    ).detach()


def _target(value: list[Tensor], batch: Batch, settings: MacawSettings) -> Tensor:
    """Return the value function's regression target, [T, B], without gradient."""
    # R_D(s, a) of Eq. 2. The paper avoids bootstrapping here: values would take many steps to
    # propagate, and there are only a few (section 4.1).
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
    # Weights and targets of the policy's losses, not a way to train phi: L_pi is differentiated in
    # theta alone (lines 8 and 11).
    return (returns - networks.value_forward(value, batch["observation"])).detach()


def _is_probed(node: object) -> bool:
    return isinstance(node, ProbedMatrix)


def _constant(tensor: Tensor | ProbedMatrix) -> Tensor:
    return tensor.matrix if isinstance(tensor, ProbedMatrix) else tensor.detach()
