"""The recurrent latent state from TorchRL's modules, in place of this project's.

``RSSMPrior``, ``RSSMPosterior`` and ``RSSMRollout`` with the sizes of a ``RecurrentLatent``;
encoder, decoders and losses are those of the filter that they are put into, over all steps at once.
"""

import functools
import importlib.util
import warnings
from collections.abc import Mapping

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.modules import RSSMPosterior, RSSMPrior, RSSMRollout

from offline_meta_rl.networks.filter.model import VariationalFilter
from tests.benchmarks.eager_filter import gaussian_loss, kl


class TorchrlFilter(nn.Module):
    """A filter whose recurrence is TorchRL's.

    Args:
        model: with a ``RecurrentLatent`` whose hidden and deterministic sizes are equal.
        action_size: A.
    """

    def __init__(self, model: VariationalFilter, action_size: int) -> None:
        super().__init__()
        self.model = model
        latent = model.latent
        random, width = latent.noise_size, latent.deterministic_size
        seen = latent.posterior_hidden.in_features - width
        sizes = {"hidden_dim": width, "rnn_hidden_dim": width, "state_dim": random}
        prior = RSSMPrior(Unbounded((action_size,)), **sizes, action_dim=action_size)
        posterior = RSSMPosterior(**sizes, obs_embed_dim=seen)
        own = [p for name, p in latent.named_parameters()]
        assert count(own) == count([*prior.parameters(), *posterior.parameters()])
        self.rollout = RSSMRollout(
            TensorDictModule(
                prior,
                in_keys=["state", "belief", "action"],
                out_keys=[("next", name) for name in ("prior_mean", "prior_std", "_", "belief")],
            ),
            TensorDictModule(
                posterior,
                in_keys=[("next", "belief"), ("next", "encoded_latents")],
                out_keys=[("next", name) for name in ("mean", "std", "state")],
            ),
        )
        self.parts = nn.ModuleList([model.encoder, model.decoder, model.reward_decoder])

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of the evidence lower bound, without departures."""
        model = self.model
        images, reward = batch["observation"].float() / 255, batch["reward"]
        shape = images.shape[:2]
        feature = model.encoder(images.flatten(0, 1)).unflatten(0, shape)
        copies = reward[..., None].expand(-1, -1, model.settings.reward_copies)
        start = (
            images.new_zeros(*shape, size)
            for size in (model.latent.noise_size, model.latent.deterministic_size)
        )
        given = dict(zip(("state", "belief"), start, strict=True)) | {"action": batch["action"]}
        given["next"] = {"encoded_latents": torch.cat([feature, copies], -1)}
        found = self.rollout(TensorDict(given, batch_size=shape))["next"]
        divergence = kl((found["mean"], found["std"]), (found["prior_mean"], found["prior_std"]))
        sample = torch.cat([found["state"], found["belief"]], -1)
        decoded = model.decoder(sample.flatten(0, 1)).unflatten(0, shape)
        loss = gaussian_loss(decoded, images, model.settings.image_std) + divergence.sum()
        told = model.reward_decoder(sample)[..., 0]
        loss = loss + model.settings.reward_weight * gaussian_loss(
            told, reward, model.settings.reward_std
        )
        return loss / shape[0]


def count(parameters: list[Tensor]) -> int:
    """Return how many numbers there are."""
    return sum(parameter.numel() for parameter in parameters)


def without_searching_for_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorDict look for pandas once, not for every tensor that a module returns.

    Where pandas is not installed every look searches the whole path, and pytest's own import hook
    makes that slow: it would be most of what is measured.
    """
    monkeypatch.setattr(importlib.util, "find_spec", functools.cache(importlib.util.find_spec))


def quietly(model: VariationalFilter, action_size: int) -> TorchrlFilter:
    """Make the filter without TorchRL's own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TorchrlFilter(model, action_size)
