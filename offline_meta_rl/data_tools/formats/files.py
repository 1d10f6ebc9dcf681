"""Which file is which task, whether files have changed, how many rows to read at a time."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from offline_meta_rl.data.description import Space

BLOCK_BYTES = 16 * 2**20  # of transitions, read or written at a time


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Return one string for files: changes when one is added, replaced or written to."""
    lines = []
    for file in files:
        status = file.stat()
        # Sizes and times, not content: reading all of it would take as long as converting.
        lines.append(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def rows_per_block(row_bytes: int) -> int:
    """Return how many rows make a block."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def number_tasks(names: Sequence[str], numbers: Sequence[int], where: Path) -> dict[int, str]:
    """Return task -> name, in the order of tasks.

    Args:
        names: Names of files or datasets.
        numbers: Task of each name.
        where: Name of the source, for errors.

    Raises:
        ValueError: There is none, two are the same task, or one is missing.
    """
    if not names:
        raise ValueError(f"{where}: expected the data of at least one task, found none.")
    tasks: dict[int, str] = {}
    for number, name in zip(numbers, names, strict=True):
        if number in tasks:
            raise ValueError(
                f"{where}: task {number} is there twice: {tasks[number]} and {name}. Expected each "
                "task once; remove or renumber one of them."
            )
        tasks[number] = name
    missing = sorted(set(range(max(tasks) + 1)) - set(tasks))
    if missing:
        raise ValueError(
            f"{where}: expected tasks 0 to {max(tasks)}, found none for {missing}. Add them, or "
            "number the tasks anew without gaps."
        )
    return dict(sorted(tasks.items()))


def shared_spaces(found: Mapping[Path, tuple[Space, Space]]) -> tuple[Space, Space]:
    """Return the observation and action space that all tasks share.

    Args:
        found: File or folder of each task -> its (observation space, action space).

    Raises:
        ValueError: Names the first task whose spaces are others.
    """
    expected = next(iter(found.values()))
    for place, spaces in found.items():
        if spaces != expected:
            raise ValueError(
                f"{place}: expected observations and actions as in the first task, "
                f"{expected[0]} and {expected[1]}; found {spaces[0]} and {spaces[1]}. All tasks "
                "share their spaces."
            )
    return expected
