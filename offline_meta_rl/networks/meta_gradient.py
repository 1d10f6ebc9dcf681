"""The outer gradient, with the gradients of the large matrices assembled from factors.

Nearly all numbers of a weight-transform network are in its matrices M, and the outer loss sees M
only in products: M z, M^T g and M z' for each task. Automatic differentiation would form one full
matrix per product and add them up, which costs more than everything else together. Here a zero
*probe* is added to every product; the loss's gradient in the probe is what the chain rule needs:

    dL/dM = sum over products M v   of  (dL/dprobe) v^T
          + sum over products M^T g of  g (dL/dprobe)^T

which is a single matrix product of the stacked factors. It is exact, not an approximation.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from offline_meta_rl.networks.generated import LayerParameters, ProbedMatrix

Parameters = TypeVar("Parameters")
Auxiliary = TypeVar("Auxiliary")


def _is_layer(node: object) -> bool:
    """Layers without a matrix are ordinary tensors."""
    return isinstance(node, LayerParameters) and node.latent.numel() > 0


def meta_gradient(
    loss: Callable[[Parameters], tuple[Tensor, Auxiliary]],
    parameters: Parameters,
    num_tasks: int,
    num_steps: int,
) -> tuple[Parameters, Auxiliary]:
    """Return the gradient of ``loss`` in all parameters, and its auxiliary output.

    Args:
        loss: Maps parameters to (loss [], auxiliary tensors). Each matrix may enter only through
            ``offline_meta_rl.networks.inner_loop.adapt``, once.
        parameters: Nested tuples, lists and dicts of tensors and ``LayerParameters``.
        num_tasks: Tasks the inner loop adapts to.
        num_steps: Steps of the inner loop.

    Returns:
        The gradient, in the structure of ``parameters``; the auxiliary output.
    """
    # Everything but the matrices is differentiated as usual; these are constants here.
    leaves, structure = pytree.tree_flatten(parameters, is_leaf=_is_layer)
    matrices = [leaf.matrix if _is_layer(leaf) else None for leaf in leaves]
    small = [(leaf.latent, leaf.vector) if _is_layer(leaf) else (leaf,) for leaf in leaves]
    probes = [
        [] if matrix is None else _zero_probes(matrix, num_tasks, num_steps) for matrix in matrices
    ]

    def loss_of_small(
        small: Sequence[tuple[Tensor, ...]], probes: list[list[Tensor]]
    ) -> tuple[Tensor, tuple[Auxiliary, list[list[Tensor]]]]:
        probed = [
            None if matrix is None else ProbedMatrix(matrix, layer_probes)
            for matrix, layer_probes in zip(matrices, probes, strict=True)
        ]
        # The loss sees the structure that it knows, with matrices that carry probes.
        rebuilt = [
            tensors[0] if matrix is None else LayerParameters(tensors[0], matrix, tensors[1])
            for tensors, matrix in zip(small, probed, strict=True)
        ]
        value, auxiliary = loss(pytree.tree_unflatten(rebuilt, structure))
        factors = [[] if matrix is None else matrix.factors for matrix in probed]
        return value, (auxiliary, factors)

    # One backward pass gives the small gradients and dL/dprobe of every product.
    gradient = torch.func.grad(loss_of_small, argnums=(0, 1), has_aux=True)
    (small_gradients, probe_gradients), (auxiliary, factors) = gradient(small, probes)
    assembled = [
        tensors[0]
        if matrix is None
        else LayerParameters(tensors[0], _assemble(layer_factors, layer_probes), tensors[1])
        for tensors, matrix, layer_factors, layer_probes in zip(
            small_gradients, matrices, factors, probe_gradients, strict=True
        )
    ]
    found: Parameters = pytree.tree_unflatten(assembled, structure)
    return found, auxiliary


def _zero_probes(matrix: Tensor, num_tasks: int, num_steps: int) -> list[Tensor]:
    """Probes of M z [1, D], then of each step's M^T g [T, Z] and M z' [T, D] (D: rows of M)."""
    size, latent_size = matrix.shape
    probes = [matrix.new_zeros(1, size)]
    for _ in range(num_steps):
        probes.append(matrix.new_zeros(num_tasks, latent_size))
        probes.append(matrix.new_zeros(num_tasks, size))
    return probes


def _assemble(factors: list[Tensor], probe_gradients: list[Tensor]) -> Tensor:
    """Return dL/dM [D, Z]; products alternate between M v and M^T g, and start with M v."""
    left, right = [], []
    for index, (factor, gradient) in enumerate(zip(factors, probe_gradients, strict=False)):
        # With p = dL/dprobe, M v contributes p v^T to dL/dM and M^T g contributes g p^T.
        left.append(gradient if index % 2 == 0 else factor)
        right.append(factor if index % 2 == 0 else gradient)
    return torch.cat(left).T @ torch.cat(right)
