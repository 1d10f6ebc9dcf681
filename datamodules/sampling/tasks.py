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
    check_batch_sizes,
    draw_rows,
    draw_tasks,
    draw_window,
)
from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.data.contracts import BufferSlice
from offline_meta_rl.data.dataset import TaskDataset

# Streams of random numbers that never meet.
BATCHES, CONTEXTS, QUERIES = 0, 1, 2


@dataclass(frozen=True)
class Batches:
    """What an outer step of TaskBuffers sees: of how many tasks, and which transitions of each.

    Attributes:
        tasks: Tasks of an outer step, over all processes; None for all train tasks.
        inner_size: Transitions of each task to adapt on.
        outer_size: Transitions of each task to measure the adapted parameters on.
        disjoint: No transition is in the inner and the outer batch of one task.
        contiguous: The inner batch is a window of neighbouring rows with a random start.
        stride: Keep every k-th row of each task.
        inner_slice: Part of the data for inner batches and contexts: first, middle or last rows, or
            a list of behaviour stages; None for all.
        outer_slice: The same for outer batches.
        updates: Outer steps that are made from one batch of the loader, U.

    Raises:
        ValueError: A number is too small.
    """

    tasks: int | None = 5
    inner_size: int = 256
    outer_size: int = 256
    disjoint: bool = True
    contiguous: bool = False
    stride: int = 1
    inner_slice: BufferSlice | list[str] | None = None
    outer_slice: BufferSlice | list[str] | None = None
    updates: int = 1

    def __post_init__(self) -> None:
        """Check the numbers that need no dataset to be found wrong."""
        check_at_least(self, 1, "inner_size", "outer_size", "updates")


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
        dataset: The dataset, which knows the rows of each task.
        train_tasks: Tasks to draw from.
        inner: Rows for inner batches and contexts.
        outer: Rows for outer batches and queries.
        seed: Seed of every random draw.
        batches: How many tasks and rows to draw.
        chunks: Chunks of the inner and of the outer rows, where not all rows are in memory; None
            for all. One object for both if they share their rows.
    """

    dataset: TaskDataset
    train_tasks: list[int]
    inner: Buffer
    outer: Buffer
    seed: int
    batches: Batches
    chunks: tuple[Chunks, Chunks] | None = None

    def check(self) -> None:
        """Check that there are enough train tasks, and enough rows in each.

        Raises:
            ValueError: Says how many were expected and found.
        """
        batches = self.batches
        count, available = batches.tasks, len(self.train_tasks)
        if not available or (count is not None and not 1 <= count <= available):
            raise ValueError(
                f"batches.tasks: expected 1 to {available}, the number of train tasks of the "
                f"split, found {count}. Set --data.batches.tasks null for all of them, or "
                "another --data.split."
            )
        check_batch_sizes(self.inner, self.train_tasks, batches.inner_size, "inner batch")
        for task in self.train_tasks:
            needed = batches.outer_size
            if batches.disjoint:
                shared = np.isin(self.outer.rows_of(task), self.inner.rows_of(task)).sum()
                # At worst the whole inner batch is taken from rows that the outer one could have.
                needed += min(batches.inner_size, int(shared))
            check_batch_sizes(
                self.outer, [task], needed, "outer batch (disjoint from the inner one)"
            )
            if self.chunks is not None:
                self.chunks[0].check([task], batches.inner_size, "inner batch")
                self.chunks[1].check([task], needed, "outer batch (disjoint from the inner one)")

    def batch(self, step: int) -> BatchRows:
        """Draw batch number ``step``, for all processes alike.

        An outer step's draws depend on its own number alone, not on how many share a batch.
        """
        count = self.batches.updates
        updates = [self._update(number) for number in range(step * count, (step + 1) * count)]
        return BatchRows(*(np.stack(rows) for rows in zip(*updates, strict=True)))

    def _update(self, number: int) -> BatchRows:
        """Draw for one outer step: tasks [T], rows [T, B]."""
        batches = self.batches
        rng = np.random.default_rng([self.seed, BATCHES, number])
        train = np.asarray(self.train_tasks, dtype=np.int64)
        tasks = draw_tasks(rng, train, 1, batches.tasks)[0]
        inner_buffer, outer_buffer, own = self._buffers(tasks, number)
        draw = draw_window if batches.contiguous else draw_rows
        inner = draw(rng, inner_buffer, own, batches.inner_size)
        # Line 6 of MACAW's Algorithm 1: D^tr and D^ts are disjoint, against memorising D^tr.
        taken = inner if batches.disjoint else None
        outer = draw_rows(rng, outer_buffer, own, batches.outer_size, taken)
        return BatchRows(tasks, inner, outer)

    def _buffers(self, tasks: Rows, number: int) -> tuple[Buffer, Buffer, Rows]:
        """Return the buffers of an outer step, and the place of each of the tasks [T] in them."""
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
            ValueError: Unknown task, or too few rows.
        """
        buffer = buffer or self.inner
        for task in tasks:
            # Raises for a task that does not exist.
            self.dataset.task_rows(task)
        check_batch_sizes(buffer, tasks, size, "context")
        drawn = [
            np.random.default_rng([seed, CONTEXTS, task]).choice(
                buffer.rows_of(task), size, replace=False
            )
            for task in tasks
        ]
        return np.array(drawn, dtype=np.int64).reshape(len(tasks), size)

    def query(self, tasks: Sequence[int], context: Rows) -> Rows:
        """Draw an outer batch for each task, [T, B], disjoint from its context; always the same.

        Raises:
            ValueError: Too few rows.
        """
        size = self.batches.outer_size
        needed = context.shape[1] + size
        check_batch_sizes(self.outer, tasks, needed, "held-out context and query")
        rng = np.random.default_rng([self.seed, QUERIES])
        chosen = np.asarray(tasks, dtype=np.int64)
        return draw_rows(rng, self.outer, chosen, size, context)
