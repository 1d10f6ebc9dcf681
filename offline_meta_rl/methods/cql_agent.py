"""The networks of conservative Q-learning and their updates, wherever the data comes from.

Shapes: T groups of R transitions each (a task's rows, or single rows), O size of an observation or
belief, A action size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.losses.cql import (
    CQLNoise,
    CQLParameters,
    CQLSettings,
    actor_gaussian,
    cql_losses,
    draw_cql_noise,
)
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks.actors import polyak, with_target
from offline_meta_rl.networks.stacked import HiddenLayers, StackedMLP

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

FIELDS = ("observation", "action", "reward", "next_observation", "terminated")


NETWORK = HiddenLayers(width=256, depth=2)
"""Of actor and critics, where nothing else is asked for."""


@dataclass(frozen=True)
class AgentLearning:
    """How actor and critics are moved.

    Attributes:
        actor_learning_rate: Adam's learning rate of the actor, at least 0.
        critic_learning_rate: Adam's learning rate of the critics, at least 0.
        final_learning_rate: Share of both that is left at the trainer's ``max_steps``, reached
            linearly; 1 keeps them.
        target_update: Share of the way that the target critics move towards the critics after each
            update, 0 to 1.

    Raises:
        ValueError: a value out of its range.
    """

    actor_learning_rate: float = 1e-4
    critic_learning_rate: float = 3e-4
    final_learning_rate: float = 1.0
    target_update: float = 0.005

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_at_least(
            self, 0, "actor_learning_rate", "critic_learning_rate", "final_learning_rate"
        )
        if not 0.0 <= self.target_update <= 1.0:
            raise ValueError(f"target_update: expected 0 to 1, found {self.target_update}.")


class CQLAgent(nn.Module):
    """A tanh-Gaussian actor, twin critics and their targets.

    The critics are one stack, so that both are one batched product.

    Args:
        input_size: O, numbers in an observation or belief.
        action_size: A; actions lie in [-1, 1].
        network: Hidden layers of actor and critics.
        settings: Settings of the losses.
    """

    def __init__(
        self, input_size: int, action_size: int, network: HiddenLayers, settings: CQLSettings
    ) -> None:
        super().__init__()
        self.actor = StackedMLP(1, network.sizes(input_size, 2 * action_size))
        self.critics, self.targets = with_target(2, network.sizes(input_size + action_size, 1))
        self.settings = settings

    def learned(self) -> CQLParameters:
        """Return the networks that the losses are differentiated in."""
        return CQLParameters(self.actor.layers(), self.critics.layers())

    def losses(
        self, batch: Mapping[str, Tensor], noise: CQLNoise, row_weight: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of one update and what to log, [] each; see ``cql_losses``.

        Args:
            batch: FIELDS of B rows, [B, ...].
            noise: All random numbers of the update.
            row_weight: Weight of every row's loss, [B].
        """
        return cql_losses(
            self.learned(), self.targets.layers(), batch, noise, row_weight, self.settings
        )

    def update_targets(self, share: float) -> None:
        """Move the targets towards the critics by a share of the way, 0 to 1."""
        polyak(self.targets.parameters(), self.critics.parameters(), share)

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions [B, A] in (-1, 1).

        Args:
            observation: [B, O].
            noise: Standard normal, [B, A]; None for the mean action.
        """
        mean, std = actor_gaussian(self.actor.layers(), observation, self.settings.min_log_std)
        return torch.tanh(mean if noise is None else mean + std * noise)


class CQLModule(MetaModule):
    """Base of the methods that train a CQLAgent; a subclass defines the observation.

    Args:
        learning: How the agent is moved.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    def __init__(self, learning: AgentLearning, clip_gradient_norm: float | None) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.learning = learning

    def use(self, agent: CQLAgent, *, compile: bool) -> None:
        """Train this agent; call it once, in the constructor."""
        self.agent = agent
        self._losses = self.compiled(agent.losses, compile)

    def update(
        self, batch: Mapping[str, Tensor], shape: tuple[int, ...], weight: Tensor
    ) -> dict[str, Tensor]:
        """One update of actor and critics; the targets follow.

        Args:
            batch: FIELDS of this process's rows, [T * R], as the agent takes them.
            shape: (T, R, A) of these rows' actions: noise is drawn for all processes alike, and
                this one keeps that of its T groups.
            weight: 1 / groups of all processes, of each of this process's groups, [T].

        Returns:
            The losses, and what else is logged; see ``cql_losses``.
        """
        losses = self._losses(batch, self._noise(shape, weight), row_weights(weight, shape[1]))
        parameters = pytree.tree_leaves(self.agent.learned())
        # Each loss has gradients in its own network alone, so one sum has both networks' gradients.
        # Not ``backward``: hooks of DistributedDataParallel would average what we sum.
        gradients = torch.autograd.grad(total_cql_loss(losses), parameters)
        metrics = {name: value.detach() for name, value in losses.items()}
        metrics = self.apply_gradients(parameters, list(gradients), metrics)
        # Eq. 3's backup uses Q^k while Q^{k+1} is fitted; a slow average stands for it.
        self.agent.update_targets(self.learning.target_update)
        return metrics

    def configure_optimizers(self) -> "OptimizerLRScheduler":
        """One fused Adam; actor and critics are its parameter groups."""
        rates = self.learning
        groups = [
            {"params": self.agent.actor.parameters(), "lr": rates.actor_learning_rate},
            {"params": self.agent.critics.parameters(), "lr": rates.critic_learning_rate},
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        return self.with_linear_decay(optimizer, rates.final_learning_rate)

    def _noise(self, shape: tuple[int, ...], weight: Tensor) -> CQLNoise:
        """Draw the noise of the global batch and keep that of this process's groups."""
        num_groups, mine = self.share_of_tasks(weight)
        noise = draw_cql_noise(
            (num_groups, *shape[1:]),
            self.agent.settings.conservatism,
            device=self.device,
            generator=self.noise_generator(),
        )
        return CQLNoise(*(values[mine].flatten(0, 1) for values in noise))


def row_weights(weight: Tensor, num_rows: int) -> Tensor:
    """Return the weight of every row's loss, [T * R].

    Args:
        weight: Weight of each group's loss, [T].
        num_rows: R, rows of each group.
    """
    return (weight / num_rows).repeat_interleave(num_rows)


def total_cql_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the losses of ``cql_losses`` that are to be minimised, []."""
    return sum((losses[name] for name in ("critic", "penalty") if name in losses), losses["actor"])
