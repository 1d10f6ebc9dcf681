"""Blocks: whole episodes of one task, as a source hands them to the writer of a dataset.

Shapes: E episodes of a block, N transitions of all of them, O/A observation/action size, images
[C, h, w].
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.description import FINAL_KEY, Description

if TYPE_CHECKING:
    from torch import Tensor  # PyTorch takes more than a second to import

Columns = dict[str, NDArray[np.generic]]
"""Array name -> its values for the same rows, [N, ...] each."""

Numbers = Union[NDArray[np.generic], "Tensor"]
Counts = Sequence[int] | NDArray[np.integer]


class TaskBlock(NamedTuple):
    """Whole episodes of one task; the unit of writing, so that a task need not fit in memory.

    Attributes:
        transitions: Arrays observation [N, O], action [N, A], reward [N], next_observation [N, O],
            terminated [N], truncated [N]: episodes one after another, each in time order.
        stage: Index of the behaviour stage of each episode, [E].
        length: Steps of each episode, [E]; they sum to N.
        final_observation: The image after the last step of each episode, [E, C, h, w] uint8. Image
            data have it in place of ``next_observation``; if None it is taken from there.
    """

    transitions: Mapping[str, Numbers]
    stage: Counts
    length: Counts
    final_observation: Numbers | None = None


def checked_block(task: int, block: TaskBlock, description: Description, first_row: int) -> Columns:
    """Return the arrays of a block as a dataset stores them, once they fit it.

    Args:
        task: Index of the task, named in errors.
        block: Whole episodes of the task.
        description: Description of the dataset.
        first_row: Row of the task that the block begins with; for errors.

    Returns:
        Array name -> values; ``stage`` and ``length`` of the episodes among them, and for images
        ``final_observation``.

    Raises:
        ValueError: Names the array, what was expected of it and what it is.
    """
    length = np.asarray(block.length, dtype=np.int64)
    stage = np.asarray(block.stage, dtype=np.int64)
    if description.has_images:
        # Before the cast below, which would turn 0.5 or 300 into a byte without a word.
        check_images(task, "observation", np.asarray(block.transitions["observation"]))
    arrays = {
        key: np.ascontiguousarray(np.asarray(block.transitions[key]).astype(dtype, copy=False))
        for key, (_, dtype) in description.row_layout.items()
    }
    check_episodes(task, arrays, stage, length, description, first_row)
    if description.has_images:
        arrays[FINAL_KEY] = _final_images(task, block, length, description, first_row)
    return arrays | {"stage": stage, "length": length}


def check_episodes(
    task: int,
    arrays: Columns,
    stage: NDArray[np.int64],
    length: NDArray[np.int64],
    description: Description,
    first_row: int = 0,
) -> None:
    """Check that the episodes of one task fit the dataset and each other.

    Args:
        task: Index of the task, named in errors.
        arrays: Transitions, each [N, ...].
        stage: Index of the behaviour stage of each episode, [E].
        length: Steps of each episode, [E].
        description: Description of the dataset.
        first_row: Row of the task that the arrays begin with; for errors.

    Raises:
        ValueError: Names the array, what was expected of it and what it is.
    """
    rows = int(length.sum())
    layout = description.row_layout
    for key, array in arrays.items():
        # Of images no next observation is stored, but it may have to be checked.
        shape = (rows, *layout.get(key, layout["observation"])[0])
        if array.shape != shape:
            raise ValueError(
                f"Task {task}: {key}: expected shape {shape}, found {array.shape}. Episode "
                "lengths must sum to the number of transitions, sizes must fit the spaces."
            )
        if not np.isfinite(array).all():
            row = first_row + int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(
                f"Task {task}: {key}: expected finite numbers, found NaN or infinity in row "
                f"{row}. Drop the episode it belongs to."
            )
    if len(length) == 0 or (length <= 0).any() or stage.shape != length.shape:
        raise ValueError(
            f"Task {task}: expected at least one episode, positive lengths and one stage for "
            f"each; found {len(length)} lengths and {len(stage)} stages."
        )
    num_stages = len(description.stages)
    if not ((stage >= 0) & (stage < num_stages)).all():
        raise ValueError(
            f"Task {task}: stage: expected 0 to {num_stages - 1}, found "
            f"{stage.min()} to {stage.max()}. List every stage in stages=."
        )
    # Returns to go stop where an episode ends, so a missing mark would join two episodes.
    ended = arrays["terminated"].astype(bool) | arrays["truncated"].astype(bool)
    expected = last_steps(length)
    if not np.array_equal(ended, expected):
        row = first_row + int(np.argmax(ended != expected))
        raise ValueError(
            f"Task {task}: row {row}: expected terminated or truncated exactly on the last step "
            "of every episode. Check length=, or mark the last step of a cut episode truncated."
        )


def last_steps(length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each of N rows is the last of its episode, [N], from the lengths [E]."""
    end = np.zeros(int(length.sum()), dtype=bool)
    end[np.cumsum(length) - 1] = True
    return end


def broken_rows(
    observation: NDArray[np.generic],
    next_observation: NDArray[np.generic],
    end: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the rows whose next observation is not the observation of the row that follows."""
    differ = next_observation[:-1] != observation[1:]
    return np.flatnonzero(differ.any(axis=tuple(range(1, differ.ndim))) & ~end[:-1])


def check_images(task: int, key: str, images: NDArray[np.generic]) -> None:
    """Check that the images of a task are bytes: other numbers would be cut off silently.

    Raises:
        ValueError: They are of another type.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"Task {task}: {key}: expected uint8 images, 0 to 255, channels first, found "
            f"{images.dtype}. Scale and convert them."
        )


def _final_images(
    task: int,
    block: TaskBlock,
    length: NDArray[np.int64],
    description: Description,
    first_row: int,
) -> NDArray[np.generic]:
    """Return the image after the last step of each episode, [E, C, h, w]."""
    if block.final_observation is None:
        final = _last_images(task, block, length, first_row)
    else:
        final = np.asarray(block.final_observation)
    check_images(task, FINAL_KEY, final)
    expected = (len(length), *description.observation_space["shape"])
    if final.shape != expected:
        raise ValueError(
            f"Task {task}: {FINAL_KEY}: expected shape {expected}, one image for each episode, "
            f"found {final.shape}. Give the image after the last step of every episode."
        )
    return np.ascontiguousarray(final)


def _last_images(
    task: int, block: TaskBlock, length: NDArray[np.int64], first_row: int
) -> NDArray[np.generic]:
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
    broken = broken_rows(observation, following, last_steps(length))
    if len(broken):
        raise ValueError(
            f"Task {task}: row {first_row + broken[0]}: next_observation: expected the observation "
            "of the following row, found another. Images are stored once, so this cannot be kept."
        )
    return following[np.cumsum(length) - 1]
