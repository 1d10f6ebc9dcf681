"""Cutting a stream of rows into whole episodes."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import Columns


def whole_episodes(
    chunks: Iterable[tuple[Columns, NDArray[np.bool_]]], *, where: str, horizon: int
) -> Iterator[tuple[Columns, NDArray[np.int64]]]:
    """Regroup chunks of rows so that each holds whole episodes.

    Args:
        chunks: (arrays of the same rows, whether a row is the last of its episode).
        where: Name of the source, for errors.
        horizon: Longest episode there may be, which bounds the memory.

    Yields:
        (arrays, length of each episode).

    Raises:
        ValueError: An episode is longer than the horizon, or the last one has no end.
    """
    carried: list[tuple[Columns, NDArray[np.bool_]]] = []
    done = 0
    for rows, end in chunks:
        last = np.flatnonzero(end)
        carried.append((rows, end) if len(last) == 0 else _take(rows, end, 0, int(last[-1]) + 1))
        waiting = sum(len(flags) for _, flags in carried)
        if len(last):
            block = {key: np.concatenate([part[key] for part, _ in carried]) for key in rows}
            ends = np.flatnonzero(np.concatenate([flags for _, flags in carried]))
            length = np.diff(ends, prepend=-1)
            _check_length(int(length.max()), horizon, where, done)
            yield block, length
            done += waiting
            # What follows the last end of this chunk is the beginning of an episode.
            carried = [_take(rows, end, int(last[-1]) + 1, len(end))]
        else:
            _check_length(waiting, horizon, where, done)
    if any(len(flags) for _, flags in carried):
        raise ValueError(
            f"{where}: row {done}: expected the last episode to end, found neither terminated nor "
            "truncated until the end of the data. Mark the last step of a cut episode truncated."
        )


def _take(
    rows: Columns, end: NDArray[np.bool_], start: int, stop: int
) -> tuple[Columns, NDArray[np.bool_]]:
    return {key: array[start:stop] for key, array in rows.items()}, end[start:stop]


def _check_length(length: int, horizon: int, where: str, row: int) -> None:
    if length > horizon:
        raise ValueError(
            f"{where}: expected episodes of at most {horizon} steps (the horizon), found one of at "
            f"least {length} after row {row}. Mark its end, or correct the horizon."
        )


def reversed_episodes(length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row numbers that turn every episode around, [N]."""
    stop = np.cumsum(length)
    within = np.arange(int(stop[-1])) - np.repeat(stop - length, length)
    return np.asarray(np.repeat(stop, length) - 1 - within, dtype=np.int64)
