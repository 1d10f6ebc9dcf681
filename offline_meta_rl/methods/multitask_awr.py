"""Offline multi-task training and fine-tuning by advantage-weighted regression (MT+FT).

A baseline of the MACAW paper (Mitchell et al., 2021, section 5): one policy and one value function
for all training tasks, told the task by a one-hot code; on a new task the code is zero and both
are fine-tuned with 20 steps of Adam. Constructor defaults are the authors' ``multitask_standard``.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.losses import awr as awr_losses
from offline_meta_rl.losses.awr import ActorCritic, ActorCriticSettings, Batch
from offline_meta_rl.methods.base import CONTEXT_FIELDS, MetaModule
from offline_meta_rl.methods.checks import check_one_hot_tasks
from offline_meta_rl.networks.policy import BatchedPolicy
from offline_meta_rl.networks.stacked import StackedMLP, of_tasks


class MultitaskAWR(MetaModule):
    """Multi-task AWR for continuous actions in [-1, 1]; adapts by fine-tuning.

    It trains on the outer batches. Both networks regress: the value function onto Monte-Carlo
    returns, the policy onto actions weighted by exp((R - V) / T).

    Args:
        observation_size: O.
        action_size: A.
        one_hot_tasks: number of the dataset's tasks, the length of the code.
        width: of every hidden layer.
        depth: hidden layers of policy and value function.
        sigma: fixed standard deviation of the policy.
        temperature: T.
        max_weight: largest advantage weight.
        standardise_advantages: per task and batch, before the exponent.
        bootstrap_advantage: authors: advantages use R + gamma^k V(s_end) in place of R, with the
            last observation of the transition's episode.
        bootstrap_value: authors, in the variant ``multitask``: so does the value function's target.
        policy_learning_rate: of Adam in training.
        value_learning_rate: of Adam in training.
        final_learning_rate: share of both that is left at the trainer's ``max_steps``, reached
            linearly; 1 keeps them.
        adaptation_steps: steps of Adam on a context; for held-out losses, ``adapt`` and
            ``predict``. Evaluate has its own numbers of steps.
        adaptation_policy_rate: learning rate of Adam on a context.
        adaptation_value_rate: learning rate of Adam on a context.
        compile: compile the training step; falls back to eager with a warning.
        compile_mode: of ``torch.compile``.
        clip_gradient_norm: largest norm of the whole gradient; None for no clipping.
    """

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        one_hot_tasks: int,
        width: int = 100,
        depth: int = 3,
        sigma: float = 0.2,
        temperature: float = 1.0,
        max_weight: float = 20.0,
        standardise_advantages: bool = True,
        bootstrap_advantage: bool = False,
        bootstrap_value: bool = False,
        policy_learning_rate: float = 1e-4,
        value_learning_rate: float = 1e-5,
        final_learning_rate: float = 1.0,
        adaptation_steps: int = 20,
        adaptation_policy_rate: float = 1e-3,
        adaptation_value_rate: float = 1e-5,
        compile: bool = False,
        compile_mode: str = "default",
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.adaptation_steps = adaptation_steps
        hidden = [observation_size + one_hot_tasks, *[width] * depth]
        self.policy = StackedMLP(1, [*hidden, action_size])
        self.value = StackedMLP(1, [*hidden, 1])
        self.settings = ActorCriticSettings(
            sigma,
            temperature,
            max_weight,
            standardise_advantages,
            bootstrap_advantage,
            bootstrap_value,
        )
        self._gradient = self.compiled(self.gradient, compile, compile_mode)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What a context must hold; batches too."""
        if self.settings.bootstrap_advantage or self.settings.bootstrap_value:
            return (*CONTEXT_FIELDS, "terminal_observation", "terminal_discount")
        return CONTEXT_FIELDS

    def networks(self) -> ActorCritic:
        """Return the two networks as they are learned; their input ends with the code."""
        return ActorCritic(self.policy.layers(), self.value.layers())

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One step of Adam on the transitions of all tasks of the batch."""
        parameters, weight = self.networks(), self.task_weight(batch)
        gradient, metrics = self._gradient(parameters, dict(batch["outer"]), batch["task"], weight)
        return self.apply_gradients(parameters, gradient, metrics)

    def gradient(
        self, parameters: ActorCritic, batch: Batch, task: Tensor, task_weight: Tensor
    ) -> tuple[ActorCritic, dict[str, Tensor]]:
        """Return the gradient of the loss in both networks, and what to log.

        Args:
            parameters: as ``networks`` returns them.
            batch: transitions of T tasks, [T, B].
            task: index of each task, [T].
            task_weight: weight of each task's loss, [T].
        """

        def loss(candidate: ActorCritic) -> tuple[Tensor, dict[str, Tensor]]:
            told = self._of_tasks(candidate, len(task), task)
            return awr_losses.losses(told, batch, task_weight, self.settings)

        found: tuple[ActorCritic, dict[str, Tensor]] = torch.func.grad(loss, has_aux=True)(
            parameters
        )
        return found

    def adapt_tasks(self, context: TensorDict, num_steps: int = 20) -> BatchedPolicy:
        """Fine-tune on the contexts of T tasks, [T, B], with a code of zeros.

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: steps of Adam; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks.
        """
        policy = self.fine_tuned(context, num_steps).policy
        biases = [bias[:, 0] for _, bias in policy]
        return BatchedPolicy([weight for weight, _ in policy], biases, sigma=self.hparams.sigma)

    def fine_tuned(self, context: TensorDict, num_steps: int) -> ActorCritic:
        """Return both networks of T tasks after so many steps of Adam on their contexts."""
        return awr_losses.fine_tune(
            self._of_tasks(self.networks(), len(context), None),
            dict(context),
            num_steps=num_steps,
            policy_learning_rate=self.hparams.adaptation_policy_rate,
            value_learning_rate=self.hparams.adaptation_value_rate,
            settings=self.settings,
        )

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the losses after fine-tuning on ``context``, on other data of the tasks."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        tuned = self.fine_tuned(context, self.adaptation_steps)
        return awr_losses.losses(tuned, dict(query), weight, self.settings)[1]

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What the losses use."""
        return self.context_fields

    def setup(self, stage: str) -> None:
        """Check the number of tasks too.

        Raises:
            ValueError: the data has another number of tasks.
        """
        super().setup(stage)
        trainer: Any = self.trainer
        datamodule = getattr(trainer, "datamodule", None)
        check_one_hot_tasks(datamodule, self.hparams.one_hot_tasks)

    def configure_optimizers(self) -> Any:
        """One fused Adam; policy and value function are its parameter groups."""
        groups = [
            {"params": self.policy.parameters(), "lr": self.hparams.policy_learning_rate},
            {"params": self.value.parameters(), "lr": self.hparams.value_learning_rate},
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        return self.with_linear_decay(optimizer, self.hparams.final_learning_rate)

    def _of_tasks(self, networks: ActorCritic, num_tasks: int, task: Tensor | None) -> ActorCritic:
        size = self.hparams.observation_size
        return ActorCritic(*(of_tasks(layers, size, num_tasks, task) for layers in networks))
