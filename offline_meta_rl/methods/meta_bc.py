"""Meta behaviour cloning: MACAW's policy and inner loop with imitation inside and out.

A baseline of the MACAW paper (Mitchell et al., 2021, section 5). There is no value function and no
advantage head; the rest is MACAW's: weight-transform layers, learned inner step sizes, second
derivatives. It imitates the data it is given, good or bad. Constructor defaults are the numbers of
the authors' ``standard.json``.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.losses import cloning as cloning_losses
from offline_meta_rl.losses.cloning import Batch, CloningParameters
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks import generated as networks
from offline_meta_rl.networks.layers import LayerKind, LayerStack
from offline_meta_rl.networks.meta_gradient import meta_gradient
from offline_meta_rl.networks.policy import BatchedPolicy


class MetaBehaviourCloning(MetaModule):
    """Meta behaviour cloning for continuous actions in [-1, 1].

    Args:
        observation_size: O.
        action_size: A.
        width: of every hidden layer.
        depth: hidden layers.
        latent_size: Z of every weight-transform layer; 0 for plain layers.
        layer: kind of every layer; see ``layer_kinds``.
        sigma: fixed standard deviation of the policy.
        num_inner_steps: gradient steps of the inner loop in meta-training.
        inner_policy_step: initial step size of every tensor.
        policy_learning_rate: of Adam in the outer loop.
        step_size_learning_rate: of Adam on the logarithms of step sizes; 0 keeps them.
        final_learning_rate: share of both learning rates that is left at the trainer's
            ``max_steps``, reached linearly; 1 keeps them.
        first_order: ignore second derivatives.
        compile: compile the whole outer step; falls back to eager with a warning.
        compile_mode: of ``torch.compile``.
        clip_gradient_norm: largest norm of the whole gradient; None for no clipping.
    """

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        width: int = 100,
        depth: int = 3,
        latent_size: int = 100,
        layer: LayerKind = "weight_transform",
        sigma: float = 0.2,
        num_inner_steps: int = 1,
        inner_policy_step: float = 1e-3,
        policy_learning_rate: float = 1e-4,
        step_size_learning_rate: float = 1e-3,
        final_learning_rate: float = 1.0,
        first_order: bool = False,
        compile: bool = False,
        compile_mode: str = "default",
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        sizes = networks.policy_sizes(observation_size, action_size, width, depth, head_width=0)
        num_layers = networks.num_action_layers(depth)
        self.policy = LayerStack(sizes[:num_layers], latent_size, layer)
        self.policy_log_step_sizes = self.policy.log_step_sizes(inner_policy_step)
        self._gradient = self.compiled(self.outer_gradient, compile, compile_mode)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What a context must hold; returns are not used."""
        return ("observation", "action")

    def meta_parameters(self) -> CloningParameters:
        """Return everything the outer loop learns, in the structure of its gradient."""
        return CloningParameters(self.policy.layers(), self.policy_log_step_sizes)

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """Adapt to every task by imitation and imitate other data of it."""
        parameters, weight = self.meta_parameters(), self.task_weight(batch)
        gradient, metrics = self._gradient(
            parameters, dict(batch["inner"]), dict(batch["outer"]), weight
        )
        return self.apply_gradients(parameters, gradient, metrics)

    def outer_gradient(
        self, parameters: CloningParameters, inner: Batch, outer: Batch, task_weight: Tensor
    ) -> tuple[CloningParameters, dict[str, Tensor]]:
        """Return the gradient of the outer loss in the meta-parameters, and what to log."""
        settings = self._settings()

        def loss(candidate: CloningParameters) -> tuple[Tensor, dict[str, Tensor]]:
            return cloning_losses.meta_loss(candidate, inner, outer, task_weight, **settings)

        num_steps = settings["num_steps"]
        return meta_gradient(loss, parameters, num_tasks=len(task_weight), num_steps=num_steps)

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Adapt to T tasks by imitating their contexts.

        Args:
            context: observation and action of each task, [T, B].
            num_steps: gradient steps; 0 for the policy before adaptation.

        Returns:
            The policies of the T tasks, with generated weights.
        """
        settings = self._settings() | {"num_steps": num_steps}
        thetas = cloning_losses.inner_loop(self.meta_parameters(), dict(context), **settings)
        return BatchedPolicy.from_thetas(
            thetas[-1], self.hparams.observation_size, sigma=self.hparams.sigma
        )

    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the imitation losses on other data of the tasks, before and after adaptation."""
        weight = torch.full((len(context),), 1.0 / len(context), device=self.device)
        return cloning_losses.meta_loss(
            self.meta_parameters(), dict(context), dict(query), weight, **self._settings()
        )[1]

    def configure_optimizers(self) -> Any:
        """One fused Adam; policy and step sizes are its parameter groups."""
        rates = self.hparams
        groups = [
            {"params": self.policy.parameters(), "lr": rates.policy_learning_rate},
            {"params": [self.policy_log_step_sizes], "lr": rates.step_size_learning_rate},
        ]
        return self.with_linear_decay(
            torch.optim.Adam(groups, fused=True), rates.final_learning_rate
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "num_steps": self.hparams.num_inner_steps,
            "sigma": self.hparams.sigma,
            "first_order": self.hparams.first_order,
        }
