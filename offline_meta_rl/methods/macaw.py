"""MACAW: meta actor-critic with advantage weighting (Mitchell et al., 2021).

Meta-training (Algorithm 1): every task takes a gradient step of its value function on Monte-Carlo
returns, then one of its policy on advantage-weighted regression enriched by a regression onto the
advantages; the meta-parameters are trained so that both are good *after* these steps, on other data
of the same tasks. Meta-testing (Algorithm 2) takes the same steps on a new task's data.

Constructor defaults are Algorithm 1 with the numbers of the authors' ``standard.json``. Where their
code departs from the paper there is an argument; ``configs/ablations/authors_code.yaml`` sets all.
"""

from dataclasses import fields
from functools import partial
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.finetuning.awr import AwrLearner
from offline_meta_rl.losses.macaw import Batch, MetaParameters, Settings, inner_loop, meta_loss
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.methods.checks import check_discount
from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.layers import TENSORS, LayerKind, log_parameter, make_stack
from offline_meta_rl.networks.meta_gradient import meta_gradient
from offline_meta_rl.networks.policy import BatchedPolicy

TERMINAL = ("terminal_observation", "terminal_discount")


class Macaw(MetaModule):
    """MACAW for continuous actions in [-1, 1].

    Args:
        observation_size: O.
        action_size: A.
        width: of every hidden layer.
        depth: hidden layers of policy body and value function.
        head_width: of the advantage head's hidden layer.
        latent_size: Z of every weight-transform layer; 0 for plain layers.
        layer: ``weight_transform``, or, for the ablations, ``plain`` or ``bias_transform`` (the
            authors' layer without weight transform); see ``layer_kinds``.
        match_parameters: widen the hidden layers of the other kinds until each network has as many
            parameters as with the weight transform ("Equal Params" of the paper's Figure 5).
        sigma: fixed standard deviation of the policy.
        temperature: T of Eq. 1.
        max_weight: largest advantage weight.
        standardise_advantages: per task and batch, before the exponent.
        num_inner_steps: gradient steps of the inner loop in meta-training.
        inner_policy_step: initial step size of the policy's tensors.
        inner_value_step: initial step size of the value function's tensors.
        advantage_coefficient: initial lambda of Eq. 3; 0 removes the enriched loss (MAML+AWR).
        policy_learning_rate: of Adam in the outer loop.
        value_learning_rate: of Adam in the outer loop.
        step_size_learning_rate: of Adam on the logarithms of step sizes and lambda; 0 keeps them.
        final_learning_rate: share of the three learning rates that is left at the trainer's
            ``max_steps``, reached linearly; 1 keeps them.
        first_order: ignore second derivatives.
        adapt_matrices: let the inner loop change M and c too (authors, and theta in Algorithm 1);
            False changes the latent codes only, as section 4.3 words it.
        value_target: what the value function and the advantages learn from: ``monte_carlo`` returns
            (Eq. 2), ``td_lambda`` (future work in the paper; ``functional.td_lambda_return``), or
            the upper ``expectile`` of the returns (as in IQL; ``functional.expectile_loss``).
        td_lambda: of ``td_lambda``; 0 is TD(0), 1 Monte-Carlo.
        expectile: of ``expectile``, above 0.5 for the upper end.
        discount: of ``td_lambda``; must be the data's.
        step_size_map: how a learned step size comes from its logarithm: ``exp``, or the authors'
            ``softplus``.
        bootstrap_advantage: authors: advantages use R + gamma^k V'(s_end) in place of R.
        bootstrap_outer_value: authors: so does the target of the outer value loss, with a target
            function one tenth of the way from V to V'.
        rectify_head_action: authors: the advantage head sees max(a, 0).
        split_inner_batch: authors: with several inner steps each sees its own part of the batch.
        divide_by_all_tasks: authors: outer losses are divided by the number of training tasks, not
            of the batch's tasks. (Adam hardly notices.)
        compile: compile the whole outer step; falls back to eager with a warning.
        compile_mode: of ``torch.compile``; ``reduce-overhead`` uses CUDA graphs.
        clip_gradient_norm: largest norm of the whole gradient; None for no clipping.
    """

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        width: int = 100,
        depth: int = 3,
        head_width: int = 32,
        latent_size: int = 100,
        layer: LayerKind = "weight_transform",
        match_parameters: bool = False,
        sigma: float = 0.2,
        temperature: float = 1.0,
        max_weight: float = 20.0,
        standardise_advantages: bool = True,
        num_inner_steps: int = 1,
        inner_policy_step: float = 1e-3,
        inner_value_step: float = 1e-3,
        advantage_coefficient: float = 1e-2,
        policy_learning_rate: float = 1e-4,
        value_learning_rate: float = 1e-5,
        step_size_learning_rate: float = 1e-3,
        final_learning_rate: float = 1.0,
        first_order: bool = False,
        adapt_matrices: bool = True,
        value_target: Literal["monte_carlo", "td_lambda", "expectile"] = "monte_carlo",
        td_lambda: float = 0.95,
        expectile: float = 0.7,
        discount: float = 0.99,
        step_size_map: Literal["exp", "softplus"] = "exp",
        bootstrap_advantage: bool = False,
        bootstrap_outer_value: bool = False,
        rectify_head_action: bool = False,
        split_inner_batch: bool = False,
        divide_by_all_tasks: bool = False,
        compile: bool = False,
        compile_mode: str = "default",
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        _check_settings(self.hparams)
        policy_sizes = partial(
            networks.policy_sizes,
            observation_size,
            action_size,
            depth=depth,
            head_width=head_width,
        )
        value_sizes = partial(networks.value_sizes, observation_size, depth=depth)
        stack = partial(
            make_stack,
            width=width,
            latent_size=latent_size,
            kind=layer,
            match_parameters=match_parameters,
        )
        self.policy, self.value = stack(policy_sizes), stack(value_sizes)
        self.policy_log_step_sizes = self.policy.log_step_sizes(inner_policy_step)
        self.value_log_step_sizes = self.value.log_step_sizes(inner_value_step)
        self.log_advantage_coefficient = log_parameter(max(advantage_coefficient, 1e-38))
        self.settings = self._settings()
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
        """Lines 4 to 12 of Algorithm 1, on all tasks of the batch at once."""
        parameters, weight = self.meta_parameters(), self.task_weight(batch)
        gradient, metrics = self._gradient(
            parameters, dict(batch["inner"]), dict(batch["outer"]), weight
        )
        return self.apply_gradients(parameters, gradient, metrics)

    def outer_gradient(
        self, parameters: MetaParameters, inner: Batch, outer: Batch, task_weight: Tensor
    ) -> tuple[MetaParameters, dict[str, Tensor]]:
        """Return the gradient of the outer loss in the meta-parameters, and what to log."""
        num_steps = self.hparams.num_inner_steps

        def loss(candidate: MetaParameters) -> tuple[Tensor, dict[str, Tensor]]:
            return meta_loss(
                candidate, inner, outer, task_weight, num_steps=num_steps, settings=self.settings
            )

        return meta_gradient(loss, parameters, num_tasks=len(task_weight), num_steps=num_steps)

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks (Algorithm 2).

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: gradient steps; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks, with generated weights.
        """
        adapted = inner_loop(
            self.meta_parameters(), dict(context), num_steps=num_steps, settings=self.settings
        )
        return BatchedPolicy.from_thetas(
            adapted.policy, self.hparams.observation_size, sigma=self.hparams.sigma
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
            context: as for ``adapt_tasks``.
            num_steps: gradient steps of the adaptation.
            parameters: what a task's agent fine-tunes: its generated weights ``theta``, or, as the
                authors, ``all``: a z, M and c of its own for every layer, a hundred times as much.
            policy_learning_rate: of Adam.
            value_learning_rate: of Adam.
            bootstrap_advantage: authors: advantages use R + gamma^k V(s_end) in place of R.
            temperature: T of Eq. 1; None for that of meta-training.
            compile: compile the losses; falls back to eager with a warning.

        Raises:
            ValueError: other ``parameters``, or ``all`` of layers without a weight transform.
        """
        self._check_fine_tuned(parameters)
        meta_parameters, settings, num_tasks = self.meta_parameters(), self.settings, len(context)
        adapted = inner_loop(meta_parameters, dict(context), num_steps=num_steps, settings=settings)
        thetas = (adapted.policy, adapted.value)
        layers: list[Any] = [[theta.expand(num_tasks, -1) for theta in part] for part in thetas]
        if parameters == "all":
            layered = (adapted.policy_layers, adapted.value_layers)
            layers = [[layer.parameters(num_tasks) for layer in part] for part in layered]
        return AwrLearner(
            *layers,
            observation_size=self.hparams.observation_size,
            policy_learning_rate=policy_learning_rate,
            value_learning_rate=value_learning_rate,
            bootstrap_advantage=bootstrap_advantage,
            sigma=self.hparams.sigma,
            temperature=self.hparams.temperature if temperature is None else temperature,
            max_weight=self.hparams.max_weight,
            standardise_advantages=self.hparams.standardise_advantages,
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
        """Return the outer losses after adaptation on ``context``, on other data of the tasks."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        return meta_loss(
            self.meta_parameters(),
            dict(context),
            dict(query),
            weight,
            num_steps=self.hparams.num_inner_steps,
            settings=self.settings,
        )[1]

    def task_weight(self, batch: TensorDict) -> Tensor:
        """Return the weight of each task's loss, [T]."""
        if self.hparams.divide_by_all_tasks:
            trainer: Any = self.trainer
            return torch.full_like(batch["weight"], 1.0 / len(trainer.datamodule.train_tasks))
        return super().task_weight(batch)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What the inner loop sees of a context."""
        fields = super().context_fields
        if self.hparams.bootstrap_advantage:
            fields += TERMINAL
        if self.hparams.value_target == "td_lambda":
            fields += ("reward", "next_observation", "terminated")
        return fields

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What the losses see of a batch."""
        fields = self.context_fields
        if self.hparams.bootstrap_outer_value and not self.hparams.bootstrap_advantage:
            fields += TERMINAL
        return fields

    def setup(self, stage: str) -> None:
        """Check the discount too, where it is used.

        Raises:
            ValueError: with what was expected, what was found and the fix.
        """
        super().setup(stage)
        trainer: Any = self.trainer
        if self.hparams.value_target == "td_lambda":
            check_discount(trainer.datamodule, self.hparams.discount)

    def configure_optimizers(self) -> Any:
        """One fused Adam; policy, value function and step sizes are its parameter groups."""
        steps = [self.policy_log_step_sizes, self.value_log_step_sizes]
        learning_rates = self.hparams
        groups = [
            {"params": self.policy.parameters(), "lr": learning_rates.policy_learning_rate},
            {"params": self.value.parameters(), "lr": learning_rates.value_learning_rate},
            {
                "params": [*steps, self.log_advantage_coefficient],
                "lr": learning_rates.step_size_learning_rate,
            },
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        return self.with_linear_decay(optimizer, learning_rates.final_learning_rate)

    def _settings(self) -> Settings:
        derived = {
            "enriched": self.hparams.advantage_coefficient > 0,
            "num_action_layers": networks.num_action_layers(self.hparams.depth),
        }
        names = {field.name for field in fields(Settings)} - set(derived)
        return Settings(**{name: self.hparams[name] for name in names}, **derived)


def _check_settings(settings: Any) -> None:
    """Refuse settings that do not go together.

    Raises:
        ValueError: names the settings and the fix.
    """
    if settings.bootstrap_outer_value and settings.num_inner_steps != 1:
        raise ValueError(
            f"bootstrap_outer_value is defined for one inner step, found num_inner_steps="
            f"{settings.num_inner_steps}. Set one of them back to its default."
        )
    bootstraps = settings.bootstrap_advantage or settings.bootstrap_outer_value
    if bootstraps and settings.value_target != "monte_carlo":
        raise ValueError(
            "bootstrap_advantage and bootstrap_outer_value are defined for value_target "
            f"monte_carlo, found {settings.value_target}. Set one of them back to its default."
        )
    if not settings.adapt_matrices and (settings.layer == "plain" or not settings.latent_size):
        raise ValueError(
            "adapt_matrices=false adapts latent codes alone; expected layers that have some, found "
            "plain layers. Set adapt_matrices back to true."
        )
    if not (0 <= settings.td_lambda <= 1 and 0 < settings.expectile < 1):
        raise ValueError(
            f"Expected td_lambda in [0, 1] and expectile in (0, 1), found {settings.td_lambda} and "
            f"{settings.expectile}."
        )
