"""Layers inside a recurrence over time, with gradients written out by hand.

What a recurrence costs is many small operations, one after another. Three things keep them few:
what a layer adds to the product with the previous state is computed before, for all steps at once;
going backward, the slopes of all steps are computed at once; and the gradients of the weights,
which nothing inside waits for, are one product over all steps at the end. Shapes: S steps, B rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from offline_meta_rl.networks.filter.gaussians import MIN_STD, SLOPE


class LoopLayer:
    """One linear layer inside the loop: outputs = activation(inputs W^T + bias).

    ``backward`` and what follows it may be called once ``forward`` was for every step.

    Args:
        weight: W, [out, in].
        bias: [out], or what is added at each step, [S, B, out].
        steps: S, how many steps the loop has.
        rows: B, rows at each step.
        activate: Apply the leaky rectifier.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, steps: int, rows: int, *, activate: bool
    ) -> None:
        self.weight, self.activate = weight, activate
        self._transposed = weight.t()
        self._bias = bias.unbind(0) if bias.ndim == 3 else (bias,) * steps
        # All steps in one tensor: slopes and weight gradients are then one operation each at the
        # end.
        self.outputs = weight.new_empty(steps, rows, len(weight))
        self._outputs = self.outputs.unbind(0)

    def forward(self, step: int, inputs: Tensor) -> Tensor:
        """Return the outputs of one step, [B, in] -> [B, out]."""
        outputs = self._outputs[step]
        torch.addmm(self._bias[step], inputs, self._transposed, out=outputs)
        if self.activate:
            F.leaky_relu_(outputs, SLOPE)
        return outputs

    def prepare_backward(self) -> None:
        """Compute the slopes of all steps and make room for the gradients."""
        self.delta = torch.empty_like(self.outputs)
        self.deltas = self.delta.unbind(0)
        if self.activate:
            # From the outputs, which have the inputs' signs; much faster than a comparison.
            slope = torch.ops.aten.leaky_relu_backward(
                torch.ones_like(self.outputs), self.outputs, SLOPE, True
            )
            self._slopes = slope.unbind(0)

    def backward(
        self, step: int, gradient: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Return the gradient of one step's inputs, [B, in].

        Args:
            step: Index of the step, 0 to S - 1.
            gradient: Gradient of the outputs, [B, out]; None if that of the linear part is already
                in ``deltas``.
            out: Where to write the result.
        """
        delta = self.deltas[step]
        if gradient is not None:
            torch.mul(gradient, self._slopes[step], out=delta)
        return torch.mm(delta, self.weight, out=out)

    def weight_gradient(self, inputs: Tensor) -> Tensor:
        """Return the gradient of W from the inputs of all steps, [S, B, in] -> [out, in]."""
        return self.delta.flatten(0, 1).t() @ inputs.flatten(0, 1)

    def bias_gradient(self) -> Tensor:
        """Return the gradient of the bias, [out]."""
        return self.delta.sum(dim=(0, 1))


def backward_chain(layers: Sequence[LoopLayer], step: int, out: Tensor) -> None:
    """Go back through layers, the last of them linear, with its gradient in ``deltas``.

    Args:
        layers: Two layers or more, from first to last.
        step: Index of the step, 0 to S - 1.
        out: Where to write the gradient of the first one's inputs, [B, in].
    """
    # The caller wrote the last layer's own gradient into ``deltas``; only hidden layers need
    # slopes.
    gradient = layers[-1].backward(step)
    for layer in reversed(layers[1:-1]):
        gradient = layer.backward(step, gradient)
    layers[0].backward(step, gradient, out)


class LoopDraw:
    """Samples of Gaussians inside the loop, as ``gaussian.draw``.

    Args:
        layer: Computes the parameters, [S, B, 2 Z].
        noise: [S, B, Z].
        samples: Where each step's sample goes, S times [B, Z].
    """

    def __init__(self, layer: LoopLayer, noise: Tensor, samples: Sequence[Tensor]) -> None:
        means, raws = layer.outputs.chunk(2, dim=-1)
        self._means, self._raws = means.unbind(0), raws.unbind(0)
        self._noise, self._samples = noise.unbind(0), samples

    def draw(self, step: int) -> Tensor:
        """Return the sample of one step, [B, Z]."""
        # Contiguous as in ``gaussians.mean_and_std``: on a slice softplus takes 8 times as long.
        std = F.softplus(self._raws[step].contiguous()).add_(MIN_STD)
        out = self._samples[step]
        return torch.addcmul(self._means[step], std, self._noise[step], out=out)


def sample_slopes(parameters: Tensor, noise: Tensor) -> Tensor:
    """Return the derivatives of samples in their Gaussians' parameters.

    Args:
        parameters: [S, B, 2 Z].
        noise: [S, B, Z].

    Returns:
        [S, B, 2, Z]: 1 for the mean, noise * sigmoid(raw) for what becomes the deviation.
    """
    raw = parameters.chunk(2, dim=-1)[1]
    return torch.stack([torch.ones_like(raw), noise * torch.sigmoid(raw)], dim=2)
