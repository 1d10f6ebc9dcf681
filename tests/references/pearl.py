"""PEARL's losses task by task and row by row, as the paper's formulas read.

Rakelly et al., 2019: section 4.1 (posterior), Eq. 2 (critics) and Eq. 3 (actor), Algorithm 1; value
function and twin critics as in soft actor-critic (arXiv 1801.01290, Eqs. 5, 7 and 12), with rewards
scaled in place of a temperature. Behaviour term: TD3+BC (arXiv 2106.06860, Eqs. 3 to 5), divided by
its lambda. One ordinary network after another; densities and divergences come from torch's
distributions, and the posterior from the product of two densities at a time.
"""

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor, nn
from torch.distributions import (
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.nn import functional as F

from offline_meta_rl.losses.pearl import PearlNoise
from offline_meta_rl.methods.pearl import Pearl
from tests.references.cql import stack, unstack

LOSSES = ("critic", "value", "actor", "kl")


class ReferencePearl:
    """The networks of a method as ordinary layers, and its losses."""

    def __init__(self, module: Pearl) -> None:
        self.settings, self.fields = module.settings, module.context_fields
        self.encoder = unstack(module.encoder, 0)
        self.actor = unstack(module.actor, 0)
        self.critics = [unstack(module.critics, index) for index in range(2)]
        self.value = unstack(module.value, 0)
        self.target = unstack(module.target_value, 0)

    def posterior(self, context: Mapping[str, Tensor]) -> Normal:
        """Return q(z | c) of one task: the product of the factors, two at a time."""
        mean = variance = None
        for index in range(len(context["reward"])):
            row = [context[name][index].reshape(-1) for name in ("observation", "action", "reward")]
            if "next_observation" in self.fields:
                row.append(context["next_observation"][index])
            own_mean, raw = self.encoder(torch.cat(row)).chunk(2)
            own = F.softplus(raw)
            if mean is None or variance is None:
                mean, variance = own_mean, own
            else:
                total = variance + own
                mean, variance = (
                    (mean * own + own_mean * variance) / total,
                    variance * own / total,
                )
        assert mean is not None
        assert variance is not None
        return Normal(mean, variance.sqrt())

    def policy(self, observation: Tensor, z: Tensor) -> TransformedDistribution:
        """Return pi(. | s, z) of one observation [O]."""
        mean, log_std = self.actor(torch.cat([observation, z])).chunk(2)
        base = Independent(Normal(mean, log_std.clamp(-20.0, 2.0).exp()), 1)
        return TransformedDistribution(base, [TanhTransform(cache_size=1)])

    def q_values(self, observation: Tensor, action: Tensor, z: Tensor) -> list[Tensor]:
        """Return both critics' values of one row."""
        return [critic(torch.cat([observation, action, z]))[0] for critic in self.critics]

    def task_losses(
        self,
        context: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        latent_noise: Tensor,
        action_noise: Tensor,
    ) -> dict[str, Tensor]:
        """Return the losses of one task: context [C_rows, ...], batch [B, ...]."""
        settings = self.settings
        q = self.posterior(context)
        z = q.mean + q.stddev * latent_noise
        fixed = z.detach()
        prior = Normal(torch.zeros_like(z), torch.ones_like(z))
        rows: dict[str, list[Tensor]] = {name: [] for name in ("critic", "value", "actor", "size")}
        distances, advantages, values = [], [], []
        for index in range(len(batch["reward"])):
            row = {name: each[index] for name, each in batch.items()}
            observation = row["observation"]
            aim = settings.reward_scale * row["reward"]
            if not row["terminated"]:
                following = self.target(torch.cat([row["next_observation"], fixed]))[0]
                aim = aim + settings.discount * following.detach()
            data = self.q_values(observation, row["action"], z)
            rows["critic"].append(sum((value - aim) ** 2 for value in data))  # type: ignore[arg-type]

            policy = self.policy(observation, fixed)
            before = policy.base_dist.mean + policy.base_dist.stddev * action_noise[index]
            action = torch.tanh(before)
            density = policy.base_dist.log_prob(before) - torch.log(1 - action**2).sum()
            best = torch.minimum(*self.q_values(observation, action, fixed))
            value = self.value(torch.cat([observation, fixed]))[0]
            bonus = settings.entropy_weight * density
            rows["value"].append((value - (best - bonus).detach()) ** 2)
            rows["actor"].append(bonus - best)
            log_std = policy.base_dist.stddev.log()
            outputs = policy.base_dist.mean**2 + log_std**2
            rows["size"].append(outputs.mean())
            distances.append(((action - row["action"]) ** 2).mean())
            advantages.append((torch.minimum(*data) - value).detach())
            values.append(best.detach().abs())
        mean = {name: torch.stack(each).mean() for name, each in rows.items()}
        actor = mean["actor"] + settings.policy_regularisation * mean["size"]
        if settings.behaviour_weight:
            weights = self.weights(torch.stack(advantages))
            term = (weights * torch.stack(distances)).mean()
            actor = actor + settings.behaviour_weight * torch.stack(values).mean() * term
        divergence = kl_divergence(q, prior).sum()
        return {
            "critic": mean["critic"],
            "value": mean["value"],
            "actor": actor,
            "kl": settings.kl_weight * divergence,
        }

    def weights(self, advantage: Tensor) -> Tensor:
        """Return the weights of the data's actions, from advantages [B]."""
        heat = self.settings.advantage_temperature
        if heat is None:
            return torch.ones_like(advantage)
        standard = (advantage - advantage.mean()) / advantage.std()
        return torch.stack([each.div(heat).clamp(max=log(20.0)).exp() for each in standard])

    def losses(
        self, context: Mapping[str, Tensor], batch: Mapping[str, Tensor], noise: PearlNoise
    ) -> dict[str, Tensor]:
        """Return the mean losses over tasks: context and batch [T, B, ...]."""
        tasks = [
            self.task_losses(
                {name: each[task] for name, each in context.items()},
                {name: each[task] for name, each in batch.items()},
                noise.latent[task],
                noise.action[task],
            )
            for task in range(len(noise.latent))
        ]
        return {name: torch.stack([task[name] for task in tasks]).mean() for name in LOSSES}

    def gradients(self, losses: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Return the gradient that each network follows, in the layout of a StackedMLP."""

        def of(loss: Tensor, *networks: nn.Module) -> list[Tensor]:
            each = [
                torch.autograd.grad(loss, [*network.parameters()], retain_graph=True)
                for network in networks
            ]
            return stack(each)

        return {
            "encoder": of(losses["critic"] + losses["kl"], self.encoder),
            "actor": of(losses["actor"], self.actor),
            "critics": of(losses["critic"], *self.critics),
            "value": of(losses["value"], self.value),
        }
