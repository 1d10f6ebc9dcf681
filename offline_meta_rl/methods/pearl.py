"""Offline PEARL: a policy conditioned on a latent task variable inferred from a context.

Rakelly et al., 2019 (arXiv 1903.08254), with the offline change of the MACAW paper (section 5): the
replay buffers are fixed datasets. Meta-training (Algorithm 1), for all tasks of a batch at once:
infer q(z | c) from the inner batch, sample z, and train critics, value function and actor on the
outer batch with z as a further input; the encoder learns from the critics' loss and from a
divergence to the prior. Adapting (Algorithm 2) takes no gradient: the policy is given the posterior
mean of z on the context, or the prior mean before adaptation.

Constructor defaults are the paper's algorithm with the numbers of the authors' code. Offline, the
actor leaves the data and the critics extrapolate; ``behaviour_weight`` ties it to the data.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDict
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.finetuning.pearl import FIELDS, PearlLearner
from offline_meta_rl.losses.pearl import (
    PearlNoise,
    PearlParameters,
    PearlSettings,
    pearl_losses,
    total_loss,
)
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks.actors import polyak, with_target
from offline_meta_rl.networks.context_encoder import (
    ContextEncoder,
    Gaussians,
    context_rows,
    posterior,
)
from offline_meta_rl.networks.policy import BatchedPolicy
from offline_meta_rl.networks.stacked import HiddenLayers, StackedMLP


class Pearl(MetaModule):
    """Offline PEARL for continuous actions in [-1, 1].

    It learns from TaskBuffers whose ``fields`` must be observation, action, reward,
    next_observation and terminated: the context is the inner batch, critics and actor learn on the
    outer batch. Contexts to adapt on hold observation, action and reward, and next_observation with
    ``encoder.next_observation``; a context has no order.

    Args:
        observation_size: O.
        action_size: A.
        network: Hidden layers of actor, critics and value function.
        encoder: The context encoder and the latent variable.
        losses: Weights and scales of the losses.
        learning_rate: Adam's learning rate of all networks.
        final_learning_rate: Share of the learning rate that is left at the trainer's ``max_steps``,
            reached linearly; 1 keeps it.
        target_update: Share of the value function that moves into its target at each step.
        sigma: Standard deviation of the noise where adapted policies are asked to be stochastic
            (evaluation with ``stochastic``); MACAW's.
        compile: Compile the losses; falls back to eager with a warning.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "width": "network.width",
        "depth": "network.depth",
        "latent_size": "encoder.latent_size",
        "encoder_width": "encoder.width",
        "encoder_depth": "encoder.depth",
        "context_next_observation": "encoder.next_observation",
        "discount": "losses.discount",
        "reward_scale": "losses.reward_scale",
        "entropy_weight": "losses.entropy_weight",
        "kl_weight": "losses.kl_weight",
        "policy_regularisation": "losses.policy_regularisation",
        "behaviour_weight": "losses.behaviour_weight",
        "advantage_temperature": "losses.advantage_temperature",
    }

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        network: HiddenLayers = HiddenLayers(width=300, depth=3),
        encoder: ContextEncoder = ContextEncoder(),
        losses: PearlSettings = PearlSettings(),
        learning_rate: float = 3e-4,
        final_learning_rate: float = 1.0,
        target_update: float = 0.005,
        sigma: float = 0.2,
        compile: bool = False,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.observation_size, self.action_size = observation_size, action_size
        self.seen, self.latent_size = encoder.fields, encoder.latent_size
        self.settings, self.sigma = losses, sigma
        self.learning_rate, self.final_learning_rate = learning_rate, final_learning_rate
        self.target_update = target_update
        row = observation_size + action_size + 1 + observation_size * encoder.next_observation
        state = observation_size + encoder.latent_size
        self.encoder = StackedMLP(1, encoder.sizes(row, 2 * encoder.latent_size))
        self.actor = StackedMLP(1, network.sizes(state, 2 * action_size))
        self.critics = StackedMLP(2, network.sizes(state + action_size, 1))
        self.value, self.target_value = with_target(1, network.sizes(state, 1))
        self._losses = self.compiled(pearl_losses, compile)

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What ``adapt`` needs of a context, in the order of the encoder's input."""
        return self.seen

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What training needs of the data."""
        return FIELDS

    def learned(self) -> PearlParameters:
        """Return the networks that the losses are differentiated in."""
        networks = (self.encoder, self.actor, self.critics, self.value)
        return PearlParameters(*(network.layers() for network in networks))

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """Take one training step of Algorithm 1 on all tasks of the batch at once.

        Args:
            batch: ``inner``, the contexts, and ``outer``, the transitions of actor-critic,
                [T, B, ...] each; ``weight`` [T].

        Returns:
            Weighted means over tasks to log, [] each; see ``pearl_losses``.
        """
        outer, parameters = batch["outer"], self.learned()
        # Sample context c^i and RL batch b^i, then z ~ q(z | c^i): in the box two separate draws
        # from the buffer, here the inner and the outer batch.
        losses = self._losses(
            parameters,
            self.target_value.layers(),
            context_rows(batch["inner"], self.context_fields),
            {name: outer[name] for name in FIELDS},
            self._noise(outer, self.task_weight(batch)),
            self.task_weight(batch),
            self.settings,
        )
        leaves = pytree.tree_leaves(parameters)
        # The box steps encoder, actor and critic one after another with gradients of the same
        # losses. Each loss has gradients in its own networks alone, so one sum has them all.
        gradients = torch.autograd.grad(total_loss(losses), leaves)
        metrics = {name: value.detach() for name, value in losses.items()}
        metrics = self.apply_gradients(leaves, list(gradients), metrics)
        # Not in the box: the target of soft actor-critic's value function (arXiv 1801.01290).
        polyak(self.target_value.parameters(), self.value.parameters(), self.target_update)
        return metrics

    def infer(self, context: TensorDict) -> Gaussians:
        """Return q(z | c) of T tasks, [T, Z], from their contexts [T, B]."""
        return posterior(self.encoder.layers(), context_rows(context, self.context_fields))

    def policies(self, latent: Tensor) -> BatchedPolicy:
        """Return the mean actions of pi(. | s, z) for T values of z, [T, Z].

        z is the same at every step of a task, so its part of the first layer becomes a bias.
        """
        size = self.observation_size
        layers = [
            (weight.expand(len(latent), -1, -1), bias[:, 0].expand(len(latent), -1))
            for weight, bias in self.actor.layers()
        ]
        (first, bias), *_, (last, last_bias) = layers
        weights, biases = ([*column] for column in zip(*layers, strict=True))
        # W [s; z] + b = W_s s + (W_z z + b).
        biases[0] = bias + latent @ first[0, size:]
        weights[0] = first[:, :size]
        action_size = self.action_size
        weights[-1], biases[-1] = last[..., :action_size], last_bias[..., :action_size]
        return BatchedPolicy(weights, biases, sigma=self.sigma)

    @torch.no_grad()
    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Condition the policy on T tasks (Algorithm 2); no gradient steps are taken.

        Args:
            context: ``context_fields`` of each task, [T, B].
            num_steps: 0 for the mean of the prior, 1 or more for that of the posterior.

        Returns:
            The policies of the T tasks, of mean actions.
        """
        # Algorithm 2 samples z to explore. A given context is not explored, so the mean is used.
        mean = self.infer(context).mean
        return self.policies(mean if num_steps > 0 else torch.zeros_like(mean))

    def fine_tuner(  # type: ignore[override] # its own keywords are the settings users may give
        self,
        context: TensorDict,
        num_steps: int = 1,
        *,
        learning_rate: float | None = None,
        target_update: float | None = None,
        entropy_weight: float | None = None,
        policy_regularisation: float | None = None,
        behaviour_weight: float | None = None,
        advantage_temperature: float | None = None,
        infer: bool = True,
        sigma: float | None = None,
    ) -> PearlLearner:
        """Infer z of T tasks; return agents that go on inferring, and learn by actor-critic.

        Args:
            context: ``context_fields`` of each task, [T, B]; z is first inferred from these.
            num_steps: 0 to leave the context out: z is the prior's until an episode is seen.
            learning_rate: Adam's learning rate; None for the one at which meta-training ended.
            target_update: Share of the value function that moves into its target at each update.
                None, here and in the next four, for the value of meta-training.
            entropy_weight: alpha, the temperature.
            policy_regularisation: Weight of the mean squares of the actor's outputs.
            behaviour_weight: Weight of the distance to the actions in the replay.
            advantage_temperature: Temperature of its weights; infinity weighs all alike.
            infer: z is inferred anew after each episode; False keeps the z of ``context``.
            sigma: Standard deviation of the noise to explore with; None for the actor's own.
        """
        given = {
            "entropy_weight": entropy_weight,
            "policy_regularisation": policy_regularisation,
            "behaviour_weight": behaviour_weight,
            "advantage_temperature": advantage_temperature,
        }
        changed: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if behaviour_weight == 0.0 and advantage_temperature is None:
            changed["advantage_temperature"] = None  # without the term it has no meaning
        # Online learning goes on at the rate that the schedule of meta-training came down to.
        last = self.learning_rate * self.final_learning_rate
        agents = PearlLearner(
            self.learned(),
            self.target_value.layers(),
            num_tasks=len(context),
            context_fields=self.context_fields,
            settings=replace(self.settings, **changed),
            learning_rate=last if learning_rate is None else learning_rate,
            target_update=self.target_update if target_update is None else target_update,
            infer=infer,
            sigma=sigma,
        )
        if num_steps > 0:
            agents.see(context, torch.ones(context.batch_size[:2], dtype=torch.bool))
        return agents

    @torch.no_grad()
    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the losses on ``query`` [T, B] with z inferred from ``context`` [T, B]."""
        # The same noise each time, so that a change of the loss is one of the parameters.
        generator = torch.Generator(self.device).manual_seed(0)
        return pearl_losses(
            self.learned(),
            self.target_value.layers(),
            context_rows(context, self.context_fields),
            query,
            self._draw(len(query), query, generator),
            torch.full((len(query),), 1.0 / len(query), device=self.device),
            self.settings,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One fused Adam for all networks."""
        parameters = pytree.tree_leaves(self.learned())
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)
        return self.with_linear_decay(optimizer, self.final_learning_rate)

    def _noise(self, outer: TensorDict, weight: Tensor) -> PearlNoise:
        """Draw the noise of the whole batch and keep that of this process's tasks."""
        num_tasks, mine = self.share_of_tasks(weight)
        noise = self._draw(num_tasks, outer, self.noise_generator())
        return PearlNoise(*(numbers[mine] for numbers in noise))

    def _draw(self, num_tasks: int, batch: TensorDict, generator: torch.Generator) -> PearlNoise:
        """Draw the noise of so many tasks like those of the batch."""
        where: dict[str, Any] = {"device": self.device, "generator": generator}
        latent = torch.randn(num_tasks, self.latent_size, **where)
        return PearlNoise(latent, torch.randn(num_tasks, *batch["action"].shape[1:], **where))
