"""What explores at test time: a filter, and a policy on its standardised belief.

Shapes: N meta-episodes side by side, M meta-trajectories of S steps, Z belief size, A action size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from offline_meta_rl.methods.cql_agent import CQLAgent
from offline_meta_rl.networks.filter.model import VariationalFilter

ROWS = 250  # meta-trajectories that are filtered together
SMALLEST_SPREAD = 1e-6


class BeliefExplorer(nn.Module):
    """A variational filter and an agent; see ``offline_meta_rl.evaluation.exploration.Explorer``.

    Args:
        filter: gives beliefs.
        agent: acts on standardised beliefs.
        action_size: A.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, filter: VariationalFilter, agent: CQLAgent, action_size: int) -> None:
        super().__init__()
        self.filter, self.agent, self.action_size = filter, agent, action_size
        self.register_buffer("mean", torch.zeros(filter.belief_size))
        self.register_buffer("spread", torch.ones(filter.belief_size))

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one step of the filter uses."""
        return self.filter.noise_size

    def begin(self, count: int) -> Any:
        """Return the filter's state before the first observation of N meta-episodes."""
        return self.filter.initial(count)

    def observe(
        self, state: Any, observation: Tensor, action: Tensor, reward: Tensor, noise: Tensor
    ) -> tuple[Any, Tensor]:
        """Filter one step; return the new state and the belief [N, Z], on the filter's device."""
        device = self.mean.device
        seen = (value.to(device) for value in (observation, action, reward, noise))
        return self.filter.step(state, *seen)

    def act(self, belief: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions [N, A] for beliefs [N, Z]; the mean action without noise [N, A]."""
        normal = None if noise is None else noise.to(belief.device)
        return self.agent.act(self.standardise(belief), normal)

    def standardise(self, belief: Tensor) -> Tensor:
        """Return beliefs [..., Z] as the agent sees them."""
        return (belief - self.mean) / self.spread

    def measure(self, belief: Tensor) -> None:
        """Standardise by the mean and spread of each number of these beliefs [rows, Z]."""
        self.mean.copy_(belief.mean(dim=0))
        self.spread.copy_(belief.std(dim=0).clamp_min(SMALLEST_SPREAD))

    @torch.no_grad()
    def beliefs(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Return the beliefs of meta-trajectories at every step, not standardised, [M, S, Z].

        Args:
            batch: TensorDict [M], as MetaTrajectories serves them.
            generator: of the filter's noise.
        """
        parts = batch.to(self.mean.device).split(ROWS)
        return torch.cat([self.filter.beliefs(p, self.noise_for(p, generator)) for p in parts])

    @torch.no_grad()
    def reconstructions(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Return the decoded images of meta-trajectories, [M, S, C, h, w] uint8."""
        noise = self.noise_for(batch, generator)
        return self.filter.reconstructions(batch.to(self.mean.device), noise)

    def noise_for(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Draw the filter's noise for meta-trajectories, [M, S, noise_size]."""
        shape = (*batch["mask"].shape, self.noise_size)
        return torch.randn(*shape, generator=generator, device=self.mean.device)
