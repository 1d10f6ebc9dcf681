"""Files that are either whole or not there, and a lock on a path.

A file is written under a temporary name, forced to the disk, then renamed.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes half a second to import

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What a JSON file may hold."""

_LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def path_lock(path: str | Path) -> Iterator[None]:
    """Hold the right to write at ``path``; other processes and threads wait.

    After entering, look whether the path exists by now: another process may have written it.
    The same thread may enter again. The lock ends with the process, however that ends; the empty
    file ``<path>.lock`` stays.

    Raises:
        OSError: The file system has no locks.
    """
    target = Path(path).absolute()
    # One object for a path lets its owner in again. No fallback to a lock that is a file's
    # existence: a killed process would leave it behind for ever.
    lock = FileLock(f"{target}.lock", is_singleton=True, fallback_to_soft=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _LOGGER.warning("Waiting for another process or thread that prepares %s.", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name; it gets its own when it is on the disk completely.

    Whatever stops the writing, a file of that name from before stays as it is.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    with open(temporary, "wb") as stream:
        yield stream
        sync(stream)
    os.rename(temporary, file)
    sync_folder(file.parent)


def reserve(stream: IO[bytes], size: int) -> None:
    """Claim ``size`` bytes on the disk for a file, where the system can.

    Raises:
        OSError: There is not enough room.
    """
    if sys.platform == "linux":  # macOS has no such call
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


def write_json(path: str | Path, content: Mapping[str, object]) -> None:
    """Write a JSON file that is replaced only when complete.

    Args:
        path: Path of the file; its folder is made where it is missing.
        content: Arrays, tensors, tuples and sets become lists; NaN and infinities become null.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    with replacing(target) as file:
        file.write(text.encode())


def save_figure(figure: "Figure", path: str | Path, *, dpi: int = 120) -> None:
    """Write a picture that is replaced only when complete; the name's ending is its format."""
    target = Path(path)
    with replacing(target) as file:
        figure.savefig(file, dpi=dpi, format=target.suffix.removeprefix(".") or "png")


def read_json(path: Path) -> dict[str, Json]:
    """Return the content of a JSON file that holds an object; nothing if the file is not there.

    Raises:
        ValueError: It holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Delete it or restore it.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a JSON object, found {type(content).__name__}. Delete it or restore "
            "it."
        )
    return content


@runtime_checkable
class ArrayLike(Protocol):
    """An array or a tensor; PyTorch need not be imported to recognise one."""

    def tolist(self) -> object:
        """Return nested lists of numbers, or one number."""


def plain(value: object) -> Json:
    """Turn nested containers, arrays and scalars into JSON types; NaN and inf become None.

    Whatever else there is becomes its text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, ArrayLike):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
