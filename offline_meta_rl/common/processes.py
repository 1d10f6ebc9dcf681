"""What several processes of one training share: summed gradients, and their random states."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def summed(
    gradients: Sequence[Tensor], metrics: Mapping[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return gradients and metrics summed over all processes.

    Args:
        gradients: Of this process's share of the batch; any shapes, the same in every process.
        metrics: Scalars of this process's share of the batch.
    """
    parts = (*gradients, *metrics.values())
    # One flat buffer: one message between the processes, in place of one for each tensor.
    flat = torch.cat([part.reshape(-1) for part in parts])
    torch.distributed.all_reduce(flat)
    pieces = flat.split([part.numel() for part in parts])
    leaves = [piece.view_as(part) for piece, part in zip(pieces, gradients, strict=False)]
    scalars = pieces[len(leaves) :]
    return leaves, {name: scalar[0] for name, scalar in zip(metrics, scalars, strict=True)}


def random_state() -> dict[str, Tensor]:
    """Return the state of PyTorch's generators, as checkpoints keep it."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Continue where ``random_state`` was taken."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
