"""PEARL's outer step task by task, as one would write it for one task and wrap in a loop.

Ordinary linear layers, z joined to every row, torch's distributions left out as in the method; all
rows of a task are one batch, all tasks share one backward pass, one fused Adam, multi-tensor
targets.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offline_meta_rl.losses.pearl import PearlNoise
from offline_meta_rl.methods.pearl import Pearl
from tests.references.cql import unstack


def joined(z: Tensor, *rows: Tensor) -> Tensor:
    """Return rows [B, ...] beside z [Z]."""
    return torch.cat([*rows, z.expand(len(rows[0]), -1)], dim=-1)


class PearlLoop:
    """Copies of a method's networks, and a step that goes from task to task."""

    def __init__(self, module: Pearl) -> None:
        self.hparams = module.hparams
        self.encoder = unstack(module.encoder, 0)
        self.actor = unstack(module.actor, 0)
        self.critics = nn.ModuleList(unstack(module.critics, index) for index in range(2))
        self.value = unstack(module.value, 0)
        self.target = unstack(module.target_value, 0).requires_grad_(False)
        for network in (self.encoder, self.actor, self.critics, self.value, self.target):
            network.to(module.device)
        networks = (self.encoder, self.actor, self.critics, self.value)
        self.learned = [parameter for network in networks for parameter in network.parameters()]
        self.optimizer = torch.optim.Adam(self.learned, lr=self.hparams.learning_rate, fused=True)

    def task_loss(
        self,
        context: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        latent_noise: Tensor,
        action_noise: Tensor,
    ) -> Tensor:
        """Return the sum of one task's losses: context and batch [B, ...]."""
        settings = self.hparams
        rows = [context["observation"], context["action"], context["reward"][:, None]]
        mean, raw = self.encoder(torch.cat(rows, dim=-1)).chunk(2, dim=-1)
        precision = 1.0 / F.softplus(raw).clamp_min(1e-7)
        variance = 1.0 / precision.sum(dim=0)
        mean = variance * (precision * mean).sum(dim=0)
        z = mean + variance.sqrt() * latent_noise
        kl = 0.5 * (variance + mean.square() - 1.0 - variance.log()).sum()

        observation, fixed = batch["observation"], z.detach()
        with torch.no_grad():
            after = self.target(joined(fixed, batch["next_observation"]))[:, 0]
            after = settings.discount * torch.where(batch["terminated"], 0.0, after)
            aim = settings.reward_scale * batch["reward"] + after
        inputs = joined(z, observation, batch["action"])
        critic = sum(F.mse_loss(network(inputs)[:, 0], aim) for network in self.critics)

        centre, log_std = self.actor(joined(fixed, observation)).chunk(2, dim=-1)
        log_std = log_std.clamp(-20.0, 2.0)
        before = centre + log_std.exp() * action_noise
        normal = -0.5 * action_noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        action, density = torch.tanh(before), (normal - slope).sum(dim=-1)
        self.critics.requires_grad_(False)
        best = torch.minimum(
            *(network(joined(fixed, observation, action))[:, 0] for network in self.critics)
        )
        self.critics.requires_grad_(True)
        soft = best - settings.entropy_weight * density
        value = F.mse_loss(self.value(joined(fixed, observation))[:, 0], soft.detach())
        size = centre.square().mean() + log_std.square().mean()
        actor = settings.policy_regularisation * size - soft.mean()
        distance = (action - batch["action"]).square().mean()
        actor = actor + settings.behaviour_weight * best.detach().abs().mean() * distance
        total: Tensor = critic + value + actor + settings.kl_weight * kl
        return total

    def loss(
        self, context: Mapping[str, Tensor], batch: Mapping[str, Tensor], noise: PearlNoise
    ) -> Tensor:
        """Return the mean loss over tasks: context and batch [T, B, ...]."""
        tasks = [
            self.task_loss(
                {name: each[task] for name, each in context.items()},
                {name: each[task] for name, each in batch.items()},
                noise.latent[task],
                noise.action[task],
            )
            for task in range(len(noise.latent))
        ]
        return torch.stack(tasks).mean()

    def step(
        self, context: Mapping[str, Tensor], batch: Mapping[str, Tensor], noise: PearlNoise
    ) -> None:
        """Do one outer step."""
        self.optimizer.zero_grad()
        self.loss(context, batch, noise).backward()
        self.optimizer.step()
        torch._foreach_lerp_(
            list(self.target.parameters()),
            [parameter.detach() for parameter in self.value.parameters()],
            self.hparams.target_update,
        )
