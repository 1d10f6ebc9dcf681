"""A variational filter as one would write it first: a plain loop over time, autograd throughout.

The same layers, sizes and loss as ``VariationalFilter``, whose parameters it borrows. The encoder
and the decoders run over all steps at once already; in the loop are prior, posterior, samples and
divergences, each on what the step has seen.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.recurrent import RecurrentLatent
from offline_meta_rl.networks.filter.two_level import TwoLevelLatent


def law(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = parameters.chunk(2, -1)
    return mean, F.softplus(raw) + 1e-5


def kl(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    ratio = (q[1] / p[1]).square()
    return 0.5 * (ratio + ((q[0] - p[0]) / p[1]).square() - 1 - ratio.log()).sum(-1)


def two_level_loop(
    latent: TwoLevelLatent, seen: Tensor, action: Tensor, noise: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return samples, divergences and samples of the prior at each step."""
    samples, divergences, expected = [], [], []
    (z2,) = latent.initial(seen.shape[1])
    for t in range(len(seen)):
        before = torch.cat([z2, action[t]], -1)
        prior = law(latent.first_prior(before))
        posterior = law(latent.first_posterior(torch.cat([before, seen[t]], -1)))
        first, second = noise[t].split([latent.first_size, latent.second_size], -1)
        pair = []
        for mean, std in (prior, posterior):
            z1 = mean + std * first
            mean2, std2 = law(latent.second(torch.cat([z1, before], -1)))
            z2 = mean2 + std2 * second
            pair.append(torch.cat([z1, z2], -1))
        expected.append(pair[0])
        samples.append(pair[1])
        divergences.append(kl(posterior, prior))
    return samples, divergences, expected


def recurrent_loop(
    latent: RecurrentLatent, seen: Tensor, action: Tensor, noise: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return samples, divergences and samples of the prior at each step."""
    samples, divergences, expected = [], [], []
    z, h = latent.initial(seen.shape[1])
    for t in range(len(seen)):
        embedded = F.leaky_relu(latent.embedding(torch.cat([z, action[t]], -1)), 0.2)
        h = latent.gru(embedded, h)
        prior = law(latent.prior_last(F.leaky_relu(latent.prior_hidden(h), 0.2)))
        hidden = latent.posterior_hidden(torch.cat([h, seen[t]], -1))
        posterior = law(latent.posterior_last(F.leaky_relu(hidden, 0.2)))
        z = posterior[0] + posterior[1] * noise[t]
        samples.append(torch.cat([z, h], -1))
        expected.append(torch.cat([prior[0] + prior[1] * noise[t], h], -1))
        divergences.append(kl(posterior, prior))
    return samples, divergences, expected


def eager_loss(model: VariationalFilter, batch: Mapping[str, Tensor], noise: Tensor) -> Tensor:
    """Return the loss of ``VariationalFilter.elbo`` on meta-trajectories without padding."""
    images = batch["observation"].float() / 255
    rows, steps = images.shape[:2]
    reward = batch["reward"]
    feature = model.encoder(images.flatten(0, 1)).unflatten(0, (rows, steps))
    copies = reward[..., None].expand(-1, -1, model.settings.reward_copies)
    seen = torch.cat([feature, copies], -1).transpose(0, 1)
    loop = two_level_loop if isinstance(model.latent, TwoLevelLatent) else recurrent_loop
    parts = loop(model.latent, seen, batch["action"].transpose(0, 1), noise.transpose(0, 1))
    sample, divergence, expected = (torch.stack(part, 1) for part in parts)
    decoded = model.decoder(sample.flatten(0, 1)).unflatten(0, (rows, steps))
    loss = gaussian_loss(decoded, images, model.settings.image_std) + divergence.sum()
    for weight, source in (
        (model.settings.reward_weight, sample),
        (model.settings.prior_reward_weight, expected),
    ):
        if weight:
            found = model.reward_decoder(source)[..., 0]
            loss = loss + weight * gaussian_loss(found, reward, model.settings.reward_std)
    return loss / rows


def gaussian_loss(mean: Tensor, value: Tensor, std: float) -> Tensor:
    """Return minus the log-likelihood, summed over everything."""
    constant = torch.log(torch.tensor(2 * torch.pi * std**2))
    return 0.5 * ((value - mean) ** 2 / std**2 + constant).sum()
