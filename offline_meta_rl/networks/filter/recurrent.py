"""The recurrent state-space model of PlaNet (Hafner et al., 2019), as LOMPO uses it.

With x_t what is seen, a_t the action that led there, h_t a deterministic and z_t a random state:
    state      h_t = GRU(h_{t-1}, e(z_{t-1}, a_t))        e: one layer
    prior      z_t ~ p(z | h_t)                           one hidden layer
    posterior  z_t ~ q(z | h_t, x_t)                      one hidden layer
Its memory does not go through samples alone. The belief has h_t beside mean and variance: a
departure from the Reflective Explorer, whose latent has no deterministic part. Rectifiers are
leaky, as in all networks of the filter. Shapes as in ``latents``; D size of h.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.networks.filter.gaussians import SLOPE, divergence, draw, mean_and_variance
from offline_meta_rl.networks.filter.latents import Filtered, Latent, State
from offline_meta_rl.networks.filter.recurrence import (
    LoopDraw,
    LoopLayer,
    backward_chain,
    sample_slopes,
)


@dataclass(frozen=True)
class RecurrentSizes:
    """Sizes of a recurrent latent state, and how long it remembers before any training.

    Attributes:
        random_size: Numbers in z.
        deterministic_size: D, numbers in h.
        hidden_size: Width of the hidden layers.
        memory_steps: Steps over which parts of h last before training, from 1 to so many (the
            "chrono initialisation" of Tallec and Ollivier, 2018). 0 for the GRU's own
            initialisation, with which h fades within a few steps.

    Raises:
        ValueError: a size below 1, or a memory of 1 step.
    """

    random_size: int = 64
    deterministic_size: int = 256
    hidden_size: int = 256
    memory_steps: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_at_least(self, 1, "random_size", "deterministic_size", "hidden_size")
        if self.memory_steps < 0 or self.memory_steps == 1:
            raise ValueError(f"memory_steps: expected 0 or at least 2, found {self.memory_steps}.")


class RecurrentLatent(Latent):
    """Belief: mean and variance of z, then h.

    Args:
        seen_size: X.
        action_size: A.
        sizes: Sizes of the state and of its networks.
    """

    def __init__(
        self, seen_size: int, action_size: int, sizes: RecurrentSizes = RecurrentSizes()
    ) -> None:
        super().__init__()
        random_size, deterministic_size = sizes.random_size, sizes.deterministic_size
        hidden_size = sizes.hidden_size
        self.noise_size, self.deterministic_size = random_size, deterministic_size
        self.sample_size = random_size + deterministic_size
        self.belief_size = 2 * random_size + deterministic_size
        self.embedding = nn.Linear(random_size + action_size, hidden_size)
        self.gru = nn.GRUCell(hidden_size, deterministic_size)
        if sizes.memory_steps:
            _remember(self.gru, sizes.memory_steps)
        self.prior_hidden = nn.Linear(deterministic_size, hidden_size)
        self.prior_last = nn.Linear(hidden_size, 2 * random_size)
        self.posterior_hidden = nn.Linear(deterministic_size + seen_size, hidden_size)
        self.posterior_last = nn.Linear(hidden_size, 2 * random_size)

    def initial(self, batch_size: int) -> State:
        """Return z = 0, h = 0."""
        weight = self.prior_last.weight
        return (
            weight.new_zeros(batch_size, self.noise_size),
            weight.new_zeros(batch_size, self.deterministic_size),
        )

    def step(
        self, state: State, seen: Tensor, action: Tensor, noise: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """Filter one step of B rows: state, sample [B, L], belief [B, Z]; see ``Latent.step``."""
        sample, memory = state
        embedded = F.leaky_relu(self.embedding(torch.cat([sample, action], dim=-1)), SLOPE)
        memory = self.gru(embedded, memory)
        hidden = self.posterior_hidden(torch.cat([memory, seen], dim=-1))
        posterior = self.posterior_last(F.leaky_relu(hidden, SLOPE))
        sample = draw(posterior, noise)
        belief = torch.cat([mean_and_variance(posterior), memory], dim=-1)
        return (sample, memory), torch.cat([sample, memory], dim=-1), belief

    def filter(
        self, seen: Tensor, action: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> Filtered:
        """Filter a sequence [S, B, ...] from its beginning; see ``Latent.filter``."""
        start_sample, start_memory = self.initial(noise.shape[1])
        embedding, hidden, last = self.embedding, self.posterior_hidden, self.posterior_last
        random, deterministic = self.noise_size, self.deterministic_size
        posterior, sample, memory = _Recurrence.apply(
            # Of the first layers' products only those with z_{t-1} and h_t have to wait for the
            # step before.
            F.linear(action, embedding.weight[:, random:], embedding.bias),
            F.linear(seen, hidden.weight[:, deterministic:], hidden.bias),
            start_sample,
            start_memory,
            noise,
            mask,
            embedding.weight[:, :random],
            self.gru.weight_ih,
            self.gru.bias_ih,
            self.gru.weight_hh,
            self.gru.bias_hh,
            hidden.weight[:, :deterministic],
            last.weight,
            last.bias,
        )
        previous = (
            torch.cat([start_sample[None], sample[:-1]]),
            torch.cat([start_memory[None], memory[:-1]]),
        )
        return Filtered(torch.cat([sample, memory], dim=-1), (posterior, memory), previous)

    def belief(self, filtered: Filtered) -> Tensor:
        """Return mean, variance and h, [S, B, Z]; see ``Latent.belief``."""
        posterior, memory = filtered.parameters
        return torch.cat([mean_and_variance(posterior), memory], dim=-1)

    def prior(self, filtered: Filtered, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence [S, B] and samples of the prior [S, B, L]; see ``Latent.prior``."""
        posterior, memory = filtered.parameters
        # z_t is expected from h_t, which has z_{t-1} and a_t in it but nothing of x_t.
        expected = self.prior_last(F.leaky_relu(self.prior_hidden(memory), SLOPE))
        sample = torch.cat([draw(expected, noise), memory], dim=-1)
        return divergence(posterior, expected), sample


class _Context(FunctionCtx):
    """What going backward needs of going forward.

    Attributes:
        layers: Embedding, the gates' layers of input and of h, hidden and last of the posterior.
        parts: Samples [S + 1, B, Z], h [S + 1, B, D], gates [S, B, 3 D], noise [S, B, Z], mask.
    """

    layers: tuple[LoopLayer, LoopLayer, LoopLayer, list[LoopLayer]]
    parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


class _Recurrence(torch.autograd.Function):
    """State and posterior, step by step; checked against ``RecurrentLatent.step``."""

    @staticmethod
    def forward(
        ctx: _Context,
        action_known: Tensor,
        seen_known: Tensor,
        start_sample: Tensor,
        start_memory: Tensor,
        noise: Tensor,
        mask: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return parameters and samples of z, and h, [S, B, ...] each."""
        size = steps, rows = noise.shape[:2]
        we, wi, bi, wh, bh, w1, w2, b2 = weights
        embedding = LoopLayer(we, action_known, *size, activate=True)
        gates_in = LoopLayer(wi, bi, *size, activate=False)
        gates_on = LoopLayer(wh, bh, *size, activate=False)
        posterior = [
            LoopLayer(w1, seen_known, *size, activate=True),
            LoopLayer(w2, b2, *size, activate=False),
        ]
        sample = start_sample.new_empty(steps + 1, *start_sample.shape)
        memory = start_memory.new_empty(steps + 1, *start_memory.shape)
        sample[0], memory[0] = start_sample, start_memory
        width = memory.shape[-1]
        gates = memory.new_empty(steps, rows, 3 * width)  # reset, update, new
        sizes = [2 * width, width]
        both, new = _by_step(gates, sizes)
        reset, update, _ = _by_step(gates, [width] * 3)
        both_in, new_in = _by_step(gates_in.outputs, sizes)
        both_on, new_on = _by_step(gates_on.outputs, sizes)
        samples, memories = sample.unbind(0), memory.unbind(0)
        draw = LoopDraw(posterior[-1], noise, samples[1:])
        keep = None if mask is None else mask[..., None].unbind(0)
        for step in range(steps):
            old, following = memories[step], memories[step + 1]
            gates_in.forward(step, embedding.forward(step, samples[step]))
            gates_on.forward(step, old)
            # The GRU of torch.nn.GRUCell: r and u from both inputs, n with r on the part from
            # h_{t-1}, then h_t = (1 - u) n + u h_{t-1}.
            torch.add(both_in[step], both_on[step], out=both[step]).sigmoid_()
            torch.addcmul(new_in[step], reset[step], new_on[step], out=new[step]).tanh_()
            torch.lerp(new[step], old, update[step], out=following)
            posterior[1].forward(step, posterior[0].forward(step, following))
            drawn = draw.draw(step)
            if keep is not None:
                # In padding the state is carried on as it is, to the next episode of the
                # meta-trajectory.
                torch.where(keep[step], drawn, samples[step], out=drawn)
                torch.where(keep[step], following, old, out=following)
        ctx.layers = embedding, gates_in, gates_on, posterior
        ctx.parts = sample, memory, gates, noise, mask
        # A view, so that what ctx holds does not hold ctx in turn.
        return posterior[1].outputs[:], sample[1:], memory[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all but noise and mask."""
        embedding, gates_in, gates_on, posterior = ctx.layers
        for layer in (embedding, gates_in, gates_on, *posterior):
            layer.prepare_backward()
        sample, memory, gates, noise, mask = ctx.parts
        into, on, update = _gate_slopes(gates, gates_on.outputs, memory[:-1])
        slopes = sample_slopes(posterior[1].outputs, noise)
        pass_on = None
        if mask is not None:
            slopes *= mask[..., None, None]
            pass_on = (~mask[..., None]).to(noise.dtype).unbind(0)
            valid = mask[..., None].to(noise.dtype).unbind(0)
        of_posterior, of_sample, of_memory = gradients
        own = of_posterior.unflatten(-1, (2, -1)).unbind(0)
        delta = posterior[1].delta.unflatten(-1, (2, -1)).unbind(0)
        delta_in = gates_in.delta.unflatten(-1, (3, -1)).unbind(0)
        delta_on = gates_on.delta.unflatten(-1, (3, -1)).unbind(0)
        parts = slopes.unbind(0), into.unbind(0), on.unbind(0), update.unbind(0)
        samples, memories = of_sample.unbind(0), of_memory.unbind(0)
        to_sample, to_memory = torch.zeros_like(samples[0]), torch.zeros_like(memories[0])
        inner = torch.empty_like(to_memory)
        for step in reversed(range(len(samples))):
            slope, into_step, on_step, kept = (part[step] for part in parts)
            # Gradient of z_t and h_t: from the losses of this step, and from all steps after it.
            of_z, of_h = to_sample.add_(samples[step]), to_memory.add_(memories[step])
            torch.addcmul(own[step], slope, of_z[:, None], out=delta[step])
            backward_chain(posterior, step, out=inner)
            if pass_on is None:
                inner.add_(of_h)
            else:
                inner.addcmul_(valid[step], of_h)
            torch.mul(inner[:, None], into_step, out=delta_in[step])
            torch.mul(inner[:, None], on_step, out=delta_on[step])
            next_z = embedding.backward(step, gates_in.backward(step))
            next_h = gates_on.backward(step).addcmul_(inner, kept)
            if pass_on is not None:
                # A padded step is the identity, so its gradient goes on to the step before
                # untouched.
                next_z.addcmul_(pass_on[step], of_z)
                next_h.addcmul_(pass_on[step], of_h)
            to_sample, to_memory = next_z, next_h
        return (
            embedding.delta,
            posterior[0].delta,
            to_sample,
            to_memory,
            None,
            None,
            embedding.weight_gradient(sample[:-1]),
            gates_in.weight_gradient(embedding.outputs),
            gates_in.bias_gradient(),
            gates_on.weight_gradient(memory[:-1]),
            gates_on.bias_gradient(),
            posterior[0].weight_gradient(memory[1:]),
            posterior[1].weight_gradient(posterior[0].outputs),
            posterior[1].bias_gradient(),
        )


@torch.no_grad()
def _remember(gru: nn.GRUCell, steps: int) -> None:
    """Initialise the update gates so that the parts of h last for 1 to ``steps`` steps.

    A part with u in h_t = (1 - u) n + u h_{t-1} lasts for about 1 / (1 - u) steps, which is 1 + exp
    of the gate's bias.
    """
    of_update = slice(gru.hidden_size, 2 * gru.hidden_size)
    gru.bias_ih[of_update] = torch.empty(gru.hidden_size).uniform_(1.0, max(1.0, steps - 1.0)).log()
    gru.bias_hh[of_update] = 0.0


def _by_step(values: Tensor, sizes: list[int]) -> list[tuple[Tensor, ...]]:
    """Split the last dimension of [S, B, ...], and each part by steps."""
    return [part.unbind(0) for part in values.split(sizes, dim=-1)]


def _gate_slopes(gates: Tensor, on: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives of h_t with respect to the inputs of its gates.

    With r, u, n the gates and g the part of ``on`` that r scales, h_t = (1 - u) n + u h_{t-1}.

    Args:
        gates: r, u, n, [S, B, 3 D].
        on: Gates' inputs from h_{t-1}, [S, B, 3 D].
        before: h_{t-1}, [S, B, D].

    Returns:
        [S, B, 3, D] of what comes from the input, [S, B, 3, D] of what comes from h_{t-1} through
        the gates, and [S, B, D] of h_{t-1} directly.
    """
    reset, update, new = gates.chunk(3, dim=-1)
    of_new = (1.0 - update) * (1.0 - new.square())
    of_update = (before - new) * update * (1.0 - update)
    of_reset = of_new * on.chunk(3, dim=-1)[2] * reset * (1.0 - reset)
    into = torch.stack([of_reset, of_update, of_new], dim=2)
    return into, torch.stack([of_reset, of_update, of_new * reset], dim=2), update
