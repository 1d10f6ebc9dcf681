"""Meta behaviour cloning: MACAW's policy and inner loop with imitation inside and out.

A baseline of the MACAW paper (Mitchell et al., 2021, section 5). There is no value function and no
advantage head; the rest is MACAW's: weight-transform layers, learned inner step sizes, second
derivatives. It imitates the data it is given, good or bad. Constructor defaults are the numbers of
the authors' ``standard.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.losses.cloning import (
    Batch,
    CloningParameters,
    cloning_inner_loop,
    cloning_meta_loss,
)
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.inner_loop import InnerLoop
from offline_meta_rl.networks.layers import GeneratedNetwork, Sizes
from offline_meta_rl.networks.meta_gradient import meta_gradient
from offline_meta_rl.networks.policy import BatchedPolicy


@dataclass(frozen=True)
class CloningOuterLoop:
    """How Adam trains the meta-parameters.

    Attributes:
        policy_learning_rate: Adam's learning rate of the policy's layers.
        step_size_learning_rate: Adam's learning rate of the logarithms of the inner step sizes; 0
            keeps them.
        final_learning_rate: Share of both learning rates that is left at the trainer's
            ``max_steps``, reached linearly; 1 keeps them.
    """

    policy_learning_rate: float = 1e-4
    step_size_learning_rate: float = 1e-3
    final_learning_rate: float = 1.0


class MetaBehaviourCloning(MetaModule):
    """Meta behaviour cloning for continuous actions in [-1, 1].

    Args:
        observation_size: O.
        action_size: A.
        network: Size and kind of the policy's layers.
        inner: Settings of the inner loop.
        outer: Learning rates of the outer loop.
        sigma: Fixed standard deviation of the policy, > 0.
        compile: Compile the whole outer step; falls back to eager with a warning.
        compile_mode: The mode of ``torch.compile``.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "width": "network.width",
        "depth": "network.depth",
        "latent_size": "network.latent_size",
        "layer": "network.layer",
        "num_inner_steps": "inner.num_steps",
        "inner_policy_step": "inner.policy_step",
        "first_order": "inner.first_order",
        "policy_learning_rate": "outer.policy_learning_rate",
        "step_size_learning_rate": "outer.step_size_learning_rate",
        "final_learning_rate": "outer.final_learning_rate",
    }

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        network: GeneratedNetwork = GeneratedNetwork(),
        inner: InnerLoop = InnerLoop(),
        outer: CloningOuterLoop = CloningOuterLoop(),
        sigma: float = 0.2,
        compile: bool = False,
        compile_mode: str = "default",
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.observation_size, self.sigma = observation_size, sigma
        self.inner, self.outer = inner, outer
        num_layers = network.num_action_layers  # no advantage head

        def sizes(width: int) -> Sizes:
            depth = network.depth
            return networks.policy_sizes(observation_size, action_size, width, depth, 0)[
                :num_layers
            ]

        self.policy = network.stack(sizes)
        self.policy_log_step_sizes = self.policy.log_step_sizes(inner.policy_step)
        self._gradient = self.compiled(self.outer_gradient, compile, compile_mode)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What a context must hold; returns are not used."""
        return ("observation", "action")

    def meta_parameters(self) -> CloningParameters:
        """Return everything the outer loop learns, in the structure of its gradient."""
        return CloningParameters(self.policy.layers(), self.policy_log_step_sizes)

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """Take one outer step on all tasks of the batch: MACAW's Algorithm 1 with imitation.

        Args:
            batch: ``inner`` and ``outer``, observation and action [T, B, ...]; ``weight`` [T].

        Returns:
            Weighted means over tasks to log, [] each.
        """
        parameters, weight = self.meta_parameters(), self.task_weight(batch)
        gradient, metrics = self._gradient(
            parameters, dict(batch["inner"]), dict(batch["outer"]), weight
        )
        return self.apply_gradients(parameters, gradient, metrics)

    def outer_gradient(
        self, parameters: CloningParameters, inner: Batch, outer: Batch, task_weight: Tensor
    ) -> tuple[CloningParameters, dict[str, Tensor]]:
        """Return the gradient of the outer loss in the meta-parameters, and what to log.

        Args:
            parameters: The meta-parameters.
            inner: Transitions to adapt on, [T, B, ...].
            outer: Transitions to imitate after adaptation, [T, B, ...].
            task_weight: Weight of each task's loss, [T].
        """

        def loss(candidate: CloningParameters) -> tuple[Tensor, dict[str, Tensor]]:
            return cloning_meta_loss(
                candidate, inner, outer, task_weight, settings=self.inner, sigma=self.sigma
            )

        num_steps = self.inner.num_steps
        # Assembled from factors: autograd would form every large matrix M once for each product.
        return meta_gradient(loss, parameters, num_tasks=len(task_weight), num_steps=num_steps)

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks by imitating their contexts.

        Args:
            context: observation and action of each task, [T, B].
            num_steps: Gradient steps; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks, with generated weights.
        """
        thetas = cloning_inner_loop(
            self.meta_parameters(),
            dict(context),
            settings=replace(self.inner, num_steps=num_steps),
            sigma=self.sigma,
        )
        return BatchedPolicy.from_thetas(thetas[-1], self.observation_size, sigma=self.sigma)

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return imitation losses on ``query`` [T, B], before and after adapting on ``context``."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        return cloning_meta_loss(
            self.meta_parameters(),
            dict(context),
            dict(query),
            weight,
            settings=self.inner,
            sigma=self.sigma,
        )[1]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One fused Adam; policy and step sizes are its parameter groups."""
        groups = [
            {"params": self.policy.parameters(), "lr": self.outer.policy_learning_rate},
            {"params": [self.policy_log_step_sizes], "lr": self.outer.step_size_learning_rate},
        ]
        return self.with_linear_decay(
            torch.optim.Adam(groups, fused=True), self.outer.final_learning_rate
        )
