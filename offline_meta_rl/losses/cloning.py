"""The losses of meta behaviour cloning, as functions of the meta-parameters and data.

MACAW's inner loop (Mitchell et al., 2021, Algorithm 1) with imitation in place of
advantage-weighted regression, inside and out. All tasks are one batch. Shapes: T tasks, B
transitions, D numbers of one generated layer, O/A observation/action size.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from offline_meta_rl.losses.awr import gaussian_log_prob
from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.generated import LayerParameters
from offline_meta_rl.networks.inner_loop import InnerLoop, adapt

Batch = Mapping[str, Tensor]
"""observation [T, B, O], action [T, B, A]."""


class CloningParameters(NamedTuple):
    """What the outer loop learns.

    Attributes:
        policy: Meta-parameters of the layers of body and action head.
        log_step_sizes: Logarithms of the inner step sizes, [layers, tensors]; see ``layer_kinds``.
    """

    policy: list[LayerParameters]
    log_step_sizes: Tensor


def cloning_loss(thetas: list[Tensor], batch: Batch, sigma: float) -> Tensor:
    """Return the mean of -log pi(a | s) over each task's transitions.

    Args:
        thetas: Generated layers of body and action head, [T, D] each.
        batch: Transitions to imitate, [T, B, ...].
        sigma: Fixed standard deviation of the policy, > 0.

    Returns:
        [T], in nats.
    """
    mean = networks.policy_forward(thetas, batch["observation"])
    return -gaussian_log_prob(batch["action"], mean, sigma).mean(dim=-1)


def cloning_inner_loop(
    parameters: CloningParameters,
    data: Batch,
    *,
    settings: InnerLoop,
    sigma: float,
) -> list[list[Tensor]]:
    """Adapt the policy to T tasks by imitating their data.

    Args:
        parameters: The meta-parameters.
        data: Transitions to adapt on, [T, B, ...].
        settings: Number of gradient steps, and whether second derivatives are kept.
        sigma: Fixed standard deviation of the policy, > 0.

    Returns:
        The generated layers after 0, 1, ..., ``num_steps`` steps, [T, D] each.
    """

    def loss(thetas: list[Tensor], _: int) -> Tensor:
        # ``adapt`` asks for the sum: row t of its gradient is then task t's own gradient.
        return cloning_loss(thetas, data, sigma).sum()

    return adapt(
        parameters.policy,
        parameters.log_step_sizes.exp(),
        loss,
        num_tasks=len(data["observation"]),
        num_steps=settings.num_steps,
        first_order=settings.first_order,
    )


def cloning_meta_loss(
    parameters: CloningParameters,
    inner: Batch,
    outer: Batch,
    task_weight: Tensor,
    *,
    settings: InnerLoop,
    sigma: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the imitation loss after adaptation, a sum over tasks, and what to log.

    Args:
        parameters: The meta-parameters.
        inner: Transitions to adapt on, [T, B, ...].
        outer: Transitions to imitate after adaptation, [T, B, ...].
        task_weight: Weight of each task's loss, [T].
        settings: Settings of the inner loop.
        sigma: Fixed standard deviation of the policy, > 0.

    Returns:
        The loss, [], and weighted means over tasks to log, [] each.
    """
    # Line 8 of MACAW's Algorithm 1, with imitation in place of advantage weighting.
    thetas = cloning_inner_loop(parameters, inner, settings=settings, sigma=sigma)
    # Only the loss after adaptation is trained (line 11). The one before is logged beside it, to
    # show how much adaptation gains.
    before, after = (cloning_loss(each, outer, sigma) for each in (thetas[0], thetas[-1]))
    metrics = {"policy_loss": after, "policy_loss_before": before}
    loss = (task_weight * after).sum()
    return loss, {name: (task_weight * each).sum().detach() for name, each in metrics.items()}
