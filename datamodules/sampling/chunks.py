"""Which part of each task's data is drawn from at an outer step, when not all fits in memory.

A task's rows are cut into *chunks* of neighbouring rows. Chunks come into memory in random order,
each stays while a fixed number of others follow, and batches draw single rows from all that is in
memory, the *window*. In each pass over the data every chunk is in the window equally long, so every
row is drawn equally often; rows that were collected together are drawn at about the same time, and
the rows of a task in one batch come from as many chunks as a window has.

All of it is a function of the seed and the number of the outer step: nothing has to be saved to
resume. Shapes: T tasks, K chunks of a task, C chunks of its window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from datamodules.sampling.rows import Buffer, Rows

CHUNKS = 3  # a stream of random numbers beside those of the task sampler
GOLDEN_RATIO = 0.618034  # spreads the steps at which tasks read their next chunks


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of all tasks and the order in which they are read.

    Attributes:
        buffer: Rows that may be drawn, of every task.
        size: Rows of a chunk at most; those of one task differ by one row at most.
        per_task: Chunks of the window of each task, C; all of a task's chunks if it has fewer.
        rows_per_step: Rows that an outer step draws from each task on average. A window moves on by
            one chunk when so many rows were drawn: one pass draws as many rows as there are.
        seed: Seed of the order.
        stream: Number that tells apart the orders of several Chunks with one seed.
    """

    buffer: Buffer
    size: int
    per_task: int
    rows_per_step: float
    seed: int
    stream: int = 0

    def count(self, task: int) -> int:
        """Return the number of chunks of a task, K."""
        return max(1, ceil(self.buffer.size[task] / self.size))

    def bounds(self, task: int) -> Rows:
        """Return where chunks begin and the last one ends in the task's buffer, [K + 1]."""
        count = self.count(task)
        result: Rows = np.arange(count + 1) * self.buffer.size[task] // count
        return result

    def rows(self, task: int, chunk: int) -> Rows:
        """Return the row numbers of one chunk, ascending, [R]."""
        start, stop = self.bounds(task)[chunk : chunk + 2]
        return self.buffer.rows_of(task)[start:stop]

    def window_size(self, task: int) -> int:
        """Return how many rows a window of the task has at least."""
        count = self.count(task)
        smallest: int = np.diff(self.bounds(task)).min()
        return int(self.buffer.size[task]) if count <= self.per_task else self.per_task * smallest

    def window(self, task: int, step: int) -> Rows:
        """Return which chunks of a task are drawn from at an outer step, all different, [C]."""
        count = self.count(task)
        if count <= self.per_task:
            return np.arange(count)
        # Chunks per outer step, so that one pass over the chunks draws as many rows as there are.
        speed = self.rows_per_step * count / self.buffer.size[task]
        # The golden ratio spreads the tasks: otherwise all of them would read a chunk at the same
        # step.
        epoch, first = divmod(int(step * speed + task * GOLDEN_RATIO), count)
        key = (self.seed, self.stream, task, count, self.per_task)
        # A window at the end of one epoch reaches into the next.
        following = [_order(*key, epoch), _order(*key, epoch + 1)]
        return np.concatenate(following)[first : first + self.per_task]

    def windows(self, tasks: Rows, step: int) -> Buffer:
        """Return the rows to draw from at an outer step, one window for each of the tasks [T]."""
        rows = []
        for task in tasks.tolist():
            bounds, mine = self.bounds(task), self.buffer.rows_of(task)
            chosen = self.window(task, step)
            rows.append(np.concatenate([mine[bounds[c] : bounds[c + 1]] for c in chosen]))
        size = np.array([len(part) for part in rows], dtype=np.int64)
        return Buffer(np.concatenate(rows), np.cumsum(size) - size, size)

    def check(self, tasks: Sequence[int], needed: int, what: str) -> None:
        """Check that a window of each task has enough rows.

        Raises:
            ValueError: Names the first task whose window has not.
        """
        for task in tasks:
            found = self.window_size(task)
            if found < needed:
                raise ValueError(
                    f"Task {task}: {self.per_task} chunks of {self.size} transitions hold {found} "
                    f"of its {self.buffer.size[task]}, expected at least {needed} to draw the "
                    f"{what} from. Increase --data.chunk_size or --data.chunks_per_task."
                )


def make_chunks(
    inner: Buffer,
    outer: Buffer,
    *,
    size: int,
    per_task: int,
    batch_sizes: tuple[int, int],
    share: float,
    seed: int,
) -> tuple[Chunks, Chunks]:
    """Return the chunks of inner and outer batches; one and the same if their buffers are.

    Args:
        inner: Rows of inner batches.
        outer: Rows of outer batches.
        size: Rows of a chunk.
        per_task: Chunks of a task's window.
        batch_sizes: Rows of an inner and of an outer batch.
        share: Share of the train tasks that are in one outer step.
        seed: Seed of the order.
    """
    speeds = [share * rows for rows in batch_sizes]
    if inner is outer:
        both = Chunks(inner, size, per_task, sum(speeds), seed)
        return both, both
    return (
        Chunks(inner, size, per_task, speeds[0], seed, stream=0),
        Chunks(outer, size, per_task, speeds[1], seed, stream=1),
    )


@lru_cache(maxsize=4096)
def _order(seed: int, stream: int, task: int, count: int, window: int, epoch: int) -> Rows:
    """Return the order in which a task's chunks are read in one epoch, [count].

    One random order, of which blocks are shuffled anew in every epoch: halves, or shorter ones
    where windows are large, so that no window sees a chunk of the last epoch again in this one.
    """
    order = np.random.default_rng([seed, CHUNKS, stream, task]).permutation(count)
    block = min(ceil(count / 2), count - window + 1)
    rng = np.random.default_rng([seed, CHUNKS, stream, task, epoch + 1])
    return np.concatenate([rng.permutation(order[i : i + block]) for i in range(0, count, block)])
