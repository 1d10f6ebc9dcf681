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
        policy: layers of body and action head.
        log_step_sizes: logarithms of the inner step sizes, [layers, tensors]; see ``layer_kinds``.
    """

    policy: list[LayerParameters]
    log_step_sizes: Tensor


def cloning_loss(thetas: list[Tensor], batch: Batch, sigma: float) -> Tensor:
    """Return the mean of -log pi(a|s) of each task, [T], with layers [T, D]."""
    mean = networks.policy_forward(thetas, batch["observation"])
    return -gaussian_log_prob(batch["action"], mean, sigma).mean(dim=-1)


def cloning_inner_loop(
    parameters: CloningParameters,
    data: Batch,
    *,
    settings: InnerLoop,
    sigma: float,
) -> list[list[Tensor]]:
    """Return the policy's layers of T tasks after 0, 1, ... steps, [T, D] each."""

    def loss(thetas: list[Tensor], _: int) -> Tensor:
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
        parameters: the meta-parameters.
        inner: data to adapt on.
        outer: data to imitate after adaptation.
        task_weight: weight of each task's loss, [T].
        settings: of the inner loop.
        sigma: fixed standard deviation of the policy.
    """
    thetas = cloning_inner_loop(parameters, inner, settings=settings, sigma=sigma)
    before, after = (cloning_loss(each, outer, sigma) for each in (thetas[0], thetas[-1]))
    metrics = {"policy_loss": after, "policy_loss_before": before}
    loss = (task_weight * after).sum()
    return loss, {name: (task_weight * each).sum().detach() for name, each in metrics.items()}
