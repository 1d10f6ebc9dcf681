"""Conservative Q-learning's losses row by row, as the paper's formulas read.

Section 3.7 of The Reflective Explorer (Eq. 3 with beliefs), and CQL(H) of Kumar et al. (2020). One
ordinary network after another, one action at a time; densities come from torch's distributions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from offline_meta_rl.losses.cql import CQLNoise, CQLSettings
from offline_meta_rl.networks.stacked import StackedMLP


def unstack(stack: StackedMLP, index: int) -> nn.Sequential:
    """Return one network of a stack as ordinary layers with copied parameters."""
    modules: list[nn.Module] = []
    for weight, bias in stack.layers():
        layer = nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype)
        layer.weight.data.copy_(weight.data[index].T)
        layer.bias.data.copy_(bias.data[index, 0])
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class ReferenceCQL:
    """Actor pi, critics Q_1 and Q_2, and their targets."""

    def __init__(
        self, actor: StackedMLP, critics: StackedMLP, targets: StackedMLP, settings: CQLSettings
    ) -> None:
        self.actor = unstack(actor, 0)
        self.critics = [unstack(critics, index) for index in range(2)]
        self.targets = [unstack(targets, index) for index in range(2)]
        self.settings = settings

    def policy(self, belief: Tensor) -> TransformedDistribution:
        """Return pi(. | b) of one belief [O]."""
        mean, log_std = self.actor(belief).chunk(2)
        std = log_std.clamp(self.settings.min_log_std, 2.0).exp()
        transforms = [TanhTransform(cache_size=1)]
        return TransformedDistribution(Independent(Normal(mean, std), 1), transforms)

    def action(self, belief: Tensor, normal: Tensor) -> Tensor:
        """Return the action of pi(. | b) that a standard normal number [A] gives."""
        policy = self.policy(belief)
        return policy.transforms[0](policy.base_dist.mean + policy.base_dist.stddev * normal)

    def penalty(self, critic: nn.Module, row: Mapping[str, Tensor], noise: CQLNoise) -> Tensor:
        """Return the conservative term of one critic at one row, without its weight."""
        belief, form = row["observation"], self.settings.conservatism.form
        uniform_log_density = torch.tensor(0.5, dtype=belief.dtype).log() * row["action"].numel()
        terms = [(q(critic, belief, action), uniform_log_density) for action in noise.uniform]
        if form == "logsumexp":
            for where, normals in (
                (belief, noise.policy),
                (row["next_observation"], noise.following),
            ):
                for normal in normals:
                    action = self.action(where, normal).detach()
                    density = self.policy(where).log_prob(action).detach()
                    terms.append((q(critic, belief, action), density))
        data = q(critic, belief, row["action"])
        if form == "uniform":
            return sum(value for value, _ in terms) / len(terms) - data
        heat = self.settings.conservatism.temperature
        if self.settings.conservatism.importance_weights:
            exponentials = [(value / heat).exp() / density.exp() for value, density in terms]
        else:
            exponentials = [(value / heat).exp() for value, _ in terms]
        return heat * (sum(exponentials) / len(exponentials)).log() - data

    def losses(self, batch: Mapping[str, Tensor], noise: CQLNoise) -> tuple[Tensor, Tensor]:
        """Return the critics' loss (TD and conservative terms) and the actor's, means over rows."""
        critic_loss = actor_loss = torch.zeros((), dtype=batch["reward"].dtype)
        size = len(batch["reward"])
        for index in range(size):
            row = {name: value[index] for name, value in batch.items()}
            drawn = CQLNoise(*(values[index] for values in noise))
            belief, following = row["observation"], row["next_observation"]
            with torch.no_grad():
                aim = row["reward"]
                if not row["terminated"]:
                    after = self.action(following, drawn.backup)
                    value = min(q(target, following, after) for target in self.targets)
                    aim = aim + self.settings.discount * value
            for critic in self.critics:
                error = q(critic, belief, row["action"]) - aim
                critic_loss = critic_loss + 0.5 * error**2 / size
                if self.settings.conservatism.weight:
                    penalty = self.penalty(critic, row, drawn)
                    critic_loss = critic_loss + self.settings.conservatism.weight * penalty / size
            action = self.action(belief, drawn.actor)
            value = min(q(critic, belief, action) for critic in self.critics)
            actor_loss = actor_loss - value / size
            if self.settings.entropy_weight:
                density = self.policy(belief).log_prob(action)
                actor_loss = actor_loss + self.settings.entropy_weight * density / size
        return critic_loss, actor_loss

    def gradients(self, batch: Mapping[str, Tensor], noise: CQLNoise) -> dict[str, list[Tensor]]:
        """Return each loss's gradient in its own networks, in the layout of a StackedMLP."""
        critic_loss, actor_loss = self.losses(batch, noise)
        critics = [
            torch.autograd.grad(critic_loss, [*c.parameters()], retain_graph=True)
            for c in self.critics
        ]
        actor = torch.autograd.grad(actor_loss, [*self.actor.parameters()])
        return {"actor": stack([actor]), "critics": stack(critics)}


def q(critic: nn.Module, belief: Tensor, action: Tensor) -> Tensor:
    """Return Q(b, a) of one belief [O] and one action [A]."""
    value: Tensor = critic(torch.cat([belief, action]))[0]
    return value


def stack(gradients: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Turn gradients of N networks' layers, weight [out, in] and bias, into weights and biases."""
    weights = [torch.stack([g[i].T for g in gradients]) for i in range(0, len(gradients[0]), 2)]
    biases = [torch.stack([g[i][None] for g in gradients]) for i in range(1, len(gradients[0]), 2)]
    return [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
