"""The evidence lower bound, one step and one term after another, from the papers' formulas.

Independent of the filter's own loop, mathematics and gradients: only its layers are used.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import leaky_relu, softplus

from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.two_level import TwoLevelLatent


def normal(parameters: Tensor) -> Normal:
    half = parameters.shape[-1] // 2
    return Normal(parameters[:, :half], softplus(parameters[:, half:]) + 1e-5)


def belief(*laws: Normal) -> Tensor:
    return torch.cat([part for law in laws for part in (law.mean, law.variance)], dim=1)


class TwoLevelSteps:
    """p(z1 | z2, a), q(z1 | x, z2, a), p(z2 | z1, z2, a)."""

    def __init__(self, latent: TwoLevelLatent, rows: int) -> None:
        self.latent = latent
        self.state = (latent.second.first.weight.new_zeros(rows, latent.second_size),)

    def step(self, seen: Tensor, action: Tensor, noise: Tensor) -> dict[str, Any]:
        latent, (before,) = self.latent, self.state
        prior = normal(latent.first_prior(torch.cat([before, action], 1)))
        posterior = normal(latent.first_posterior(torch.cat([before, action, seen], 1)))
        first, second = noise[:, : latent.first_size], noise[:, latent.first_size :]

        def both(law: Normal) -> tuple[Normal, Tensor, Tensor]:
            z1 = law.mean + law.stddev * first
            above = normal(latent.second(torch.cat([z1, before, action], 1)))
            return above, z1, above.mean + above.stddev * second

        above, z1, z2 = both(posterior)
        _, expected1, expected2 = both(prior)
        return {
            "kl": kl_divergence(posterior, prior).sum(1),
            "sample": torch.cat([z1, z2], 1),
            "expected": torch.cat([expected1, expected2], 1),
            "belief": belief(posterior, above),
            "state": (z2,),
        }


class RecurrentSteps:
    """h = GRU(h, e(z, a)), p(z | h), q(z | h, x)."""

    def __init__(self, latent: Any, rows: int) -> None:
        self.latent = latent
        weight = latent.prior_last.weight
        sizes = (latent.noise_size, latent.deterministic_size)
        self.state = tuple(weight.new_zeros(rows, size) for size in sizes)

    def step(self, seen: Tensor, action: Tensor, noise: Tensor) -> dict[str, Any]:
        latent, (z, h) = self.latent, self.state
        h = self.gru(leaky_relu(latent.embedding(torch.cat([z, action], 1)), 0.2), h)
        prior = normal(latent.prior_last(leaky_relu(latent.prior_hidden(h), 0.2)))
        hidden = latent.posterior_hidden(torch.cat([h, seen], 1))
        posterior = normal(latent.posterior_last(leaky_relu(hidden, 0.2)))
        z = posterior.mean + posterior.stddev * noise
        return {
            "kl": kl_divergence(posterior, prior).sum(1),
            "sample": torch.cat([z, h], 1),
            "expected": torch.cat([prior.mean + prior.stddev * noise, h], 1),
            "belief": torch.cat([belief(posterior), h], 1),
            "state": (z, h),
        }

    def gru(self, inputs: Tensor, h: Tensor) -> Tensor:
        cell = self.latent.gru
        into = (inputs @ cell.weight_ih.T + cell.bias_ih).chunk(3, 1)
        on = (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1)
        reset, update = torch.sigmoid(into[0] + on[0]), torch.sigmoid(into[1] + on[1])
        return (1 - update) * torch.tanh(into[2] + reset * on[2]) + update * h


def steps(model: VariationalFilter, batch: Any, noise: Tensor) -> Iterator[dict[str, Any]]:
    """Yield what is known after every step; where there is nothing, the state stays as it is."""
    two_level = isinstance(model.latent, TwoLevelLatent)
    walk: Any = (TwoLevelSteps if two_level else RecurrentSteps)(model.latent, len(noise))
    for t in range(noise.shape[1]):
        image = batch["observation"][:, t].to(noise.dtype) / 255
        reward, valid = batch["reward"][:, t], batch["mask"][:, t]
        seen = torch.cat(
            [model.encoder(image), *[reward[:, None]] * model.settings.reward_copies], 1
        )
        found = walk.step(seen, batch["action"][:, t], noise[:, t])
        walk.state = tuple(
            torch.where(valid[:, None], new, old)
            for new, old in zip(found["state"], walk.state, strict=True)
        )
        yield found | {"image": image, "reward": reward, "valid": valid}


def elbo(model: VariationalFilter, batch: Any, noise: Tensor) -> dict[str, Tensor]:
    """Return the same names as ``VariationalFilter.elbo``."""
    totals = {name: torch.zeros(len(noise)) for name in ("image", "reward", "kl", "prior_reward")}
    for found in steps(model, batch, noise):
        image = Normal(model.decoder(found["sample"]), model.settings.image_std)
        terms = {"image": -image.log_prob(found["image"]).flatten(1).sum(1), "kl": found["kl"]}
        for name, sample in (("reward", "sample"), ("prior_reward", "expected")):
            law = Normal(model.reward_decoder(found[sample])[:, 0], model.settings.reward_std)
            terms[name] = -law.log_prob(found["reward"])
        for name, value in terms.items():
            totals[name] = totals[name] + torch.where(found["valid"], value, 0.0)
    mean = {name: value.mean() for name, value in totals.items()}
    bound = -mean["image"] - model.settings.reward_weight * mean["reward"] - mean["kl"]
    loss = -bound + model.settings.prior_reward_weight * mean["prior_reward"]
    return mean | {"elbo": bound, "loss": loss}
