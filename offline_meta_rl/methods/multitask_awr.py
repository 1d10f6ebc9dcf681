"""Offline multi-task training and fine-tuning by advantage-weighted regression (MT+FT).

A baseline of the MACAW paper (Mitchell et al., 2021, section 5): one policy and one value function
for all training tasks, told the task by a one-hot code; on a new task the code is zero and both
are fine-tuned with 20 steps of Adam. Constructor defaults are the authors' ``multitask_standard``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.losses.awr import AWRSettings
from offline_meta_rl.losses.multitask_awr import (
    ActorCritic,
    Adaptation,
    Batch,
    Bootstrap,
    MultitaskSettings,
    adapt_by_adam,
    losses,
)
from offline_meta_rl.methods.base import CONTEXT_FIELDS, MetaModule
from offline_meta_rl.networks.policy import BatchedPolicy
from offline_meta_rl.networks.stacked import HiddenLayers, StackedMLP, of_tasks


@dataclass(frozen=True)
class MultitaskOuterLoop:
    """How Adam trains both networks.

    Attributes:
        policy_learning_rate: Adam's learning rate of the policy.
        value_learning_rate: Adam's learning rate of the value function.
        final_learning_rate: Share of both that is left at the trainer's ``max_steps``, reached
            linearly; 1 keeps them.
    """

    policy_learning_rate: float = 1e-4
    value_learning_rate: float = 1e-5
    final_learning_rate: float = 1.0


class MultitaskAWR(MetaModule):
    """Multi-task AWR for continuous actions in [-1, 1]; adapts by fine-tuning.

    It trains on the outer batches. Both networks regress: the value function onto Monte-Carlo
    returns, the policy onto actions weighted by exp((R - V) / T).

    Args:
        observation_size: O.
        action_size: A.
        num_tasks: Tasks of the dataset, the length of the one-hot code.
        network: Hidden layers of policy and value function.
        awr: Settings of the policy's advantage-weighted regression.
        bootstrap: Where the authors bootstrap returns.
        outer: Learning rates of training.
        adaptation: Steps on a context.
        compile: Compile the training step; falls back to eager with a warning.
        compile_mode: The mode of ``torch.compile``.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "one_hot_tasks": "num_tasks",
        "width": "network.width",
        "depth": "network.depth",
        "sigma": "awr.sigma",
        "temperature": "awr.temperature",
        "max_weight": "awr.max_weight",
        "standardise_advantages": "awr.standardise_advantages",
        "bootstrap_advantage": "bootstrap.advantage",
        "bootstrap_value": "bootstrap.value",
        "policy_learning_rate": "outer.policy_learning_rate",
        "value_learning_rate": "outer.value_learning_rate",
        "final_learning_rate": "outer.final_learning_rate",
        "adaptation_steps": "adaptation.steps",
        "adaptation_policy_rate": "adaptation.policy_rate",
        "adaptation_value_rate": "adaptation.value_rate",
    }

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        num_tasks: int,
        network: HiddenLayers = HiddenLayers(width=100, depth=3),
        awr: AWRSettings = AWRSettings(),
        bootstrap: Bootstrap = Bootstrap(),
        outer: MultitaskOuterLoop = MultitaskOuterLoop(),
        adaptation: Adaptation = Adaptation(),
        compile: bool = False,
        compile_mode: str = "default",
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.observation_size, self.num_tasks = observation_size, num_tasks
        self.outer, self.adaptation = outer, adaptation
        self.adaptation_steps = adaptation.steps
        self.settings = MultitaskSettings(awr, bootstrap)
        inputs = observation_size + num_tasks
        self.policy = StackedMLP(1, network.sizes(inputs, action_size))
        self.value = StackedMLP(1, network.sizes(inputs, 1))
        self._gradient = self.compiled(self.gradient, compile, compile_mode)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What a context must hold; batches too."""
        if self.settings.bootstrap.advantage or self.settings.bootstrap.value:
            return (*CONTEXT_FIELDS, "terminal_observation", "terminal_discount")
        return CONTEXT_FIELDS

    def networks(self) -> ActorCritic:
        """Return the two networks as they are learned; their input ends with the code."""
        return ActorCritic(self.policy.layers(), self.value.layers())

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """Take one step of Adam on the transitions of all tasks of the batch.

        Args:
            batch: ``outer`` [T, B, ...]; ``task``, the index of each task, and ``weight``, [T].

        Returns:
            Weighted means over tasks to log, [] each.
        """
        parameters, weight = self.networks(), self.task_weight(batch)
        gradient, metrics = self._gradient(parameters, dict(batch["outer"]), batch["task"], weight)
        return self.apply_gradients(parameters, gradient, metrics)

    def gradient(
        self, parameters: ActorCritic, batch: Batch, task: Tensor, task_weight: Tensor
    ) -> tuple[ActorCritic, dict[str, Tensor]]:
        """Return the gradient of the loss in both networks, and what to log.

        Args:
            parameters: Both networks, as ``networks`` returns them.
            batch: Transitions of T tasks, [T, B].
            task: Index of each task, [T].
            task_weight: Weight of each task's loss, [T].
        """

        def loss(candidate: ActorCritic) -> tuple[Tensor, dict[str, Tensor]]:
            # Each task's code becomes part of its first bias: one batched product in place of wider
            # rows.
            told = self._of_tasks(candidate, len(task), task)
            return losses(told, batch, task_weight, self.settings)

        found: tuple[ActorCritic, dict[str, Tensor]] = torch.func.grad(loss, has_aux=True)(
            parameters
        )
        return found

    def adapt_tasks(self, context: TensorDict, num_steps: int = 20) -> BatchedPolicy:
        """Fine-tune on the contexts of T tasks, [T, B], with a code of zeros.

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: Steps of Adam; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks.
        """
        policy = self.fine_tuned(context, num_steps).policy
        biases = [bias[:, 0] for _, bias in policy]
        weights = [weight for weight, _ in policy]
        return BatchedPolicy(weights, biases, sigma=self.settings.awr.sigma)

    def fine_tuned(self, context: TensorDict, num_steps: int) -> ActorCritic:
        """Return both networks of T tasks after fine-tuning.

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: Steps of Adam on each network, >= 0.
        """
        return adapt_by_adam(
            # A new task has no code of its own: fine-tuning starts from a code of zeros.
            self._of_tasks(self.networks(), len(context), None),
            dict(context),
            num_steps=num_steps,
            adaptation=self.adaptation,
            settings=self.settings,
        )

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the losses on ``query`` [T, B] after fine-tuning on ``context`` [T, B]."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        tuned = self.fine_tuned(context, self.adaptation_steps)
        return losses(tuned, dict(query), weight, self.settings)[1]

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What the losses use."""
        return self.context_fields

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One fused Adam; policy and value function are its parameter groups."""
        groups = [
            {"params": self.policy.parameters(), "lr": self.outer.policy_learning_rate},
            {"params": self.value.parameters(), "lr": self.outer.value_learning_rate},
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        return self.with_linear_decay(optimizer, self.outer.final_learning_rate)

    def _of_tasks(self, networks: ActorCritic, num_tasks: int, task: Tensor | None) -> ActorCritic:
        size = self.observation_size
        return ActorCritic(*(of_tasks(layers, size, num_tasks, task) for layers in networks))
