"""MACAW: meta actor-critic with advantage weighting (Mitchell et al., 2021).

Meta-training (Algorithm 1): every task takes a gradient step of its value function on Monte-Carlo
returns, then one of its policy on advantage-weighted regression enriched by a regression onto the
advantages; the meta-parameters are trained so that both are good *after* these steps, on other data
of the same tasks. Meta-testing (Algorithm 2) takes the same steps on a new task's data.

Constructor defaults are Algorithm 1 with the numbers of the authors' ``standard.json``. Where their
code departs from the paper there is an argument; ``configs/ablations/authors_code.yaml`` sets all.
"""

from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offline_meta_rl import functional, networks
from offline_meta_rl.inner import adapt
from offline_meta_rl.meta_gradient import meta_gradient
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks import BatchedPolicy, LayerParameters


class MetaParameters(NamedTuple):
    """Everything the outer loop learns."""

    policy: list[LayerParameters]
    value: list[LayerParameters]
    policy_step_sizes: Tensor
    value_step_sizes: Tensor
    advantage_coefficient: Tensor


class Adapted(NamedTuple):
    """The generated layers of T tasks after the inner loop; the policy without advantage head."""

    policy: list[Tensor]
    value: list[Tensor]


class Macaw(MetaModule):
    """MACAW for continuous actions in [-1, 1].

    Args:
        observation_size: O.
        action_size: A.
        width: of every hidden layer.
        depth: hidden layers of policy body and value function.
        head_width: of the advantage head's hidden layer.
        latent_size: Z of every weight-transform layer; 0 for ordinary layers.
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
        first_order: ignore second derivatives.
        adapt_matrices: let the inner loop change M and c too (authors, and theta in Algorithm 1);
            False changes the latent codes only, as section 4.3 words it.
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
        first_order: bool = False,
        adapt_matrices: bool = True,
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
        if bootstrap_outer_value and num_inner_steps != 1:
            raise ValueError(
                f"bootstrap_outer_value is defined for one inner step, found num_inner_steps="
                f"{num_inner_steps}. Set one of them back to its default."
            )
        sizes = networks.policy_sizes(observation_size, action_size, width, depth, head_width)
        self.policy = networks.WeightTransformStack(sizes, latent_size)
        sizes = networks.value_sizes(observation_size, width, depth)
        self.value = networks.WeightTransformStack(sizes, latent_size)
        self.policy_log_step_sizes = _log_parameter(inner_policy_step, len(self.policy), 3)
        self.value_log_step_sizes = _log_parameter(inner_value_step, len(self.value), 3)
        self.log_advantage_coefficient = _log_parameter(max(advantage_coefficient, 1e-38))
        self.enriched = advantage_coefficient > 0
        self.num_action_layers = networks.num_action_layers(depth)
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
        self,
        parameters: MetaParameters,
        inner: dict[str, Tensor],
        outer: dict[str, Tensor],
        task_weight: Tensor,
    ) -> tuple[MetaParameters, dict[str, Tensor]]:
        """Return the gradient of ``meta_loss`` in the meta-parameters, and what to log."""
        return meta_gradient(
            lambda candidate: self.meta_loss(candidate, inner, outer, task_weight),
            parameters,
            num_tasks=len(task_weight),
            num_steps=self.hparams.num_inner_steps,
        )

    def meta_loss(
        self,
        parameters: MetaParameters,
        inner: dict[str, Tensor],
        outer: dict[str, Tensor],
        task_weight: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss of both networks (Eqs. 5 and 6) and what to log.

        Args:
            parameters: the meta-parameters.
            inner: D^tr: observation [T, B, O], action [T, B, A], return_to_go [T, B]; for the
                bootstrapped variants terminal_observation [T, B, O], terminal_discount [T, B].
            outer: D^ts, likewise.
            task_weight: weight of each task's loss, [T].
        """
        adapted = self.inner_loop(parameters, inner, self.hparams.num_inner_steps)
        value_target = outer["return_to_go"]
        if self.hparams.bootstrap_outer_value:
            value_target = self._bootstrap(self._target_value(parameters, inner), outer)
        value = networks.value_forward(adapted.value, outer["observation"])
        value_loss = functional.value_loss(value, value_target)

        advantage = self._advantage(adapted.value, outer)
        mean = networks.policy_forward(adapted.policy, outer["observation"])
        weight = self._weights(advantage)
        policy_loss = self._awr_loss(mean, outer["action"], weight)

        loss = (task_weight * (value_loss + policy_loss)).sum()
        metrics = {
            "value_loss": (task_weight * value_loss).sum(),
            "policy_loss": (task_weight * policy_loss).sum(),
            "advantage": (task_weight * advantage.mean(dim=-1)).sum(),
            "weight_max": (task_weight * weight.amax(dim=-1)).sum(),
        }
        return loss, {name: value.detach() for name, value in metrics.items()}

    def inner_loop(
        self, parameters: MetaParameters, data: dict[str, Tensor], num_steps: int
    ) -> Adapted:
        """Lines 7 and 8 of Algorithm 1 (lines 5 and 6 of Algorithm 2, ``num_steps`` times).

        The value function takes its steps first, which is the paper's order because they do not
        depend on the policy: step k of the policy uses the value function after k + 1 steps.
        """
        batches = self._batches(data, num_steps)

        def policy_loss(thetas: list[Tensor], step: int) -> Tensor:
            batch = batches[step]
            mean, predicted = networks.two_headed_forward(
                thetas,
                batch["observation"],
                batch["action"],
                rectify_action=self.hparams.rectify_head_action,
            )
            loss = self._awr_loss(mean, batch["action"], self._weights(advantages[step]))
            if self.enriched:
                coefficient = self._positive(parameters.advantage_coefficient)
                loss = loss + coefficient * functional.advantage_loss(predicted, advantages[step])
            return loss.sum()

        values = self._adapt_value(parameters, batches, shrink=1.0)
        advantages = [
            self._advantage(after_step, batch)
            for after_step, batch in zip(values[1:], batches, strict=True)
        ]
        policies = adapt(
            parameters.policy,
            self._step_sizes(parameters.policy_step_sizes),
            policy_loss,
            num_tasks=len(data["observation"]),
            num_steps=num_steps,
            num_kept=self.num_action_layers,
            first_order=self.hparams.first_order,
        )
        return Adapted(policies[-1][: self.num_action_layers], values[-1])

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks (Algorithm 2).

        Args:
            context: observation, action, return_to_go of each task, [T, B].
            num_steps: gradient steps; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks, with generated weights.
        """
        adapted = self.inner_loop(self.meta_parameters(), dict(context), num_steps)
        return BatchedPolicy.from_thetas(
            adapted.policy, self.hparams.observation_size, sigma=self.hparams.sigma
        )

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the outer losses after adaptation on ``context``, on other data of the tasks."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        return self.meta_loss(self.meta_parameters(), dict(context), dict(query), weight)[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
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
        return torch.optim.Adam(groups, fused=True)

    def _positive(self, logarithm: Tensor) -> Tensor:
        exp = self.hparams.step_size_map == "exp"
        return torch.exp(logarithm) if exp else nn.functional.softplus(logarithm)

    def _step_sizes(self, logarithm: Tensor) -> Tensor:
        sizes = self._positive(logarithm)
        if self.hparams.adapt_matrices:
            return sizes
        return sizes * torch.tensor([1.0, 0.0, 0.0], device=sizes.device, dtype=sizes.dtype)

    def _batches(self, data: dict[str, Tensor], num_steps: int) -> list[dict[str, Tensor]]:
        if not self.hparams.split_inner_batch:
            return [data] * num_steps
        parts = {name: value.chunk(max(num_steps, 1), dim=1) for name, value in data.items()}
        return [{name: part[step] for name, part in parts.items()} for step in range(num_steps)]

    def _adapt_value(
        self, parameters: MetaParameters, batches: list[dict[str, Tensor]], *, shrink: float
    ) -> list[list[Tensor]]:
        def loss(thetas: list[Tensor], step: int) -> Tensor:
            value = networks.value_forward(thetas, batches[step]["observation"])
            return functional.value_loss(value, batches[step]["return_to_go"]).sum()

        return adapt(
            parameters.value,
            shrink * self._step_sizes(parameters.value_step_sizes),
            loss,
            num_tasks=len(batches[0]["observation"]) if batches else 1,
            num_steps=len(batches),
            first_order=self.hparams.first_order,
        )

    def _target_value(self, parameters: MetaParameters, data: dict[str, Tensor]) -> list[Tensor]:
        # 0.9 phi + 0.1 phi' after one step is one step of a tenth of the size. No gradient.
        constant = pytree.tree_map(_constant, parameters.value, is_leaf=_is_matrix)
        return self._adapt_value(parameters._replace(value=constant), [data], shrink=0.1)[-1]

    def _bootstrap(self, value: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
        terminal = networks.value_forward(value, batch["terminal_observation"])
        return functional.bootstrapped_return(
            batch["return_to_go"], terminal, batch["terminal_discount"]
        ).detach()

    def _advantage(self, value: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
        bootstrap = self.hparams.bootstrap_advantage
        returns = self._bootstrap(value, batch) if bootstrap else batch["return_to_go"]
        return (returns - networks.value_forward(value, batch["observation"])).detach()

    def _weights(self, advantage: Tensor) -> Tensor:
        return functional.advantage_weights(
            advantage,
            temperature=self.hparams.temperature,
            max_weight=self.hparams.max_weight,
            standardise=self.hparams.standardise_advantages,
        )

    def _awr_loss(self, mean: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        log_prob = functional.gaussian_log_prob(action, mean, self.hparams.sigma)
        return functional.awr_loss(log_prob, weight)


def _is_matrix(node: Any) -> bool:
    return isinstance(node, networks.ProbedMatrix)


def _constant(tensor: Tensor | networks.ProbedMatrix) -> Tensor:
    return tensor.matrix if isinstance(tensor, networks.ProbedMatrix) else tensor.detach()


def _log_parameter(value: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, value).log())
