"""Which rows of a dataset make up a batch: numpy arithmetic on row numbers, no data is touched.

Shapes: R buffers drawn from at once (one per task of a batch), M candidates, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.contracts import BufferSlice, DataSlice
from offline_meta_rl.data.dataset import TaskDataset

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Buffer:
    """Rows that may be drawn, of every task.

    Attributes:
        rows: Row numbers, all tasks one after another.
        offset: Where each task's rows begin in ``rows``, [T].
        size: How many rows each task has, [T].
    """

    rows: Rows
    offset: Rows
    size: Rows

    def rows_at(self, tasks: Rows, positions: Rows) -> Rows:
        """Return row numbers [R, M] at positions [R, M] of the buffers of tasks [R]."""
        result: Rows = self.rows[self.offset[tasks][:, None] + positions]
        return result

    def rows_of(self, task: int) -> Rows:
        """Return all row numbers of one task, [M]."""
        result: Rows = self.rows[self.offset[task] : self.offset[task] + self.size[task]]
        return result


def make_buffer(dataset: TaskDataset, part: DataSlice | None = None, stride: int = 1) -> Buffer:
    """Return the rows of every task that belong to a part of the data, every ``stride``-th of them.

    Raises:
        ValueError: Unknown stage, a slice that is longer than a task's data, stride below 1.
    """
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, found {stride}. Set --data.stride 1.")
    chosen = []
    for task in range(dataset.manifest.num_tasks):
        rows = np.arange(*dataset.task_rows(task))
        if isinstance(part, BufferSlice):
            rows = _sliced(rows, part, task)
        chosen.append(rows)
    if part is not None and not isinstance(part, BufferSlice):
        wanted = _rows_of_stages(dataset, part)
        chosen = [rows[wanted[rows]] for rows in chosen]
    chosen = [rows[::stride] for rows in chosen]
    size = np.array([len(rows) for rows in chosen], dtype=np.int64)
    return Buffer(np.concatenate(chosen), np.cumsum(size) - size, size)


def check_batch_sizes(buffer: Buffer, tasks: Sequence[int], needed: int, what: str) -> None:
    """Check that each of the tasks has enough rows.

    Raises:
        ValueError: Names the first task that has not.
    """
    for task in tasks:
        if buffer.size[task] < needed:
            raise ValueError(
                f"Task {task} has {buffer.size[task]} transitions to draw the {what} from; "
                f"expected at least {needed}. Use a smaller batch or stride, or a larger slice."
            )


def draw_tasks(rng: np.random.Generator, tasks: Rows, updates: int, count: int | None) -> Rows:
    """Return different tasks for each of U updates, [U, T].

    Args:
        rng: Source of randomness.
        tasks: Tasks to draw from.
        updates: U.
        count: T; None for all tasks, in order.
    """
    if count is None:
        return np.tile(tasks, (updates, 1))
    # The first places of a random permutation are a draw without replacement.
    chosen: Rows = tasks[rng.random((updates, len(tasks))).argsort(axis=1)[:, :count]]
    return chosen


def draw_window(rng: np.random.Generator, buffer: Buffer, tasks: Rows, count: int) -> Rows:
    """Return ``count`` neighbouring rows of each task, [R, count], from a uniform start."""
    start = (rng.random(len(tasks)) * (buffer.size[tasks] - count + 1)).astype(np.int64)
    return buffer.rows_at(tasks, start[:, None] + np.arange(count))


def draw_rows(
    rng: np.random.Generator,
    buffer: Buffer,
    tasks: Rows,
    count: int,
    taken: Rows | None = None,
) -> Rows:
    """Draw rows uniformly without replacement, for many tasks at once.

    Draws somewhat more rows than needed with replacement and keeps each one's first occurrence:
    what is kept is uniform over ordered samples without replacement. A task for which that leaves
    too few (a small buffer) is drawn by itself.

    Args:
        rng: Source of randomness.
        buffer: What to draw from.
        tasks: Whose buffers, [R].
        count: Rows for each.
        taken: Rows [R, K] that may not be drawn, all different.

    Returns:
        Row numbers, [R, count].
    """
    size = buffer.size[tasks]
    reserved = 0 if taken is None else taken.shape[1]
    width = _num_candidates(int(size.min(initial=2**62)), count + reserved) - reserved
    positions = (rng.random((len(tasks), width)) * size[:, None]).astype(np.int64)
    candidates = buffer.rows_at(tasks, positions)
    if taken is not None:
        candidates = np.concatenate([taken, candidates], axis=1)
    kept, complete = first_distinct(candidates, reserved + count)
    for index in np.flatnonzero(~complete):
        rows = buffer.rows_of(tasks[index])
        free = rows if taken is None else np.setdiff1d(rows, taken[index])
        kept[index, reserved:] = rng.choice(free, count, replace=False)
    return kept[:, reserved:]


def first_distinct(values: Rows, count: int) -> tuple[Rows, NDArray[np.bool_]]:
    """Keep the first ``count`` different values of each row, in their order.

    Args:
        values: [R, M], not negative, below 2**63 / M.
        count: How many to keep.

    Returns:
        The values [R, count], and which rows have that many, [R]; other rows are undefined.
    """
    num_rows, width = values.shape
    bits = width.bit_length()
    # Value and place in one number: after sorting, equal values stand together, the first place
    # first.
    ranked = np.sort((values << bits) | np.arange(width), axis=1)
    repeated = (ranked[:, 1:] >> bits) == (ranked[:, :-1] >> bits)
    row, column = np.nonzero(repeated)
    fresh = np.ones(values.shape, dtype=bool)
    fresh[row, ranked[row, column + 1] & ((1 << bits) - 1)] = False
    number = np.cumsum(fresh, axis=1)
    complete = number[:, -1] >= count if width else np.full(num_rows, count == 0)
    kept = np.zeros((num_rows, count), dtype=values.dtype)
    kept[complete] = values[fresh & (number <= count) & complete[:, None]].reshape(-1, count)
    return kept, complete


def _num_candidates(size: int, count: int) -> int:
    """Draws with replacement from ``size`` that nearly always hold ``count`` different values."""
    if count >= size:
        return count
    # Coupon collector: draws expected until ``count`` of ``size`` are different, plus a margin.
    expected = size * np.log(size / (size - count))
    return int(min(2 * count, expected + 6 * np.sqrt(expected - count) + 8))


def _sliced(rows: Rows, part: BufferSlice, task: int) -> Rows:
    if not 0 < part.size <= len(rows):
        raise ValueError(
            f"Slice of task {task}: expected a size from 1 to its {len(rows)} transitions, found "
            f"{part.size}. Set a smaller size."
        )
    spare = len(rows) - part.size
    middle = round(part.centre * len(rows) - part.size / 2)
    start = {"first": 0, "middle": min(max(middle, 0), spare), "last": spare}[part.stage]
    return rows[start : start + part.size]


def _rows_of_stages(dataset: TaskDataset, stages: Sequence[str]) -> NDArray[np.bool_]:
    """Return for every row whether its episode belongs to one of the stages, [N]."""
    known = dataset.manifest.stages
    unknown = [name for name in stages if name not in known]
    if unknown or isinstance(stages, str):
        raise ValueError(
            f"Unknown stages {unknown or stages!r}: expected a list of names out of {known}."
        )
    episodes = np.isin(dataset.episodes["stage"].numpy(), [known.index(name) for name in stages])
    return np.repeat(episodes, dataset.episodes["length"].numpy())
