"""Blocks: whole episodes of one task, as they are handed to a dataset's writer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.checks import broken_rows, check_task
from offline_meta_rl.data.manifest import FINAL_KEY, Manifest, expected_layout

if TYPE_CHECKING:
    from torch import Tensor


class TaskBlock(NamedTuple):
    """Whole episodes of one task; the unit of writing, so that a task need not fit in memory.

    Attributes:
        transitions: observation [N, O], action [N, A], reward [N], next_observation [N, O],
            terminated [N], truncated [N]: episodes one after another, each in time order.
        stage: index of the behaviour stage of each episode, [E].
        length: steps of each episode, [E]; they sum to N.
        final_observation: of image data, the image after the last step of each episode,
            [E, C, h, w] uint8, in place of ``next_observation``. If None it is taken from there.
    """

    transitions: "Mapping[str, NDArray[Any] | Tensor]"
    stage: Any
    length: Any
    final_observation: Any = None


def checked_block(
    task: int, block: TaskBlock, manifest: Manifest, first_row: int
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a block as a dataset stores them, once they fit it.

    Args:
        task: named in errors.
        block: whole episodes of it.
        manifest: of the dataset, whatever its counts.
        first_row: row of the task that the block begins with; for errors.

    Returns:
        Array name -> values; ``stage`` and ``length`` of the episodes among them, and for images
        ``final_observation``.

    Raises:
        ValueError: names the array, what was expected of it and what it is.
    """
    length = np.asarray(block.length, dtype=np.int64)
    stage = np.asarray(block.stage, dtype=np.int64)
    layout = expected_layout(manifest)
    given = dict(block.transitions)
    if manifest.has_images:
        check_images(task, "observation", given["observation"])
    arrays, row_shapes = {}, {}
    for key in manifest.transition_keys:
        shape, dtype = layout[f"transitions/{key}"]
        arrays[key] = np.ascontiguousarray(np.asarray(given[key]).astype(dtype, copy=False))
        row_shapes[key] = tuple(shape[1:])
    check_task(task, arrays, stage, length, row_shapes, len(manifest.stages), first_row)
    if manifest.has_images:
        final = block.final_observation
        if final is None:
            final = _last_images(task, block, length, first_row)
        check_images(task, FINAL_KEY, final)
        expected = (len(length), *row_shapes["observation"])
        if tuple(final.shape) != expected:
            raise ValueError(
                f"Task {task}: {FINAL_KEY}: expected shape {expected}, one image for each episode, "
                f"found {tuple(final.shape)}. Give the image after the last step of every episode."
            )
        arrays[FINAL_KEY] = np.ascontiguousarray(np.asarray(final))
    return arrays | {"stage": stage, "length": length}


def check_images(task: int, key: str, images: Any) -> None:
    """Check that the images of a task are bytes: other numbers would be cut off silently.

    Raises:
        ValueError: they are of another type.
    """
    dtype = np.asarray(images).dtype
    if dtype != np.uint8:
        raise ValueError(
            f"Task {task}: {key}: expected uint8 images, 0 to 255, channels first, found {dtype}. "
            "Scale and convert them."
        )


def _last_images(
    task: int, block: TaskBlock, length: NDArray[np.int64], first_row: int
) -> NDArray[Any]:
    """Return the final image of each episode, [E, C, h, w], from the next observations."""
    if "next_observation" not in block.transitions:
        raise ValueError(
            f"Task {task}: expected {FINAL_KEY} (one image for each episode) or next_observation, "
            "found neither. Give the image after the last step of every episode."
        )
    images = (np.asarray(block.transitions[key]) for key in ("observation", "next_observation"))
    observation, following = images
    check_images(task, "next_observation", following)
    if following.shape != observation.shape:
        raise ValueError(
            f"Task {task}: next_observation: expected shape {observation.shape} as of observation, "
            f"found {following.shape}. Give an image for each."
        )
    last = np.cumsum(length) - 1
    end = np.zeros(len(observation), dtype=bool)
    end[last] = True
    broken = broken_rows(observation, following, end)
    if len(broken):
        raise ValueError(
            f"Task {task}: row {first_row + broken[0]}: next_observation: expected the observation "
            "of the following row, found another. Images are stored once, so this cannot be kept."
        )
    return following[last]
