"""The inner loop: gradient steps of every task at once, in closed form.

A weight-transform layer generates theta = M z + c. With g = dL/dtheta of one task, one gradient
step on (z, M, c) with step sizes (a_z, a_M, a_c) gives

    z' = z - a_z M^T g        M' = M - a_M g z^T        c' = c - a_c g
    theta' = M' z' + c' = M z' - a_M g (z . z') + c - a_c g

so a task's own M' is never formed: g and z' are vectors, M is shared by all tasks. After several
steps M' is M minus a sum of rank-one terms, which are kept as factors. This is exact, and
differentiable in the meta-parameters and in the step sizes to any order. Where M generates the
biases alone (see ``layer_kinds``) g stands for their part of the gradient in all terms with M.

Shapes: T tasks, L layers, Z latent size, D numbers of one generated layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offline_meta_rl.networks.generated import (
    LayerParameters,
    add_product,
    generate,
    times,
    transposed_times,
)

InnerLoss = Callable[[list[Tensor], int], Tensor]
"""Maps the generated layers ([T, D] each) and the step's index to the *sum* of the tasks' losses.

Task t's loss must depend on row t alone; then the gradient's row t is that task's own gradient.
"""


@dataclass(frozen=True)
class InnerLoop:
    """How the inner loop adapts in meta-training.

    Attributes:
        num_steps: Gradient steps.
        policy_step: Initial step size of the policy's tensors; the step sizes are learned.
        first_order: Ignore second derivatives.
    """

    num_steps: int = 1
    policy_step: float = 1e-3
    first_order: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Names the setting, what was expected and what was found.
        """
        if self.num_steps < 0:
            raise ValueError(f"num_steps: expected at least 0, found {self.num_steps}.")
        if self.policy_step <= 0.0:
            raise ValueError(f"policy_step: expected more than 0, found {self.policy_step}.")


def adapt(
    layers: Sequence[LayerParameters],
    step_sizes: Tensor,
    loss: InnerLoss,
    *,
    num_tasks: int,
    num_steps: int,
    num_kept: int | None = None,
    first_order: bool = False,
) -> list[list[Tensor]]:
    """Take gradient steps on every layer's (z, M, c) for T tasks.

    Args:
        layers: Meta-parameters of the L layers, shared by all tasks.
        step_sizes: Positive, of the tensors of each layer: [L, 3] of (z, M, c), [L, 4] of (z, M,
            c's weights, c's biases), or, for ordinary layers, [L, 2] of (weights, biases).
        loss: The inner loss, a sum over tasks.
        num_tasks: T.
        num_steps: Gradient steps, >= 0.
        num_kept: The first layers that are used after the last step; the others (an auxiliary head)
            are not updated by it. None for all.
        first_order: Treat inner gradients as constants of the meta-parameters.

    Returns:
        The generated layers after 0, 1, ..., ``num_steps`` steps; [T, D] each. After the last step
        there are ``num_kept`` of them.
    """
    return adapt_layers(
        layers,
        step_sizes,
        loss,
        num_tasks=num_tasks,
        num_steps=num_steps,
        num_kept=num_kept,
        first_order=first_order,
    )[0]


def adapt_layers(
    layers: Sequence[LayerParameters],
    step_sizes: Tensor,
    loss: InnerLoss,
    *,
    num_tasks: int,
    num_steps: int,
    num_kept: int | None = None,
    first_order: bool = False,
) -> tuple[list[list[Tensor]], list["AdaptedLayer"]]:
    """Do what ``adapt`` does; return the layers too, with each task's own (z, M, c) in factors.

    Args:
        layers: Meta-parameters of the L layers, shared by all tasks.
        step_sizes: Positive, [L, tensors of a layer].
        loss: The inner loss.
        num_tasks: T.
        num_steps: Gradient steps, >= 0.
        num_kept: How many layers are used after the last step; None for all.
        first_order: Treat inner gradients as constants of the meta-parameters.

    Returns:
        The generated layers after 0, 1, ... steps, [T, D] each, and the L layers after the last.
    """
    num_layers = len(layers)
    adapted = [AdaptedLayer(layer, sizes) for layer, sizes in zip(layers, step_sizes, strict=True)]
    # Before the first step all tasks have the same weights: T rows that share memory.
    thetas = [generate(layer).expand(num_tasks, -1) for layer in layers]
    trajectory = [thetas]
    for step in range(num_steps):
        # An auxiliary head is updated by every step but the last: nothing reads it after that.
        kept = num_layers if step < num_steps - 1 else (num_kept or num_layers)

        def loss_of_kept(kept_thetas: list[Tensor], step: int = step, kept: int = kept) -> Tensor:
            return loss(kept_thetas + trajectory[-1][kept:], step)

        # In theta, not in (z, M, c): g = dL/dtheta is all that the closed form needs.
        gradients = torch.func.grad(loss_of_kept)(thetas[:kept])
        thetas = [
            layer.step(gradient, first_order)
            for layer, gradient in zip(adapted[:kept], gradients, strict=True)
        ]
        trajectory.append(thetas)
    return trajectory, adapted


class AdaptedLayer:
    """One layer of T tasks after some steps: own z and c, and the rank-one terms of M.

    Args:
        layer: Meta-parameters, shared by all tasks.
        step_sizes: Positive, one for each of the layer's tensors; see ``adapt``.
    """

    def __init__(self, layer: LayerParameters, step_sizes: Tensor) -> None:
        self.matrix = layer.matrix
        self.transformed = layer.latent.numel() > 0
        sizes = list(step_sizes.unbind())
        if self.transformed:
            self.latent_step, self.matrix_step, *sizes = sizes
        self.vector_step = sizes[0]
        self.rows = layer.matrix.shape[0]
        # Step sizes of weights and biases apart: one vector of the length of c has both.
        if len(sizes) == 2:
            weights = layer.vector.numel() - self.rows
            self.vector_step = torch.cat([sizes[0].expand(weights), sizes[1].expand(self.rows)])
        # One row, shared by all tasks, until the first step gives every task its own.
        self.latent, self.vector = layer.latent[None], layer.vector[None]
        self.factors: list[tuple[Tensor, Tensor]] = []  # (g [T, D], z [T or 1, Z]) of each step

    def step(self, gradient: Tensor, first_order: bool) -> Tensor:
        """Take one gradient step on (z, M, c) of every task.

        Args:
            gradient: g = dL/dtheta of each task, [T, D].
            first_order: Treat the step as a constant of the meta-parameters.

        Returns:
            The new theta, [T, D].
        """
        # First-order MAML: the step is taken, but not differentiated through.
        if first_order:
            gradient = gradient.detach()
        if self.transformed:
            self._step_latent(gradient, first_order)
        self.vector = self.vector - self.vector_step * gradient
        if not self.transformed:
            return self.vector
        theta = add_product(self.vector, times(self.matrix, self.latent))
        for past_gradient, past_latent in self.factors:
            # The module docstring's -a_M g (z . z'), for this step's g and that of every step
            # before.
            overlap = (past_latent * self.latent).sum(dim=-1, keepdim=True)
            theta = add_product(theta, -self.matrix_step * overlap * past_gradient)
        return theta

    def _step_latent(self, gradient: Tensor, first_order: bool) -> None:
        """Move z along M_k^T g, with M_k = M - a_M sum_j g_j z_j^T, and keep M's own step."""
        old_latent = self.latent.detach() if first_order else self.latent
        if self.rows < gradient.shape[-1]:  # M reaches the biases only
            gradient = gradient[:, -self.rows :]
        latent_gradient = transposed_times(self.matrix, gradient)
        for past_gradient, past_latent in self.factors:
            # M_k^T g = M^T g - a_M sum_j z_j (g_j . g).
            overlap = (past_gradient * gradient).sum(dim=-1, keepdim=True)
            latent_gradient = latent_gradient - self.matrix_step * overlap * past_latent
        if first_order:
            # It is M^T g, so without this the outer gradient would still reach M through the step.
            latent_gradient = latent_gradient.detach()
        # M's own step is along g z^T with z as it was before this step.
        self.factors.append((gradient, old_latent))
        self.latent = self.latent - self.latent_step * latent_gradient

    def parameters(self, num_tasks: int) -> LayerParameters:
        """Return z [T, Z], M [T, D, Z] and c [T, D] of every task, formed from the factors.

        Args:
            num_tasks: T.

        Raises:
            TypeError: The layer's matrix carries probes, as inside ``meta_gradient``.
        """
        if not isinstance(self.matrix, Tensor):
            raise TypeError(
                "Expected a matrix M as a tensor, found one that carries probes. Call parameters "
                "outside of meta_gradient."
            )
        matrix = self.matrix.expand(num_tasks, -1, -1)
        for gradient, latent in self.factors:
            # Here M' is formed after all: fine-tuning moves each task's own matrix. [T, D, Z] is a
            # hundred times the size of theta with the paper's Z of 100.
            matrix = matrix - self.matrix_step * gradient[..., None] * latent[:, None]
        return LayerParameters(
            self.latent.expand(num_tasks, -1), matrix, self.vector.expand(num_tasks, -1)
        )
