"""Check what is given to a variational filter: images, actions, rewards and which of them count."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_filter_batch(
    batch: Mapping[str, Tensor], image_shape: Sequence[int], action_size: int
) -> None:
    """Check a batch of B meta-trajectories of S positions.

    Args:
        batch: observation [B, S, C, h, w] uint8, action [B, S, A], reward [B, S], mask [B, S] bool:
            False in the padding of episodes that are shorter than the longest.
        image_shape: C, h, w of the images that the filter was built for.
        action_size: A that the filter was built for.

    Raises:
        ValueError: Names the field, what was expected, what was found and the fix.
    """
    expected = {
        "observation": ("B", "S", *image_shape),
        "action": ("B", "S", action_size),
        "reward": ("B", "S"),
        "mask": ("B", "S"),
    }
    missing = [name for name in expected if name not in batch.keys()]
    if "mask" in missing:
        raise ValueError(
            "mask: expected [B, S] bool, False where an episode is shorter than the longest one, "
            f"found {', '.join(sorted(batch.keys()))}. Pad episodes to one length and mark what is "
            "real; where all are of one length it is torch.ones(B, S, dtype=torch.bool)."
        )
    if missing:
        raise ValueError(f"Expected {', '.join(expected)}; {', '.join(missing)} is missing.")
    rows = tuple(batch["mask"].shape)
    for name, shape in expected.items():
        found = tuple(batch[name].shape)
        if found != (*rows, *shape[2:]) or len(rows) != 2:
            raise ValueError(
                f"{name}: expected [{', '.join(map(str, shape))}] with B, S = {list(rows)} of the "
                f"mask, found {list(found)}. Build the filter for these data, or reshape them."
            )
    for name, dtype in (("observation", torch.uint8), ("mask", torch.bool)):
        if batch[name].dtype != dtype:
            raise ValueError(f"{name}: expected {dtype}, found {batch[name].dtype}. Convert it.")
