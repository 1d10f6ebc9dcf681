"""The two-level latent state of SLAC (Lee et al., 2020) and MELD (Zhao et al., 2020).

With x_t what is seen, a_t the action that led there and s_t = (z1_t, z2_t):
    prior      z1_t ~ p(z1 | z2_{t-1}, a_t)
    posterior  z1_t ~ q(z1 | x_t, z2_{t-1}, a_t)
    both       z2_t ~ p(z2 | z1_t, z2_{t-1}, a_t)
so that only z1 has a divergence, and memory goes through samples of z2. Departure: MELD has
networks of their own for the first step, with the prior N(0, 1); here it is an ordinary step from
z2 = 0 with the action 0, so that its prior is learned. Shapes as in ``latents``.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.networks.filter.gaussians import (
    GaussianMLP,
    divergence,
    draw,
    mean_and_variance,
)
from offline_meta_rl.networks.filter.latents import Filtered, Latent, State
from offline_meta_rl.networks.filter.recurrence import (
    LoopDraw,
    LoopLayer,
    backward_chain,
    sample_slopes,
)


@dataclass(frozen=True)
class TwoLevelSizes:
    """Sizes of a two-level latent state.

    Attributes:
        first_size: Numbers in z1.
        second_size: Numbers in z2.
        hidden_size: Width of the two hidden layers of each network.

    Raises:
        ValueError: a size below 1.
    """

    first_size: int = 64
    second_size: int = 32
    hidden_size: int = 256

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_at_least(self, 1, "first_size", "second_size", "hidden_size")


class TwoLevelLatent(Latent):
    """Belief: mean and variance of z1, mean and variance of z2.

    Args:
        seen_size: X.
        action_size: A.
        sizes: Sizes of the state and of its networks.
    """

    def __init__(
        self, seen_size: int, action_size: int, sizes: TwoLevelSizes = TwoLevelSizes()
    ) -> None:
        super().__init__()
        first_size, second_size = sizes.first_size, sizes.second_size
        hidden_size = sizes.hidden_size
        self.first_size, self.second_size = first_size, second_size
        self.sample_size = self.noise_size = first_size + second_size
        self.belief_size = 2 * self.sample_size
        before = second_size + action_size
        self.first_prior = GaussianMLP(before, hidden_size, first_size)
        self.first_posterior = GaussianMLP(before + seen_size, hidden_size, first_size)
        self.second = GaussianMLP(first_size + before, hidden_size, second_size)

    def initial(self, batch_size: int) -> State:
        """Return z2 = 0."""
        return (self.second.last.weight.new_zeros(batch_size, self.second_size),)

    def step(
        self, state: State, seen: Tensor, action: Tensor, noise: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        """Filter one step of B rows: state, sample [B, L], belief [B, Z]; see ``Latent.step``."""
        (before,) = state
        first_noise, second_noise = self._split(noise)
        first = self.first_posterior(torch.cat([before, action, seen], dim=-1))
        first_sample = draw(first, first_noise)
        second = self.second(torch.cat([first_sample, before, action], dim=-1))
        second_sample = draw(second, second_noise)
        belief = torch.cat([mean_and_variance(first), mean_and_variance(second)], dim=-1)
        return (second_sample,), torch.cat([first_sample, second_sample], dim=-1), belief

    def filter(
        self, seen: Tensor, action: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> Filtered:
        """Filter a sequence [S, B, ...] from its beginning; see ``Latent.filter``."""
        first_noise, second_noise = self._split(noise)
        posterior, second = self.first_posterior, self.second
        memory, joint = self.second_size, self.sample_size
        # Of the first layers' products only those with z2_{t-1} and z1_t have to wait for the step
        # before.
        known = torch.cat([action, seen], dim=-1)
        (start,) = self.initial(noise.shape[1])
        first_raw, first_sample, second_raw, second_sample = _Recurrence.apply(
            _project(known, posterior.first.weight[:, memory:], posterior.first.bias),
            _project(action, second.first.weight[:, joint:], second.first.bias),
            start,
            first_noise.contiguous(),
            second_noise.contiguous(),
            mask,
            posterior.first.weight[:, :memory],
            *_linear(posterior),
            second.first.weight[:, :joint],
            *_linear(second),
        )
        return Filtered(
            sample=torch.cat([first_sample, second_sample], dim=-1),
            parameters=(first_raw, second_raw),
            previous=(torch.cat([start[None], second_sample[:-1]]),),
        )

    def belief(self, filtered: Filtered) -> Tensor:
        """Return means and variances, [S, B, Z]; see ``Latent.belief``."""
        return torch.cat([mean_and_variance(part) for part in filtered.parameters], dim=-1)

    def prior(self, filtered: Filtered, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence [S, B] and samples of the prior [S, B, L]; see ``Latent.prior``."""
        (before,) = filtered.previous
        first_noise, second_noise = self._split(noise)
        expected = self.first_prior(torch.cat([before, action], dim=-1))
        first_sample = draw(expected, first_noise)
        second = self.second(torch.cat([first_sample, before, action], dim=-1))
        # The law of z2 is the same in prior and posterior; only its z1 differs.
        sample = torch.cat([first_sample, draw(second, second_noise)], dim=-1)
        # z2 has no divergence of its own; see the module docstring.
        return divergence(filtered.parameters[0], expected), sample

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        first, second = noise.split([self.first_size, self.second_size], dim=-1)
        return first, second


def _project(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a first layer to the inputs that are known beforehand, [S, B, in] -> [S, B, out]."""
    return torch.nn.functional.linear(inputs, weight, bias)


def _linear(network: GaussianMLP) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights and biases behind the first layer."""
    second, last = network.second, network.last
    return second.weight, second.bias, last.weight, last.bias


class _Context(FunctionCtx):
    """What going backward needs of going forward.

    Attributes:
        layers: Layers of the posterior of z1, and of the law of z2.
        joint: z1_t beside z2_{t-1}, [S + 1, B, first + second].
        mask: [S, B], or None.
        noises: Noise of z1 and of z2, [S, B, ...] each.
    """

    layers: tuple[list[LoopLayer], list[LoopLayer]]
    joint: Tensor
    mask: Tensor | None
    noises: tuple[Tensor, Tensor]


class _Recurrence(torch.autograd.Function):
    """Posterior of z1 and law of z2, step by step; checked against ``TwoLevelLatent.step``."""

    @staticmethod
    def forward(
        ctx: _Context,
        posterior_known: Tensor,
        second_known: Tensor,
        start: Tensor,
        first_noise: Tensor,
        second_noise: Tensor,
        mask: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return parameters and samples of z1, parameters and samples of z2, [S, B, ...] each."""
        steps, rows, first_size = first_noise.shape
        w1, w2, b2, w3, b3, v1, v2, c2, v3, c3 = weights
        size = (steps, rows)
        posterior = [
            LoopLayer(w1, posterior_known, *size, activate=True),
            LoopLayer(w2, b2, *size, activate=True),
            LoopLayer(w3, b3, *size, activate=False),
        ]
        second = [
            LoopLayer(v1, second_known, *size, activate=True),
            LoopLayer(v2, c2, *size, activate=True),
            LoopLayer(v3, c3, *size, activate=False),
        ]
        # What the law of z2 sees at a step: z1_t and z2_{t-1}; the next step's place is where the
        # new z2 goes.
        joint = start.new_empty(steps + 1, rows, first_size + start.shape[-1])
        first_samples, memory = joint.split([first_size, start.shape[-1]], dim=-1)
        memory[0] = start
        states, joints = memory.unbind(0), joint.unbind(0)
        draw_first = LoopDraw(posterior[-1], first_noise, first_samples.unbind(0))
        draw_second = LoopDraw(second[-1], second_noise, states[1:])
        keep = None if mask is None else mask[..., None].unbind(0)
        for step in range(steps):
            value = states[step]
            for layer in posterior:
                value = layer.forward(step, value)
            draw_first.draw(step)
            value = joints[step]
            for layer in second:
                value = layer.forward(step, value)
            following = draw_second.draw(step)
            if keep is not None:
                # In padding z2 is carried on as it is, to the next episode of the meta-trajectory.
                torch.where(keep[step], following, states[step], out=following)
        ctx.layers, ctx.joint, ctx.mask = (posterior, second), joint, mask
        ctx.noises = first_noise, second_noise
        # Views, so that what ctx holds does not hold ctx in turn.
        return posterior[-1].outputs[:], first_samples[:-1], second[-1].outputs[:], memory[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all but noise and mask."""
        posterior, second = ctx.layers
        for layer in (*posterior, *second):
            layer.prepare_backward()
        of_first, of_sample, of_second, of_memory = gradients
        first_slopes = sample_slopes(posterior[-1].outputs, ctx.noises[0])
        second_slopes = sample_slopes(second[-1].outputs, ctx.noises[1])
        pass_on = None
        if ctx.mask is not None:
            second_slopes *= ctx.mask[..., None, None]
            pass_on = (~ctx.mask[..., None]).to(of_memory.dtype).unbind(0)
        rows, first_size = of_sample.shape[1:]
        into_first = _pairs(posterior[-1].delta), _pairs(of_first), first_slopes.unbind(0)
        into_second = _pairs(second[-1].delta), _pairs(of_second), second_slopes.unbind(0)
        samples, states = of_sample.unbind(0), of_memory.unbind(0)
        carry, state = torch.zeros_like(states[0]), torch.empty_like(states[0])
        joint = state.new_empty(rows, first_size + state.shape[-1])
        to_sample, to_memory = joint.split([first_size, state.shape[-1]], dim=-1)
        for step in reversed(range(len(states))):
            # Gradient of z2_t: from the losses of this step, and from all steps after it.
            torch.add(carry, states[step], out=state)
            delta, own, slope = (parts[step] for parts in into_second)
            torch.addcmul(own, slope, state[:, None], out=delta)
            backward_chain(second, step, out=joint)
            to_sample.add_(samples[step])
            delta, own, slope = (parts[step] for parts in into_first)
            torch.addcmul(own, slope, to_sample[:, None], out=delta)
            backward_chain(posterior, step, out=carry)
            carry.add_(to_memory)
            if pass_on is not None:
                # A padded step is the identity, so its gradient goes on to the step before
                # untouched.
                carry.addcmul_(pass_on[step], state)
        seen = ctx.joint[:-1]
        return (
            posterior[0].delta,
            second[0].delta,
            carry,
            None,
            None,
            None,
            *_weight_gradients(posterior, seen[..., first_size:]),
            *_weight_gradients(second, seen),
        )


def _pairs(parameters: Tensor) -> tuple[Tensor, ...]:
    """View parameters [S, B, 2 Z] step by step as [B, 2, Z]."""
    return parameters.unflatten(-1, (2, -1)).unbind(0)


def _weight_gradients(layers: list[LoopLayer], inputs: Tensor) -> list[Tensor]:
    """Return the gradients of weights and biases, without the first bias."""
    result = [layers[0].weight_gradient(inputs)]
    for before, layer in itertools.pairwise(layers):
        result += [layer.weight_gradient(before.outputs), layer.bias_gradient()]
    return result
