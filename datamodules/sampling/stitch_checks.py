"""What stitching assumes of a dataset: several tasks, images, sparse rewards, some success."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamodules.sampling.stitch import Rows, first_reward
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.manifest import Manifest

DENSE_SHARE = 0.1
"""Share of episodes rewarded at their first step from which rewards are taken to be dense."""


def check_stitching(dataset: TaskDataset, tasks: Sequence[int]) -> Rows:
    """Check that a dataset can be stitched; warn where its rewards are not sparse.

    Args:
        dataset: A dataset of images.
        tasks: Tasks to draw segments from.

    Returns:
        Position of each episode at which its first reward arrives, [E]; see ``first_reward``.

    Raises:
        ValueError: Fewer than two tasks, no images, or a task without a single success.
    """
    if len(tasks) < 2:
        raise ValueError(
            f"Stitching needs at least two tasks to tell apart, found {list(tasks)}. Set "
            "--data.split to one with more train tasks, or pass another dataset."
        )
    check_image_dataset(dataset.manifest)
    dataset.touch(["reward"])
    reward = dataset.transitions["reward"].numpy()
    task, start, length = (dataset.episodes[key].numpy() for key in ("task", "start", "length"))
    first = first_reward(reward, start, length)
    rewarded = set(task[first <= length].tolist())
    without = [number for number in tasks if number not in rewarded]
    if without:
        raise ValueError(
            f"Tasks {without} of {dataset.path}: expected episodes with a reward, found none. "
            "Without success a task cannot be told from the others: collect it with a better "
            "behaviour policy."
        )
    _warn_of_dense_rewards(dataset, reward, float((first == 1).mean()))
    return first


def check_image_dataset(manifest: Manifest) -> None:
    """Check that observations are images, channels first.

    Raises:
        ValueError: Says what was found.
    """
    space = manifest.observation_space
    shape = space["shape"]
    if not manifest.has_images:
        raise ValueError(
            f"Expected images [channels, height, width] uint8, found observations {shape} "
            f"{space['dtype']}. Pass an image dataset; vectors are served by TaskBuffers."
        )
    if shape[0] > min(shape[1:]):
        raise ValueError(
            f"Expected images [channels, height, width], found {shape}, which looks like channels "
            "last. Write the dataset with the channels first."
        )


def _warn_of_dense_rewards(
    dataset: TaskDataset, reward: NDArray[np.float32], at_first_step: float
) -> None:
    negative = float((reward < 0).mean())
    if at_first_step > DENSE_SHARE or negative > 0:
        warnings.warn(
            f"{dataset.path}: rewards are not sparse ({at_first_step:.0%} of the episodes are "
            f"rewarded at their first step, {negative:.0%} of all rewards are negative). Stitching "
            "sets the rewards of another task's episodes to 0, which assumes that they would have "
            "earned 0 under the target task. Use data whose reward is 0 until success.",
            stacklevel=3,
        )
