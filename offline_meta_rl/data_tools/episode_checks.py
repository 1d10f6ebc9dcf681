"""Checks of the episodes of a dataset whose files are whole."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import TaskBlock, broken_rows, check_episodes, last_steps
from offline_meta_rl.data.description import TRANSITION_KEYS, Description
from offline_meta_rl.data.manifest import Manifest
from offline_meta_rl.data.stored import StoredDataset
from offline_meta_rl.data_tools.returns import backward_returns, disagreement

DISCOUNT = 0.99
ROWS = 2**17  # checked at a time


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        task: Index of the task; None for the whole dataset.
        array: Name of the array, or of the manifest's field; None for no array in particular.
        row: Row of the array, counted over all tasks.
        message: What was expected, what was found, what to do.
    """

    task: int | None
    array: str | None
    row: int | None
    message: str


def episode_findings(
    manifest: Manifest, episodes: dict[str, NDArray[np.int64]]
) -> Iterator[Finding]:
    """Yield what is wrong with the table of episodes."""
    task, stage, start, length = (episodes[key] for key in ("task", "stage", "start", "length"))
    expected_task = np.repeat(np.arange(manifest.num_tasks), manifest.num_episodes)
    expected_start = np.concatenate([[0], np.cumsum(length)[:-1]])
    stages = len(manifest.stages)
    checks = {
        "task": (task != expected_task, "the tasks one after another, as the manifest counts them"),
        "stage": ((stage < 0) | (stage >= stages), f"stages 0 to {stages - 1}"),
        "length": (
            (length <= 0) | (length > manifest.horizon),
            f"1 to {manifest.horizon} steps, the horizon",
        ),
        "start": (start != expected_start, "the row after the episode before"),
    }
    for key, (bad, expected) in checks.items():
        rows = np.flatnonzero(bad)
        if len(rows):
            row = int(rows[0])
            yield Finding(
                int(expected_task[row]),
                f"episodes/{key}",
                row,
                f"expected {expected}; found {int(episodes[key][row])} ({len(rows)} such "
                "episodes). Write the dataset again.",
            )
    # By the manifest's counts and not the file's tasks, which may be what is wrong.
    totals = np.bincount(expected_task, weights=length, minlength=manifest.num_tasks)
    for index in np.flatnonzero(totals != np.asarray(manifest.num_transitions)):
        yield Finding(
            int(index),
            "episodes/length",
            None,
            f"expected lengths that sum to {manifest.num_transitions[index]} transitions, found "
            f"{int(totals[index])}. Write the dataset again.",
        )


def task_findings(
    dataset: StoredDataset, task: int, returns: NDArray[np.float32] | None
) -> Iterator[Finding]:
    """Yield what is wrong with the episodes of one task, the first row of each kind.

    Args:
        dataset: The dataset.
        task: Index of the task.
        returns: Returns to go of all rows as the reader computes them, [N]; None to leave them
            unchecked.
    """
    first, stop = dataset.task_rows(task)
    own = dataset.values("episodes/task") == task
    start, length = (dataset.values(f"episodes/{key}")[own] for key in ("start", "length"))
    end = np.zeros(stop - first, dtype=bool)
    end[start + length - 1 - first] = True
    terminated, truncated = (
        dataset.values(f"transitions/{key}")[first:stop] for key in ("terminated", "truncated")
    )
    ended = terminated | truncated
    yield from _end_findings(task, first, end, ended)
    if not dataset.manifest.has_images:  # which store each image once
        yield from _next_findings(dataset, task, first, end)
    if returns is not None:
        reward = dataset.values("transitions/reward")[first:stop]
        # Training reads returns from a fast pass over all episodes; this is a slow one.
        rows = disagreement(returns[first:stop], backward_returns(reward, ended, DISCOUNT))
        if len(rows):
            yield Finding(
                task,
                "transitions/reward",
                first + int(rows[0]),
                f"expected the returns to go of the episode that the ends mark, summed step by "
                f"step with discount {DISCOUNT}; training would use others ({len(rows)} such "
                "rows). Rewards or ends are damaged; write the dataset again.",
            )


def _end_findings(
    task: int, first: int, end: NDArray[np.bool_], ended: NDArray[np.bool_]
) -> Iterator[Finding]:
    for key, rows, found in (
        ("truncated", np.flatnonzero(end & ~ended), "neither on the last step"),
        ("terminated or truncated", np.flatnonzero(ended & ~end), "one before the last step"),
    ):
        if len(rows):
            yield Finding(
                task,
                f"transitions/{key}",
                first + int(rows[0]),
                "expected terminated or truncated on the last step of every episode and nowhere "
                f"else, found {found} ({len(rows)} such rows). Mark the ends, or correct the "
                "lengths.",
            )


def _next_findings(
    dataset: StoredDataset, task: int, first: int, end: NDArray[np.bool_]
) -> Iterator[Finding]:
    observation, following = (
        dataset.values(f"transitions/{key}") for key in ("observation", "next_observation")
    )
    broken: list[int] = []
    for start in range(0, len(end), ROWS):
        stop = min(start + ROWS + 1, len(end))  # one row of overlap
        rows = slice(first + start, first + stop)
        wrong = broken_rows(observation[rows], following[rows], end[start:stop])
        broken += (first + start + wrong).tolist()
    if broken:
        yield Finding(
            task,
            "transitions/next_observation",
            broken[0],
            f"expected the observation of the following row, found another ({len(broken)} such "
            "rows). Rows are missing or mixed up; write the episodes again.",
        )


def check_block(description: Description, task: int, block: TaskBlock, first_row: int) -> None:
    """Check a block of episodes as a conversion would, and that its rows follow one another.

    Raises:
        ValueError: Names the task, the array and the row that is not as it should be.
    """
    arrays = {key: np.asarray(block.transitions[key]) for key in TRANSITION_KEYS}
    length = np.asarray(block.length, dtype=np.int64)
    stage = np.asarray(block.stage, dtype=np.int64)
    check_episodes(task, arrays, stage, length, description, first_row)
    observation, following = arrays["observation"], arrays["next_observation"]
    broken = broken_rows(observation, following, last_steps(length))
    if len(broken):
        raise ValueError(
            f"Task {task}: row {first_row + broken[0]}: next_observation: expected the observation "
            "of the following row, found another. Rows are missing or mixed up."
        )
