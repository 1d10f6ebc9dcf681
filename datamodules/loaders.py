"""What Lightning iterates over: batches of train tasks, and the one item of held-out tasks."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

import lightning
from tensordict import TensorDict

State = dict[str, int | None]
"""Counters of batches, as checkpoints keep them."""


class HeldOutLoader:
    """Serves the items of a list; Lightning would take a plain list for several loaders."""

    def __init__(self, items: list[TensorDict]) -> None:
        self._items = items

    def __len__(self) -> int:
        """Number of items, 0 or 1."""
        return len(self._items)

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield the items."""
        return iter(self._items)


class NumberedBatches(Protocol):
    """What a loader needs of its datamodule; see ``DatasetModule``."""

    batches_served: int
    steps_per_epoch: int
    trainer: lightning.Trainer | None

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TensorDict:
        """Return batch number ``step``, [U, T] or [U, B], or one process's part of it."""

    def state_dict(self) -> State:
        """Return the counters."""

    def load_state_dict(self, state_dict: State) -> None:
        """Set the counters."""


class TaskLoader:
    """Draws the batches of one epoch; its length keeps Lightning from drawing ahead.

    Its state is that of the datamodule; having one tells Lightning that resuming is exact.

    Args:
        buffers: The datamodule.
        prefetch: Batches made ahead by a thread.
    """

    def __init__(self, buffers: NumberedBatches, prefetch: int = 0) -> None:
        self._buffers, self._prefetch = buffers, prefetch
        self._batches: Generator[TensorDict, None, None] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._buffers.steps_per_epoch

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield this process's share of the next batches."""
        buffers = self._buffers
        trainer = buffers.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self.close()
        first = buffers.batches_served
        self._batches = made_ahead(
            partial(buffers.batch, rank=rank, world_size=world_size),
            range(first, first + len(self)),
            self._prefetch,
        )
        for batch in self._batches:
            # Counted before the batch is used: a checkpoint written after its steps continues
            # behind it.
            buffers.batches_served += 1
            yield batch

    def close(self) -> None:
        """End the thread that makes batches ahead, if there is one."""
        if self._batches is not None:
            self._batches.close()

    def state_dict(self) -> State:
        """The datamodule's state."""
        return self._buffers.state_dict()

    def load_state_dict(self, state_dict: State) -> None:
        """Continue with the next batch."""
        self._buffers.load_state_dict(state_dict)


T = TypeVar("T")


def made_ahead(
    make: Callable[[int], T], numbers: Iterable[int], depth: int
) -> Generator[T, None, None]:
    """Yield ``make(number)`` for each number, in order, ``depth`` of them made before their turn.

    One thread makes them one after another. It ends with this generator, whether that is used up,
    closed, or left by an error; an error in the thread is raised where its result was due.

    Args:
        make: Makes one item.
        numbers: Numbers of the items, in order.
        depth: Items made ahead; 0 makes each when it is due, without a thread.
    """
    if depth == 0:
        yield from map(make, numbers)
        return
    pending: deque[Future[T]] = deque()
    executor = ThreadPoolExecutor(1, thread_name_prefix="made_ahead")
    try:
        for number in numbers:
            pending.append(executor.submit(make, number))
            # One item is due, ``depth`` more are being made.
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Also where the generator is closed early, or the thread would keep the process alive.
        executor.shutdown(cancel_futures=True)
