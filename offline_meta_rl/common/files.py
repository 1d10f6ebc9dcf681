"""Files that are either whole or not there, and a lock on a path.

A file is written under a temporary name, forced to the disk, then renamed.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

_LOGGER = logging.getLogger(__name__)
_LOCKS: dict[Path, threading.RLock] = {}
_DEPTH: dict[Path, int] = {}


@contextlib.contextmanager
def path_lock(path: str | Path) -> Iterator[None]:
    """Hold the right to write at ``path``; other processes and threads wait.

    After entering, look whether the path exists by now: another process may have written it.
    The same thread may enter again. The lock ends with the process, however that ends; the empty
    file ``<path>.lock`` stays.
    """
    import fcntl  # POSIX only; datasets can be read everywhere

    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _LOCKS.setdefault(path, threading.RLock()):
        if _DEPTH.get(path, 0):
            yield
            return
        with open(f"{path}.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _LOGGER.warning("Waiting for another process that prepares %s.", path)
                fcntl.flock(file, fcntl.LOCK_EX)
            _DEPTH[path] = 1
            try:
                yield
            finally:
                _DEPTH[path] = 0


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name; it gets its own when it is on the disk completely."""
    temporary = file.with_name(f"{file.name}.tmp")
    with open(temporary, "wb") as stream:
        yield stream
        sync(stream)
    os.rename(temporary, file)
    sync_folder(file.parent)


def reserve(stream: IO[bytes], size: int) -> None:
    """Claim ``size`` bytes on the disk for a file, where the system can.

    Raises:
        OSError: there is not enough room.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(stream.fileno(), 0, size)


def sync(stream: IO[bytes]) -> None:
    """Force a file's content to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_os_errors(partial: Path) -> Iterator[None]:
    """Say what a failed write leaves behind and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"Writing the dataset failed: {error.strerror or error}. Nothing but {partial} was "
            "written, which is not a dataset. Make room and start again: finished tasks are kept",
        ) from error


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is replaced only when complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    os.replace(partial, target)


@runtime_checkable
class ArrayLike(Protocol):
    """An array or a tensor; PyTorch need not be imported to recognise one."""

    def tolist(self) -> Any:
        """Return nested lists of numbers, or one number."""


def plain(value: Any) -> Any:
    """Turn nested containers, arrays and scalars into JSON types; NaN and inf become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, ArrayLike):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
