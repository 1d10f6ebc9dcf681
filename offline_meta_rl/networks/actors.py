"""The network of a behaviour agent: one tanh-Gaussian policy for all tasks of a family."""

import torch
from tensordict.nn import NormalParamExtractor
from torch import Tensor, nn


class BehaviourActor(nn.Module):
    """Maps (observation, task features) to the mean and scale of a tanh Gaussian.

    Args:
        observation_size: O.
        task_feature_size: F.
        action_size: A.
        hidden_size: width of the two hidden layers.
    """

    def __init__(
        self, observation_size: int, task_feature_size: int, action_size: int, hidden_size: int
    ) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(observation_size + task_feature_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 2 * action_size),
        )
        self.split = NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-3)

    def forward(self, observation: Tensor, task_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loc, scale), each [..., A], before the tanh."""
        loc, scale = self.split(self.network(torch.cat([observation, task_features], dim=-1)))
        return loc, scale

    def act(
        self,
        observation: Tensor,
        task_features: Tensor,
        *,
        stochastic: bool,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return actions [..., A] in [-1, 1]: a sample, or the mean action tanh(loc)."""
        loc, scale = self(observation, task_features)
        if stochastic:
            loc = loc + scale * torch.randn(loc.shape, generator=generator, device=loc.device)
        return torch.tanh(loc)
