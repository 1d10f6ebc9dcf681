"""MACAW: meta actor-critic with advantage weighting (Mitchell et al., 2021).

Meta-training (Algorithm 1): every task takes a gradient step of its value function on Monte-Carlo
returns, then one of its policy on advantage-weighted regression enriched by a regression onto the
advantages; the meta-parameters are trained so that both are good *after* these steps, on other data
of the same tasks. Meta-testing (Algorithm 2) takes the same steps on a new task's data.

Constructor defaults are Algorithm 1 with the numbers of the authors' ``standard.json``. Where their
code departs from the paper there is an argument; ``configs/ablations/authors_code.yaml`` sets all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.data.contracts import TaskData, attributes_of
from offline_meta_rl.finetuning.awr import AwrLearner
from offline_meta_rl.losses.awr import AWRSettings
from offline_meta_rl.losses.macaw import Batch, MetaParameters, inner_loop, meta_loss
from offline_meta_rl.losses.macaw_settings import (
    AuthorsVariants,
    MacawInnerLoop,
    MacawNetwork,
    MacawSettings,
    ValueTarget,
)
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.methods.checks import check_discount
from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.layers import TENSORS, log_parameter
from offline_meta_rl.networks.meta_gradient import meta_gradient
from offline_meta_rl.networks.policy import BatchedPolicy

TERMINAL = ("terminal_observation", "terminal_discount")


@dataclass(frozen=True)
class MacawOuterLoop:
    """How Adam trains the meta-parameters.

    Attributes:
        policy_learning_rate: alpha_2 of Algorithm 1, Adam's learning rate of the policy's layers.
        value_learning_rate: eta_2, Adam's learning rate of the value function's layers.
        step_size_learning_rate: Adam's learning rate of the logarithms of inner step sizes and
            lambda; 0 keeps them.
        final_learning_rate: Share of the three learning rates that is left at the trainer's
            ``max_steps``, reached linearly; 1 keeps them.
    """

    policy_learning_rate: float = 1e-4
    value_learning_rate: float = 1e-5
    step_size_learning_rate: float = 1e-3
    final_learning_rate: float = 1.0


class Macaw(MetaModule):
    """MACAW for continuous actions in [-1, 1].

    Args:
        observation_size: O.
        action_size: A.
        network: Size and kind of the layers of policy and value function.
        inner: The inner loop: steps, their initial sizes, the enriched loss.
        outer: Learning rates of the outer loop.
        awr: The advantage-weighted regression of inner and outer loop.
        target: What the value function learns from.
        authors: Where the authors' code departs from the paper.
        compile: Compile the whole outer step; falls back to eager with a warning.
        compile_mode: The mode of ``torch.compile``; ``reduce-overhead`` uses CUDA graphs.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "width": "network.width",
        "depth": "network.depth",
        "head_width": "network.head_width",
        "latent_size": "network.latent_size",
        "layer": "network.layer",
        "match_parameters": "network.match_parameters",
        "sigma": "awr.sigma",
        "temperature": "awr.temperature",
        "max_weight": "awr.max_weight",
        "standardise_advantages": "awr.standardise_advantages",
        "num_inner_steps": "inner.num_steps",
        "inner_policy_step": "inner.policy_step",
        "inner_value_step": "inner.value_step",
        "advantage_coefficient": "inner.advantage_coefficient",
        "first_order": "inner.first_order",
        "adapt_matrices": "inner.adapt_matrices",
        "step_size_map": "inner.step_size_map",
        "policy_learning_rate": "outer.policy_learning_rate",
        "value_learning_rate": "outer.value_learning_rate",
        "step_size_learning_rate": "outer.step_size_learning_rate",
        "final_learning_rate": "outer.final_learning_rate",
        "value_target": "target.kind",
        "td_lambda": "target.td_lambda",
        "expectile": "target.expectile",
        "discount": "target.discount",
        "bootstrap_advantage": "authors.bootstrap_advantage",
        "bootstrap_outer_value": "authors.bootstrap_outer_value",
        "rectify_head_action": "authors.rectify_head_action",
        "split_inner_batch": "authors.split_inner_batch",
        "divide_by_all_tasks": "authors.divide_by_all_tasks",
    }

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        network: MacawNetwork = MacawNetwork(),
        inner: MacawInnerLoop = MacawInnerLoop(),
        outer: MacawOuterLoop = MacawOuterLoop(),
        awr: AWRSettings = AWRSettings(),
        target: ValueTarget = ValueTarget(),
        authors: AuthorsVariants = AuthorsVariants(),
        compile: bool = False,
        compile_mode: str = "default",
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.observation_size, self.outer = observation_size, outer
        self.settings = MacawSettings(network, inner, awr, target, authors)
        policy_sizes = partial(
            networks.policy_sizes,
            observation_size,
            action_size,
            depth=network.depth,
            head_width=network.head_width,
        )
        value_sizes = partial(networks.value_sizes, observation_size, depth=network.depth)
        self.policy, self.value = network.stack(policy_sizes), network.stack(value_sizes)
        self.policy_log_step_sizes = self.policy.log_step_sizes(inner.policy_step)
        self.value_log_step_sizes = self.value.log_step_sizes(inner.value_step)
        # The logarithm of 0 is not finite; without the enriched loss lambda is never used.
        self.log_advantage_coefficient = log_parameter(max(inner.advantage_coefficient, 1e-38))
        self._gradient = self.compiled(self.outer_gradient, compile, compile_mode)

    def meta_parameters(self) -> MetaParameters:
        """Return everything the outer loop learns, in the structure of its gradient."""
        return MetaParameters(
            self.policy.layers(),
            self.value.layers(),
            self.policy_log_step_sizes,
            self.value_log_step_sizes,
            self.log_advantage_coefficient,
        )

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """Lines 5 to 11 of Algorithm 1, for all tasks of the batch at once.

        Args:
            batch: ``inner`` D^tr and ``outer`` D^ts, [T, B, ...] each; ``weight`` [T].

        Returns:
            Weighted means over tasks to log, [] each.
        """
        parameters, weight = self.meta_parameters(), self.task_weight(batch)
        # Lines 5 to 9 and the gradients of lines 10 and 11. D^tr and D^ts are line 6's disjoint
        # batches; the datamodule draws them.
        gradient, metrics = self._gradient(
            parameters, dict(batch["inner"]), dict(batch["outer"]), weight
        )
        # The steps of lines 10 and 11, with Adam in place of plain gradient descent, as the
        # authors.
        return self.apply_gradients(parameters, gradient, metrics)

    def outer_gradient(
        self, parameters: MetaParameters, inner: Batch, outer: Batch, task_weight: Tensor
    ) -> tuple[MetaParameters, dict[str, Tensor]]:
        """Return the gradient of the outer loss in the meta-parameters, and what to log.

        Args:
            parameters: The meta-parameters theta, phi, step sizes and lambda.
            inner: D^tr, [T, B, ...].
            outer: D^ts, [T, B, ...].
            task_weight: Weight of each task's loss, [T].
        """
        num_steps = self.settings.inner.num_steps

        def loss(candidate: MetaParameters) -> tuple[Tensor, dict[str, Tensor]]:
            return meta_loss(
                candidate, inner, outer, task_weight, num_steps=num_steps, settings=self.settings
            )

        # Assembled from factors: autograd would form every large matrix M once for each product.
        return meta_gradient(loss, parameters, num_tasks=len(task_weight), num_steps=num_steps)

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks: Algorithm 2, lines 3 to 7.

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: Gradient steps; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks, with generated weights.
        """
        adapted = inner_loop(
            self.meta_parameters(), dict(context), num_steps=num_steps, settings=self.settings
        )
        return BatchedPolicy.from_thetas(
            adapted.policy, self.observation_size, sigma=self.settings.awr.sigma
        )

    def fine_tuner(  # type: ignore[override] # its own keywords are the settings users may give
        self,
        context: TensorDict,
        num_steps: int = 1,
        *,
        parameters: Literal["theta", "all"] = "theta",
        policy_learning_rate: float = 1e-5,
        value_learning_rate: float = 1e-5,
        bootstrap_advantage: bool = True,
        temperature: float | None = None,
        compile: bool = False,
    ) -> AwrLearner:
        """Adapt to T tasks (Algorithm 2); return agents that go on by advantage weighting.

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: Gradient steps of the adaptation.
            parameters: What a task's agent fine-tunes: its generated weights ``theta``, or, as the
                authors, ``all``: a z, M and c of its own for every layer, a hundred times as much.
            policy_learning_rate: Adam's learning rate of the agents' policies.
            value_learning_rate: Adam's learning rate of their value functions.
            bootstrap_advantage: Advantages use R + gamma^k V(s_end), as the authors', not R.
            temperature: T of Eq. 1; None for that of meta-training.
            compile: Compile the losses; falls back to eager with a warning.

        Raises:
            ValueError: Other ``parameters``, or ``all`` of layers without a weight transform.
        """
        self._check_fine_tuned(parameters)
        adapted = inner_loop(
            self.meta_parameters(), dict(context), num_steps=num_steps, settings=self.settings
        )
        num_tasks, awr = len(context), self.settings.awr
        thetas = (adapted.policy, adapted.value)
        # Without a gradient step a layer is one row for all tasks; each agent needs its own.
        layers: list[Any] = [[theta.expand(num_tasks, -1) for theta in part] for part in thetas]
        if parameters == "all":
            layered = (adapted.policy_layers, adapted.value_layers)
            layers = [[layer.parameters(num_tasks) for layer in part] for part in layered]
        return AwrLearner(
            *layers,
            observation_size=self.observation_size,
            policy_learning_rate=policy_learning_rate,
            value_learning_rate=value_learning_rate,
            bootstrap_advantage=bootstrap_advantage,
            awr=awr if temperature is None else replace(awr, temperature=temperature),
            compile=compile,
        )

    def _check_fine_tuned(self, parameters: str) -> None:
        """Check which parameters are to be fine-tuned."""
        kinds = {"theta": TENSORS, "all": {"weight_transform"}}
        if self.policy.kind not in kinds.get(parameters, ()):
            raise ValueError(
                "parameters of the fine-tuning: expected theta, or all for layers of the kind "
                f"weight_transform; found {parameters} for layers of the kind {self.policy.kind}."
            )

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the outer losses on ``query`` [T, B] after adapting on ``context`` [T, B]."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        return meta_loss(
            self.meta_parameters(),
            dict(context),
            dict(query),
            weight,
            num_steps=self.settings.inner.num_steps,
            settings=self.settings,
        )[1]

    def task_weight(self, batch: TensorDict) -> Tensor:
        """Return the weight of each task's loss, [T]."""
        if self.settings.authors.divide_by_all_tasks:
            data = attributes_of(self.trainer).datamodule
            assert isinstance(data, TaskData)  # what a batch of tasks comes from
            # The authors divide by every training task, of which a batch holds only some.
            return torch.full_like(batch["weight"], 1.0 / len(data.train_tasks))
        return super().task_weight(batch)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What the inner loop sees of a context."""
        fields = super().context_fields
        if self.settings.authors.bootstrap_advantage:
            fields += TERMINAL
        if self.settings.target.kind == "td_lambda":
            fields += ("reward", "next_observation", "terminated")
        return fields

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What the losses see of a batch."""
        fields, authors = self.context_fields, self.settings.authors
        if authors.bootstrap_outer_value and not authors.bootstrap_advantage:
            fields += TERMINAL
        return fields

    def setup(self, stage: str) -> None:
        """Check the discount too, where it is used.

        Raises:
            ValueError: Says what was expected, what was found and the fix.
        """
        super().setup(stage)
        if self.settings.target.kind == "td_lambda":
            check_discount(attributes_of(self.trainer).datamodule, self.settings.target.discount)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One fused Adam; policy, value function and step sizes are its parameter groups."""
        steps = [self.policy_log_step_sizes, self.value_log_step_sizes]
        groups = [
            {"params": self.policy.parameters(), "lr": self.outer.policy_learning_rate},
            {"params": self.value.parameters(), "lr": self.outer.value_learning_rate},
            {
                "params": [*steps, self.log_advantage_coefficient],
                "lr": self.outer.step_size_learning_rate,
            },
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        return self.with_linear_decay(optimizer, self.outer.final_learning_rate)
