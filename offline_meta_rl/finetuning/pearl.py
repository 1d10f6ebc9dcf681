"""PEARL online, for the agents of T tasks at once: z is inferred anew, soft actor-critic goes on.

PEARL's own way to adapt online is inference (Rakelly et al., 2019, Algorithm 2): every transition
that a task sees is one more factor of its q(z | c), so after an episode z is known better. Beside
it, every task trains actor, critics and value function of its own on its replay, with the losses of
meta-training. The encoder stays as it was meta-trained: for one task alone z is a bias of first
layers, and those are trained. Shapes: T tasks, E environments of each, B transitions, H steps, Z
latent size, O/A observation/action size.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.finetuning.learner import OnlineLearner
from offline_meta_rl.finetuning.replay import Columns
from offline_meta_rl.losses.pearl import (
    PearlNoise,
    PearlParameters,
    PearlSettings,
    conditioned_actor,
    losses_given,
)
from offline_meta_rl.networks.actors import polyak
from offline_meta_rl.networks.context_encoder import Gaussians, context_rows, factors
from offline_meta_rl.networks.stacked import Layers

FIELDS = ("observation", "action", "reward", "next_observation", "terminated")


Networks = TypeVar("Networks")


class PearlLearner(OnlineLearner):
    """Agents of T tasks that infer z and learn by soft actor-critic.

    Args:
        parameters: Meta-trained; every agent starts from a copy, and the encoder stays as it is.
        target_value: The value function's target, of which every agent has a copy too.
        num_tasks: T.
        context_fields: What the encoder sees of a transition, in its order.
        settings: Weights and scales of the losses.
        learning_rate: Learning rate of Adam for all networks; its moments start fresh.
        target_update: Share of the value function that moves into its target at each update.
        infer: z is inferred anew after each episode; False keeps the z of the offline context.
        sigma: Standard deviation of the noise to explore with; None for the actor's own.

    Attributes:
        precision: Precision of q(z | c), a sum over the transitions seen, [T, Z]; 0 before any.
        weighted_mean: Sum of precision times mean, [T, Z].

    Raises:
        ValueError: a learning rate, target_update or sigma out of range.
    """

    updates: ClassVar[Mapping[str, int]] = {"sac": 200}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"sac": FIELDS}
    fields = FIELDS

    def __init__(
        self,
        parameters: PearlParameters,
        target_value: Layers,
        *,
        num_tasks: int,
        context_fields: tuple[str, ...],
        settings: PearlSettings,
        learning_rate: float = 3e-4,
        target_update: float = 0.005,
        infer: bool = True,
        sigma: float | None = None,
    ) -> None:
        _check(learning_rate, target_update, sigma)
        self.encoder = [(w.detach().clone(), b.detach().clone()) for w, b in parameters.encoder]
        own = parameters._replace(encoder=[])
        self.learned: PearlParameters = _copies(own, num_tasks, learned=True)
        self.target: Layers = _copies(target_value, num_tasks, learned=False)
        self.context_fields, self.settings = context_fields, settings
        self.target_update, self.infer, self.sigma = target_update, infer, sigma
        self.precision = self.encoder[-1][1].new_zeros(
            num_tasks, self.encoder[-1][1].shape[-1] // 2
        )
        self.weighted_mean = torch.zeros_like(self.precision)
        leaves = pytree.tree_leaves(self.learned)
        self.optimizer = torch.optim.Adam(leaves, lr=learning_rate, fused=True)

    def belief(self) -> Gaussians:
        """Return q(z | c) given all that was seen, [T, Z]; the prior where nothing was."""
        # N(0, I) is no factor of q(z | c); it stands in only where nothing was seen yet.
        seen = self.precision > 0
        variance = torch.where(seen, self.precision, 1.0).reciprocal()
        return Gaussians(variance * self.weighted_mean, variance)

    @torch.no_grad()
    def see(self, transitions: Columns, kept: Tensor) -> None:
        """Multiply q(z | c) by the factors of new transitions.

        Args:
            transitions: ``context_fields`` [T, B, ...].
            kept: False where a row does not count, [T, B].
        """
        rows = context_rows({n: transitions[n] for n in self.context_fields}, self.context_fields)
        mean, variance = factors(self.encoder, rows.to(self.precision))
        counted = kept[..., None].to(mean.device)
        precision = torch.where(counted, variance.reciprocal(), 0.0)
        # The product of Gaussians adds precisions and precision-weighted means, so transitions can
        # be forgotten once they are counted.
        self.precision += precision.sum(dim=1)
        self.weighted_mean += torch.where(counted, precision * mean, 0.0).sum(dim=1)

    def observe(self, episode: Columns, kept: Tensor) -> None:
        """Extend the context by an episode of every task, [T, H]; from here on z is another."""
        if self.infer:
            self.see(episode, kept)

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return mean actions given the mean of z, or noisy ones, [T, E, A]."""
        inputs, latent = observation.to(self.precision), self.belief().mean
        # Each task has an actor of its own: vmap over tasks, each of them a batch of T = 1.
        gaussian = torch.vmap(conditioned_actor)(
            self.learned.actor, inputs[:, None], latent[:, None]
        )
        mean, log_std = (each[:, 0] for each in gaussian)
        if noise is None:
            return torch.tanh(mean)
        if self.sigma is None:
            return torch.tanh(mean + log_std.exp() * noise.to(mean))
        return torch.tanh(mean) + self.sigma * noise.to(mean)

    def losses(
        self,
        learned: PearlParameters,
        target: Layers,
        q: Gaussians,
        batch: Columns,
        noise: PearlNoise,
    ) -> dict[str, Tensor]:
        """Return the losses of ``pearl_losses``, every task's by networks of its own, [T]."""
        one = torch.ones(1, dtype=q.mean.dtype, device=q.mean.device)

        def of_one_task(
            own: PearlParameters,
            own_target: Layers,
            own_q: Gaussians,
            own_batch: Columns,
            own_noise: PearlNoise,
        ) -> dict[str, Tensor]:
            alone = pytree.tree_map(lambda each: each[None], (own_q, own_batch, own_noise))
            own_q, own_batch, own_noise = alone
            return losses_given(own_q, own, own_target, own_batch, own_noise, one, self.settings)

        return torch.vmap(of_one_task)(learned, target, q, dict(batch), noise)

    def update(self, kind: str, batch: Columns, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step of Adam with a sample of each task's z; return every task's losses, [T]."""
        shape = (len(self.precision), *batch["action"].shape[1:])
        drawn = [torch.randn(s, generator=generator) for s in (self.precision.shape, shape)]
        noise = PearlNoise(*(each.to(self.precision) for each in drawn))
        leaves = pytree.tree_leaves(self.learned)
        with torch.enable_grad():
            losses = self.losses(self.learned, self.target, self.belief(), batch, noise)
            # Without the divergence: it trains the encoder alone, which is not trained here.
            total = losses["critic"] + losses["value"] + losses["actor"]
            gradients = torch.autograd.grad(total.sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            # Adam's fused kernel walks memory in order; see ``MetaModule.apply_gradients``.
            leaf.grad = gradient.contiguous()
        self.optimizer.step()
        value = pytree.tree_leaves(self.learned.value)
        polyak(pytree.tree_leaves(self.target), value, self.target_update)
        return {name: loss.detach() for name, loss in losses.items() if name != "kl"}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, targets, Adam's state, and what was seen."""
        return {
            "parameters": [leaf.detach().cpu().clone() for leaf in self._tensors()],
            "optimizer": deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; the encoder is the checkpoint's."""
        for tensor, saved in zip(self._tensors(), state["parameters"], strict=True):
            tensor.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    def _tensors(self) -> list[Tensor]:
        """Return all that changes but Adam's moments."""
        changing = (self.learned, self.target, self.precision, self.weighted_mean)
        return pytree.tree_leaves(changing)


def _copies(networks: Networks, num_tasks: int, *, learned: bool) -> Networks:
    """Return a copy of every tensor for each of T tasks, [T, ...]."""

    def copy(tensor: Tensor) -> Tensor:
        copies = tensor.detach().expand(num_tasks, *tensor.shape)
        return copies.clone(memory_format=torch.contiguous_format).requires_grad_(learned)

    found: Networks = pytree.tree_map(copy, networks)
    return found


def _check(learning_rate: float, target_update: float, sigma: float | None) -> None:
    if learning_rate <= 0.0:
        raise ValueError(f"learning_rate: expected more than 0, found {learning_rate}.")
    if not 0.0 < target_update <= 1.0:
        raise ValueError(f"target_update: expected in (0, 1], found {target_update}.")
    if sigma is not None and sigma < 0.0:
        raise ValueError(f"sigma: expected at least 0, or None, found {sigma}.")
