"""The networks of conservative Q-learning and their losses, wherever the data comes from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from offline_meta_rl.losses.cql import (
    CQLNoise,
    CQLParameters,
    CQLSettings,
    actor_gaussian,
    cql_losses,
)
from offline_meta_rl.networks.actors import polyak, with_target
from offline_meta_rl.networks.stacked import StackedMLP


class CQLAgent(nn.Module):
    """A tanh-Gaussian actor, twin critics and their targets.

    The critics are one stack, so that both are one batched product.

    Args:
        input_size: of an observation or belief, O.
        action_size: A; actions lie in [-1, 1].
        width: of every hidden layer.
        depth: hidden layers of actor and critics.
        target_update: share of the critics that moves into the targets at each update.
        settings: of the losses.
    """

    def __init__(
        self,
        input_size: int,
        action_size: int,
        *,
        width: int,
        depth: int,
        target_update: float,
        settings: CQLSettings,
    ) -> None:
        super().__init__()
        hidden = [width] * depth
        sizes = [input_size + action_size, *hidden, 1]
        self.actor = StackedMLP(1, [input_size, *hidden, 2 * action_size])
        self.critics, self.targets = with_target(2, sizes)
        self.target_update, self.settings = target_update, settings

    def learned(self) -> CQLParameters:
        """Return what the losses are differentiated in."""
        return CQLParameters(self.actor.layers(), self.critics.layers())

    def losses(
        self, batch: Mapping[str, Tensor], noise: CQLNoise, row_weight: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of one update and what to log; see ``cql_losses``."""
        return cql_losses(
            self.learned(), self.targets.layers(), batch, noise, row_weight, self.settings
        )

    def update_targets(self) -> None:
        """Move the targets towards the critics."""
        polyak(self.targets.parameters(), self.critics.parameters(), self.target_update)

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions [B, A] in (-1, 1).

        Args:
            observation: [B, O].
            noise: standard normal, [B, A]; None for the mean action.
        """
        mean, std = actor_gaussian(self.actor.layers(), observation, self.settings)
        return torch.tanh(mean if noise is None else mean + std * noise)


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the losses of ``cql_losses`` that are to be minimised."""
    return sum((losses[name] for name in ("critic", "penalty") if name in losses), losses["actor"])
