"""Makes batches ahead of their use, in a background thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def made_ahead(
    make: Callable[[int], T], numbers: Iterable[int], depth: int
) -> Generator[T, None, None]:
    """Yield ``make(number)`` for each number, in order, ``depth`` of them made before their turn.

    One thread makes them one after another. It ends with this generator, whether that is used up,
    closed, or left by an error; an error in the thread is raised where its result was due.

    Args:
        make: makes one item.
        numbers: of the items.
        depth: items made ahead; 0 makes each when it is due, without a thread.
    """
    if depth == 0:
        yield from map(make, numbers)
        return
    pending: deque[Future[T]] = deque()
    executor = ThreadPoolExecutor(1, thread_name_prefix="made_ahead")
    try:
        for number in numbers:
            pending.append(executor.submit(make, number))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
