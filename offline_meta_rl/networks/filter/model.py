"""The variational filter: a belief over environment state and task from images and rewards.

The model of the Reflective Explorer (Rafailov et al., 2021, section 3.6), after MELD (Zhao et al.,
2020). Only what depends on the step before is inside the loop over time; encoder, decoders, prior
and losses run over all steps at once. All noise is an input, so that everything is deterministic.
Shapes: B meta-trajectories, S steps of each, C x h x w pixels, A action size, E noise size,
Z belief size.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from offline_meta_rl.networks.filter.batch import check_filter_batch
from offline_meta_rl.networks.filter.gaussians import SLOPE, log_density_scale, squared_errors
from offline_meta_rl.networks.filter.images import IMAGE_NETWORKS, to_bytes, to_unit
from offline_meta_rl.networks.filter.latents import Filtered, Latent, State
from offline_meta_rl.networks.filter.recurrent import RecurrentLatent
from offline_meta_rl.networks.filter.settings import FilterSettings
from offline_meta_rl.networks.filter.two_level import TwoLevelLatent

LatentMaker = Callable[[int, int], Latent]
"""Returns a latent state model, given the sizes of what it sees at a step and of the action."""


class VariationalFilter(nn.Module):
    """Infers a latent state from images, actions and rewards, and learns by explaining them.

    Args:
        image_shape: C, h, w of the images.
        action_size: A.
        settings: What it is made of and trained for.
        latent: Makes a latent state model of your own, in place of the settings' one.

    Raises:
        ValueError: Images that do not fit the networks.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        action_size: int,
        settings: FilterSettings = FilterSettings(),
        *,
        latent: LatentMaker | None = None,
    ) -> None:
        super().__init__()
        self.image_shape, self.action_size = tuple(image_shape), action_size
        self.settings = settings
        make_encoder, make_decoder = IMAGE_NETWORKS[settings.image_network]
        self.encoder = make_encoder(image_shape, settings.image_size)
        seen_size = self.encoder.feature_size + settings.reward_copies
        self.latent = (latent or chosen_latent(settings))(seen_size, action_size)
        self.decoder = make_decoder(self.latent.sample_size, image_shape, settings.image_size)
        hidden_size = settings.hidden_size
        self.reward_decoder = nn.Sequential(
            nn.Linear(self.latent.sample_size, hidden_size),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden_size, hidden_size),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden_size, 1),
        )

    @property
    def belief_size(self) -> int:
        """Z, numbers in a belief."""
        return self.latent.belief_size

    @property
    def noise_size(self) -> int:
        """E, standard normal numbers that one step uses."""
        return self.latent.noise_size

    def initial(self, batch_size: int) -> State:
        """Return the state before the first observation of B meta-trajectories, [B, ...] each."""
        return self.latent.initial(batch_size)

    def step(
        self, state: State, observation: Tensor, action: Tensor, reward: Tensor, noise: Tensor
    ) -> tuple[State, Tensor]:
        """Filter one step; the state is carried on between the episodes of a meta-trajectory.

        Args:
            state: State after the step before.
            observation: [B, C, h, w] uint8.
            action: Action that led to it, [B, A]; 0 at an episode's first observation.
            reward: Reward that arrived with it, [B]; 0 at an episode's first observation.
            noise: Standard normal, [B, E].

        Returns:
            The state, and the belief [B, Z]: mean and variance of the latent state.
        """
        seen = self._seen(to_unit(observation, noise), reward)
        state, _, belief = self.latent.step(state, seen, action, noise)
        return state, belief

    def beliefs(self, batch: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return the belief at every step, [B, S, Z]; it means nothing in padding.

        Args:
            batch: observation [B, S, C, h, w] uint8, action [B, S, A], reward [B, S], mask [B, S].
            noise: Standard normal, [B, S, E].
        """
        check_filter_batch(batch, self.image_shape, self.action_size)
        images = to_unit(batch["observation"], noise)
        return self.latent.belief(self._filter(images, batch, noise)).transpose(0, 1)

    def reconstructions(self, batch: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Return decoded images, [B, S, C, h, w] uint8; arguments as of ``beliefs``."""
        check_filter_batch(batch, self.image_shape, self.action_size)
        images = to_unit(batch["observation"], noise)
        return to_bytes(self._decode(self._filter(images, batch, noise).sample))

    def elbo(self, batch: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Return the loss, minus the evidence lower bound of section 3.6, and its terms.

        Every term is a sum over time and a mean over meta-trajectories: weighted by ``weight`` [B]
        of the batch where there is one, so that the parts of several processes add up.

        Args:
            batch: observation, action, reward and mask, as for ``beliefs``; ``weight`` [B] if any.
            noise: Standard normal, [B, S, E].

        Returns:
            ``loss``; ``elbo`` in nats; the negative log-likelihoods ``image``, ``reward`` and
            ``prior_reward``, without their weights; ``kl``. Only the loss has gradients.

        Raises:
            ValueError: a field that is missing or does not fit; see ``check_filter_batch``.
        """
        check_filter_batch(batch, self.image_shape, self.action_size)
        images = to_unit(batch["observation"], noise)
        filtered = self._filter(images, batch, noise)
        action, noises = batch["action"].transpose(0, 1), noise.transpose(0, 1)
        # The third term of section 3.6: posterior against what was expected before o_t and r_t.
        divergence, expected = self.latent.prior(filtered, action, noises)
        # Padding weighs nothing in any term.
        valid = batch["mask"].to(noise.dtype).t()
        count = batch.get("weight", None)
        weight = valid / len(noise) if count is None else valid * count
        reward = batch["reward"].t()
        terms = {
            "image": self._image_loss(images, filtered.sample, weight),
            "reward": self._reward_loss(reward, filtered.sample, weight),
            "kl": (divergence * weight).sum(),
        }
        # Section 3.6: log O(o | s) + beta log R(r | s) - KL, summed over all K episodes of a
        # meta-trajectory.
        bound = -terms["image"] - self.settings.reward_weight * terms["reward"] - terms["kl"]
        prior_weight = self.settings.prior_reward_weight
        # With weight 0 the term is only logged: nothing needs its gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and prior_weight > 0):
            terms["prior_reward"] = self._reward_loss(reward, expected, weight)
        loss = prior_weight * terms["prior_reward"] - bound
        return {"loss": loss, "elbo": bound.detach()} | {k: v.detach() for k, v in terms.items()}

    def _seen(self, images: Tensor, reward: Tensor) -> Tensor:
        """Return features of images [N, C, h, w] beside copies of the rewards [N]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.autocast):
            feature = self.encoder(images)
        # The reward is an input too, not only a target: it is what tells the task.
        copies = reward[:, None].expand(-1, self.settings.reward_copies)
        return torch.cat([feature.to(reward.dtype), copies], dim=-1)

    def _filter(self, images: Tensor, batch: Mapping[str, Tensor], noise: Tensor) -> Filtered:
        """Filter images [B, S, C, h, w] from 0 to 1; what comes out is [S, B, ...]."""
        seen = self._seen(images.flatten(0, 1), batch["reward"].flatten())
        mask = batch["mask"]
        return self.latent.filter(
            seen.unflatten(0, noise.shape[:2]).transpose(0, 1),
            batch["action"].transpose(0, 1),
            noise.transpose(0, 1),
            # Without padding the recurrence is spared a selection at every step.
            None if bool(mask.all()) else mask.t(),
        )

    def _decode(self, sample: Tensor) -> Tensor:
        """Return images of samples, [S, B, L] -> [B, S, C, h, w]."""
        rows = sample.transpose(0, 1)
        with torch.autocast(sample.device.type, torch.bfloat16, enabled=self.settings.autocast):
            images = self.decoder(rows.flatten(0, 1))
        return images.to(sample.dtype).unflatten(0, rows.shape[:2])

    def _image_loss(self, images: Tensor, sample: Tensor, weight: Tensor) -> Tensor:
        """Return minus the log-likelihood of images [B, S, ...], weighted by [S, B]."""
        scale, constant = log_density_scale(self.settings.image_std)
        # The largest tensors of all; see ``squared_errors``.
        error = squared_errors(self._decode(sample).flatten(0, 1), images.flatten(0, 1))
        numbers = math.prod(self.image_shape)
        return ((scale * error + constant * numbers) * weight.t().flatten()).sum()

    def _reward_loss(self, reward: Tensor, sample: Tensor, weight: Tensor) -> Tensor:
        """Return minus the log-likelihood of rewards [S, B] given samples [S, B, L]."""
        scale, constant = log_density_scale(self.settings.reward_std)
        error = (self.reward_decoder(sample)[..., 0] - reward).square()
        return ((scale * error + constant) * weight).sum()


def chosen_latent(settings: FilterSettings) -> LatentMaker:
    """Return the constructor of the latent state model that the settings name."""
    if settings.latent == "recurrent":
        return lambda seen, action: RecurrentLatent(seen, action, settings.recurrent)
    return lambda seen, action: TwoLevelLatent(seen, action, settings.two_level)
