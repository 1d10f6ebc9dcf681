"""Array files: raw numbers with a checksum for every chunk, written once, then memory-mapped."""

import hashlib
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import sync
from offline_meta_rl.data.manifest import CHUNK_BYTES, ArrayEntry

SKIPPED_BYTES = 2**16  # rows so far apart are cheaper to read by themselves


def checksum(content: bytes | bytearray | NDArray[np.generic]) -> str:
    """Return the BLAKE2b checksum (16 bytes, hexadecimal) of a buffer."""
    buffer = content.data if isinstance(content, np.ndarray) else content
    return hashlib.blake2b(buffer, digest_size=16).hexdigest()


def file_checksum(file: Path) -> str:
    """Return the checksum of a whole file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_array(
    folder: Path, name: str, shape: list[int], dtype: str, parts: Iterable[NDArray[np.generic]]
) -> ArrayEntry:
    """Append the parts to one file, hashing each chunk on the way.

    Written through a file and not through a memory map: on a full disk the former raises an error,
    the latter kills the process.
    """
    file = f"{name}.bin"
    checksums: list[str] = []
    pending = bytearray()
    written = 0
    with open(folder / file, "wb") as stream:
        for part in parts:
            content = np.ascontiguousarray(part, dtype=dtype).tobytes()
            stream.write(content)
            written += len(content)
            pending += content
            # Parts end anywhere; checksums cover pieces of fixed size, which a reader can find.
            while len(pending) >= CHUNK_BYTES:
                checksums.append(checksum(pending[:CHUNK_BYTES]))
                del pending[:CHUNK_BYTES]
        if pending:
            checksums.append(checksum(pending))
        sync(stream)
    return ArrayEntry(list(shape), dtype, file, written, checksums)


class ArrayFile:
    """One array file of a dataset; chunks are checked once, when asked for.

    Attributes:
        file: Where it is.
        values: The array. Its pages are shared with the file; writing to it changes memory only.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It has another size than the manifest says.
    """

    def __init__(self, folder: Path, entry: ArrayEntry, chunk_bytes: int) -> None:
        self.file = folder / entry.file
        if not self.file.is_file():
            raise FileNotFoundError(f"{self.file} is missing; collect or copy the dataset again.")
        found = self.file.stat().st_size
        if found != entry.bytes:
            raise ValueError(
                f"{self.file}: expected {entry.bytes} bytes ({entry.shape} {entry.dtype}), found "
                f"{found}. The file is truncated or belongs to another dataset; collect or copy "
                "the dataset again."
            )
        with open(self.file, "rb") as stream:
            # PyTorch wants writable memory; with copy on write the file stays as it is.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.values: NDArray[np.generic] = np.frombuffer(self._map, entry.dtype).reshape(
            entry.shape
        )
        self._expected = entry.checksums
        self._chunk_bytes = chunk_bytes
        self._pending = np.ones(len(entry.checksums), dtype=bool)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """Return the values at ascending rows [n], copied from the file in few long pieces.

        Other than with ``values``, no page of the file stays in this process's memory.
        """
        row = self.values[0]
        # One long read that skips a few rows is cheaper than a call for each.
        far = np.diff(rows) * row.nbytes > SKIPPED_BYTES
        pieces = []
        for run in np.split(rows, np.flatnonzero(far) + 1):
            count = int(run[-1] - run[0] + 1) * row.size
            piece = np.fromfile(self.file, row.dtype, count, offset=int(run[0]) * row.nbytes)
            pieces.append(piece.reshape(-1, *row.shape)[run - run[0]])
        return np.concatenate(pieces)

    def expect_single_rows(self) -> None:
        """Read no pages around a row of ``values`` that is not in memory, where this can be told.

        Systems read up to some megabytes ahead, of which a row here and there needs nothing.
        """
        if sys.platform != "win32":  # which has no such hint
            self._map.madvise(mmap.MADV_RANDOM)

    def verify(self, rows: NDArray[np.int64] | None = None) -> None:
        """Check the chunks that hold these rows (None: all chunks), unless checked before.

        Raises:
            ValueError: A chunk is not as it was written, or holds NaN or infinity.
        """
        if not self._pending.any():
            return
        if rows is None:
            chunks = np.flatnonzero(self._pending)
        else:
            row_bytes = self.values.nbytes // len(self.values)
            first = np.unique(rows) * row_bytes
            # A row may lie across two chunks: that of its first and that of its last byte.
            touched = np.concatenate([first, first + row_bytes - 1]) // self._chunk_bytes
            chunks = np.unique(touched)
        for chunk in chunks[self._pending[chunks]]:
            self._verify_chunk(int(chunk))

    def _verify_chunk(self, chunk: int) -> None:
        start = chunk * self._chunk_bytes
        # Read, not mapped: so checking leaves no pages in this process's memory.
        content = np.fromfile(self.file, np.uint8, self._chunk_bytes, offset=start)
        found = checksum(content)
        if found != self._expected[chunk]:
            raise ValueError(
                f"{self.file}: chunk {chunk}: expected checksum {self._expected[chunk]}, found "
                f"{found}. The file is corrupt or belongs to another dataset; collect or copy the "
                "dataset again."
            )
        numbers = content.view(self.values.dtype)
        bad = ~np.isfinite(numbers)
        if bad.any():
            index = int(np.argmax(bad))
            row = (start // numbers.itemsize + index) // (self.values[0].size or 1)
            raise ValueError(
                f"{self.file}: row {row}: expected finite numbers, found {numbers[index]}. Remove "
                "the episode it belongs to and write the dataset again."
            )
        self._pending[chunk] = False
