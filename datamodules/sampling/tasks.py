"""Draws the tasks and rows of a batch as a function of (seed, number of the batch).

Shapes: U updates per batch, T tasks, R = U * T, B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.sampling.chunks import Chunks
from datamodules.sampling.rows import (
    Buffer,
    Rows,
    check_sizes,
    draw_rows,
    draw_tasks,
    draw_window,
)
from offline_meta_rl.data.dataset import TaskDataset

# Streams of random numbers that never meet.
BATCHES, CONTEXTS, QUERIES = 0, 1, 2


class BatchRows(NamedTuple):
    """What a batch consists of: tasks [U, T] and rows [U, T, B] of both batches."""

    tasks: Rows
    inner: Rows
    outer: Rows

    def shard(self, rank: int, world_size: int) -> "BatchRows":
        """Return one process's tasks of every update; possibly none."""
        return BatchRows(*(rows[:, rank::world_size] for rows in self))


@dataclass(frozen=True)
class TaskSampler:
    """How batches are drawn.

    Attributes:
        dataset: for its tasks.
        train_tasks: tasks to draw from.
        inner: rows for inner batches and contexts.
        outer: rows for outer batches and queries.
        seed: of all draws.
        tasks_per_batch: different tasks in one update; None for all train tasks, in order.
        inner_size: rows of an inner batch.
        outer_size: rows of an outer batch.
        updates: outer steps in one batch, U.
        disjoint: no row is in both batches of a task.
        contiguous: inner batches are windows of neighbouring rows.
        chunks: which of the inner and the outer rows batches are drawn from at an outer step; None
            for all. One object for both if they share their rows.
    """

    dataset: TaskDataset
    train_tasks: list[int]
    inner: Buffer
    outer: Buffer
    seed: int
    tasks_per_batch: int | None
    inner_size: int
    outer_size: int
    updates: int
    disjoint: bool
    contiguous: bool
    chunks: tuple[Chunks, Chunks] | None = None

    def check(self) -> None:
        """Check that there are enough train tasks, and enough rows in each.

        Raises:
            ValueError: says how many were expected and found.
        """
        count, available = self.tasks_per_batch, len(self.train_tasks)
        if not available or (count is not None and not 1 <= count <= available):
            raise ValueError(
                f"tasks_per_batch: expected 1 to {available}, the number of train tasks of the "
                f"split, found {count}. Set --data.tasks_per_batch null for all of them, or "
                "another --data.split."
            )
        check_sizes(self.inner, self.train_tasks, self.inner_size, "inner batch")
        for task in self.train_tasks:
            needed = self.outer_size
            if self.disjoint:
                shared = np.isin(self.outer.rows_of(task), self.inner.rows_of(task)).sum()
                needed += min(self.inner_size, int(shared))
            check_sizes(self.outer, [task], needed, "outer batch (disjoint from the inner one)")
            if self.chunks is not None:
                self.chunks[0].check([task], self.inner_size, "inner batch")
                self.chunks[1].check([task], needed, "outer batch (disjoint from the inner one)")

    def batch(self, step: int) -> BatchRows:
        """Draw batch number ``step``, for all processes alike.

        An outer step's draws depend on its own number alone, not on how many share a batch.
        """
        first = step * self.updates
        updates = [self._update(number) for number in range(first, first + self.updates)]
        return BatchRows(*(np.stack(rows) for rows in zip(*updates, strict=True)))

    def _update(self, number: int) -> BatchRows:
        """Draw for one outer step: tasks [T], rows [T, B]."""
        rng = np.random.default_rng([self.seed, BATCHES, number])
        train = np.asarray(self.train_tasks, dtype=np.int64)
        tasks = draw_tasks(rng, train, 1, self.tasks_per_batch)[0]
        inner_buffer, outer_buffer, own = self._buffers(tasks, number)
        draw = draw_window if self.contiguous else draw_rows
        inner = draw(rng, inner_buffer, own, self.inner_size)
        taken = inner if self.disjoint else None
        outer = draw_rows(rng, outer_buffer, own, self.outer_size, taken)
        return BatchRows(tasks, inner, outer)

    def _buffers(self, tasks: Rows, number: int) -> tuple[Buffer, Buffer, Rows]:
        """Return what to draw from at an outer step, and where in it each of the tasks [T] is."""
        if self.chunks is None:
            return self.inner, self.outer, tasks
        first, second = self.chunks
        inner = first.windows(tasks, number)
        outer = inner if second is first else second.windows(tasks, number)
        return inner, outer, np.arange(len(tasks))

    def context(
        self, tasks: Sequence[int], size: int, seed: int, buffer: Buffer | None = None
    ) -> Rows:
        """Draw ``size`` rows of each task, [T, size], each task from a generator of its own.

        Raises:
            ValueError: unknown task, or too few rows.
        """
        buffer = buffer or self.inner
        for task in tasks:
            self.dataset.task_rows(task)
        check_sizes(buffer, tasks, size, "context")
        drawn = [
            np.random.default_rng([seed, CONTEXTS, task]).choice(
                buffer.rows_of(task), size, replace=False
            )
            for task in tasks
        ]
        return np.array(drawn, dtype=np.int64).reshape(len(tasks), size)

    def query(self, tasks: Sequence[int], context: Rows) -> Rows:
        """Draw an outer batch for each task, disjoint from its context; always the same.

        Raises:
            ValueError: too few rows.
        """
        needed = context.shape[1] + self.outer_size
        check_sizes(self.outer, tasks, needed, "held-out context and query")
        rng = np.random.default_rng([self.seed, QUERIES])
        chosen = np.asarray(tasks, dtype=np.int64)
        return draw_rows(rng, self.outer, chosen, self.outer_size, context)
