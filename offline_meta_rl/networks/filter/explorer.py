"""What explores at test time: a filter, and a policy on its standardised belief.

    explorer = offline_meta_rl.load("checkpoint.ckpt", method="ReflectiveExplorer").explorer
    state = explorer.begin(1)
    state, belief = explorer.observe(state, image, action, reward, noise)
    action = explorer.act(belief)

Shapes: N meta-episodes side by side, C x h x w pixels, Z belief size, A action size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offline_meta_rl.networks.filter.latents import State
from offline_meta_rl.networks.filter.model import VariationalFilter

BeliefPolicy = Callable[[Tensor, Tensor | None], Tensor]
"""Maps standardised beliefs [N, Z] and standard normal noise [N, A] to actions [N, A] in [-1, 1];
without noise to the mean action."""


@dataclass(frozen=True, eq=False)
class BeliefExplorer:
    """A variational filter and a policy; an ``offline_meta_rl.evaluation.contracts.Explorer``.

    Attributes:
        filter: Infers beliefs from what is seen.
        policy: Acts on standardised beliefs.
        mean: Mean of each number of the beliefs that the policy was trained on, [Z].
        spread: Standard deviation of each of these numbers, [Z].
    """

    filter: VariationalFilter
    policy: BeliefPolicy
    mean: Tensor
    spread: Tensor

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one step of the filter uses."""
        return self.filter.noise_size

    @property
    def action_size(self) -> int:
        """A, numbers in an action."""
        return self.filter.action_size

    def begin(self, count: int) -> State:
        """Return the filter's state before the first observation of N meta-episodes."""
        return self.filter.initial(count)

    @torch.no_grad()
    def observe(
        self, state: State, observation: Tensor, action: Tensor, reward: Tensor, noise: Tensor
    ) -> tuple[State, Tensor]:
        """Filter one step; tensors may be on any device.

        Args:
            state: The filter's state after the step before.
            observation: [N, C, h, w] uint8.
            action: Action that led to the observation, [N, A]; 0 at an episode's first one.
            reward: Reward that arrived with it, [N]; 0 at an episode's first one.
            noise: Standard normal, [N, noise_size].

        Returns:
            The new state and the belief [N, Z], on the filter's device.
        """
        device = self.mean.device
        seen = (value.to(device) for value in (observation, action, reward, noise))
        return self.filter.step(state, *seen)

    def act(self, belief: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions [N, A] for beliefs [N, Z]; the mean action without noise [N, A]."""
        # The policy was trained on standardised beliefs; see ``ServesBeliefs``.
        normal = None if noise is None else noise.to(belief.device)
        return self.policy((belief - self.mean) / self.spread, normal)
