"""Limits the memory of other processes, page cache included, where the system lets us."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path | None]:
    """Make a control group that may use ``limit`` bytes; yield its folder, None if not possible.

    A process joins by writing its number into ``cgroup.procs`` there.
    """
    name = f"offline_meta_rl_{os.getpid()}"
    places = [
        (CGROUPS / "memory" / name, "memory.limit_in_bytes"),  # version 1
        (CGROUPS / name, "memory.max"),  # version 2
    ]
    for folder, file in places:
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / file).exists():
                (folder / file).write_text(str(limit))
                yield folder
                return
        finally:
            remove(folder)
    yield None


def remove(folder: Path) -> None:
    """Remove a control group, a moment after its last process ended."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
