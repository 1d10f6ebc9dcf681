"""One soft actor-critic written with ordinary layers, distributions and autograd.

What the stacked agents are compared with, in their numbers and in their speed: a sequential version
as one would write it for a single task, with one fused Adam and multi-tensor target updates.
"""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from offline_meta_rl.methods.sac import SAC


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers with ReLU in between."""
    modules: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        modules += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class ReferenceAgent:
    """One agent and its optimizer."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_size: int,
        *,
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update: float = 0.005,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        where = {"dtype": dtype, "device": device}
        joint, hidden = observation_size + action_size, (hidden_size, hidden_size)
        self.actor = mlp(observation_size, *hidden, 2 * action_size).to(**where)
        self.critics = nn.ModuleList(mlp(joint, *hidden, 1) for _ in range(2)).to(**where)
        self.targets = nn.ModuleList(mlp(joint, *hidden, 1) for _ in range(2)).to(**where)
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)
        self.log_temperature = torch.zeros((), requires_grad=True, **where)
        self.discount, self.target_update = discount, target_update
        self.target_entropy = -float(action_size)
        self.learned = [*self.actor.parameters(), *self.critics.parameters(), self.log_temperature]
        self.optimizer = torch.optim.Adam(self.learned, lr=learning_rate, fused=True)

    @torch.no_grad()
    def copy(self, module: SAC, task: int) -> "ReferenceAgent":
        """Take over the parameters of one agent of a stack."""
        pairs = [(self.actor, module.actors, task)]
        for twin in range(2):
            index = twin * module.num_agents + task
            pairs += [(self.critics[twin], module.critics, index)]
            pairs += [(self.targets[twin], module.targets, index)]
        for own, stack, index in pairs:
            layers = [layer for layer in own if isinstance(layer, nn.Linear)]
            for layer, (weight, bias) in zip(layers, stack.layers(), strict=True):
                layer.weight.copy_(weight[index].T)
                layer.bias.copy_(bias[index, 0])
        self.log_temperature.copy_(module.log_temperature[task])
        return self

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions [B, A] and their log densities [B], by the change of variables."""
        mean, raw = self.actor(observation).chunk(2, dim=-1)
        scale = F.softplus(raw + torch.tensor(1.0).double().expm1().log().item()) + 1e-3
        before = mean + scale * noise
        action = torch.tanh(before)
        log_normal = Normal(mean, scale).log_prob(before)
        return action, (log_normal - torch.log1p(-action.square())).sum(dim=-1)

    def update(self, batch: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Do one update on transitions [B] with noise [2, B, A]; return the losses."""
        observation, following = batch["observation"], batch["next_observation"]
        temperature = self.log_temperature.exp()
        with torch.no_grad():
            action, log_density = self.sample(following, noise[0])
            inputs = torch.cat([following, action], dim=-1)
            first, second = (target(inputs)[:, 0] for target in self.targets)
            value = torch.minimum(first, second) - temperature * log_density
            aim = batch["reward"] + self.discount * (1 - batch["terminated"].to(value)) * value
        inputs = torch.cat([observation, batch["action"]], dim=-1)
        critic_loss = sum(0.5 * F.mse_loss(critic(inputs)[:, 0], aim) for critic in self.critics)
        action, log_density = self.sample(observation, noise[1])
        inputs = torch.cat([observation, action], dim=-1)
        self.critics.requires_grad_(False)
        first, second = (critic(inputs)[:, 0] for critic in self.critics)
        self.critics.requires_grad_(True)
        value = torch.minimum(first, second)
        actor_loss = (temperature.detach() * log_density - value).mean()
        temperature_loss = -(temperature * (log_density.detach() + self.target_entropy)).mean()
        self.optimizer.zero_grad()
        (critic_loss + actor_loss + temperature_loss).backward()
        self.optimizer.step()
        torch._foreach_lerp_(
            list(self.targets.parameters()),
            [parameter.detach() for parameter in self.critics.parameters()],
            self.target_update,
        )
        return {"critic": critic_loss.detach(), "actor": actor_loss.detach()}


def random_batch(
    num_tasks: int,
    rows: int,
    observation_size: int,
    action_size: int,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return random transitions [T, B], some of which terminated."""
    shape = (num_tasks, rows)
    return {
        "observation": torch.randn(*shape, observation_size, dtype=dtype),
        "action": 2 * torch.rand(*shape, action_size, dtype=dtype) - 1,
        "reward": torch.randn(shape, dtype=dtype),
        "next_observation": torch.randn(*shape, observation_size, dtype=dtype),
        "terminated": torch.rand(shape) < 0.2,
    }
