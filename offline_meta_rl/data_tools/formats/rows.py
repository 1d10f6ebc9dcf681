"""Array files of others, NPZ and HDF5, read in chunks of rows."""

import contextlib
import lzma
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.extras import require
from offline_meta_rl.data.blocks import Columns
from offline_meta_rl.data_tools.formats.files import rows_per_block

HDF5_SUFFIXES = (".hdf5", ".h5")
BROKEN = (OSError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


ReadRows = Callable[[int, int], NDArray[np.generic]]
"""Given the first row and the number of rows, returns them."""


class RowFile(ABC):
    """Named arrays in one file; ``open`` one.

    Attributes:
        file: Path of the file.
        shapes: Array name -> shape.
        dtypes: Array name -> dtype.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype] = {}

    @staticmethod
    def open(file: Path) -> "RowFile":
        """Open an NPZ or HDF5 file.

        Raises:
            ValueError: It cannot be read as one, or holds Python objects.
            ImportError: HDF5 needs the extra ``convert``.
        """
        return Hdf5Rows(file) if file.suffix in HDF5_SUFFIXES else NpzRows(file)

    def expect(self, keys: Sequence[str]) -> None:
        """Check that arrays are there.

        Raises:
            ValueError: Names the first that is missing.
        """
        for key in keys:
            if key not in self.shapes:
                raise ValueError(
                    f"{self.file}: {key!r} is missing: expected {', '.join(keys)}, found "
                    f"{', '.join(sorted(self.shapes)) or 'nothing'}. Add or rename it."
                )

    def expect_kind(self, key: str, kinds: str, meaning: str) -> None:
        """Check the type of an array's elements.

        Raises:
            ValueError: It is of another kind.
        """
        if self.dtypes[key].kind not in kinds:
            raise ValueError(
                f"{self.file}: {key}: expected {meaning}, found {self.dtypes[key]}. Convert it."
            )

    def expect_rows(self, keys: Sequence[str]) -> int:
        """Check that arrays are equally long, and return how long.

        Raises:
            ValueError: One has another length, or there are no rows.
        """
        lengths = {key: (self.shapes[key] or (0,))[0] for key in keys}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{self.file}: expected arrays of equal length, found {lengths}. Write the file "
                "again."
            )
        rows = lengths[keys[0]]
        if not rows:
            raise ValueError(f"{self.file}: expected transitions, found an empty task. Remove it.")
        return rows

    def chunks(self, keys: Sequence[str]) -> Iterator[Columns]:
        """Yield the rows of some arrays of equal length, a few megabytes at a time.

        Raises:
            ValueError: The file is damaged.
        """
        row_bytes = sum(
            self.dtypes[key].itemsize * int(np.prod(self.shapes[key][1:])) for key in keys
        )
        rows, step = self.shapes[keys[0]][0], rows_per_block(row_bytes)
        with contextlib.ExitStack() as stack:
            with self.explained():
                readers = {key: self._reader(key, stack) for key in keys}
            for start in range(0, rows, step):
                with self.explained():
                    count = min(step, rows - start)
                    chunk = {key: readers[key](start, count) for key in keys}
                yield chunk

    def values(self, key: str) -> NDArray[np.generic]:
        """Return a small array as a whole."""
        with self.explained(), contextlib.ExitStack() as stack:
            return self._reader(key, stack)(0, self.shapes[key][0] if self.shapes[key] else 1)

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say which file is damaged."""
        try:
            yield
        except BROKEN as error:
            kind = "HDF5" if self.file.suffix in HDF5_SUFFIXES else "NPZ"
            raise ValueError(
                f"{self.file}: expected a whole {kind} file, found one that cannot be read "
                f"({error}). It is cut short or damaged; copy it again."
            ) from error

    @abstractmethod
    def _reader(self, key: str, stack: contextlib.ExitStack) -> ReadRows:
        """Return what reads rows of an array; called with ascending rows."""


class Hdf5Rows(RowFile):
    """An HDF5 file with datasets at its top level."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        h5py = require("h5py")
        with self.explained():
            self._open = h5py.File(file, "r")
            arrays = {k: v for k, v in self._open.items() if isinstance(v, h5py.Dataset)}
        self.shapes = {key: tuple(array.shape) for key, array in arrays.items()}
        self.dtypes = {key: array.dtype for key, array in arrays.items()}

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _reader(self, key: str, stack: contextlib.ExitStack) -> ReadRows:
        array = self._open[key]
        if not array.shape:
            return lambda *_: np.atleast_1d(array[()])
        return lambda start, count: array[start : start + count]


class NpzRows(RowFile):
    """An archive written by ``numpy.savez`` or ``numpy.savez_compressed``."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        with self.explained():
            self._archive = zipfile.ZipFile(file)
        self._reading: list[IO[bytes]] = []
        try:
            for name in self._archive.namelist():
                key = name.removesuffix(".npy")
                with self.explained(), self._archive.open(name) as member:
                    self.shapes[key], self.dtypes[key] = self._header(key, member)
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, and the arrays of it that are being read."""
        for member in self._reading:
            member.close()
        self._archive.close()

    def _header(self, key: str, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        try:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, columns_first, dtype = read(member)
        except ValueError as error:
            raise ValueError(
                f"{self.file}: {key}: expected an array, found {error}. Write it with numpy.savez."
            ) from error
        if dtype.hasobject:
            raise ValueError(
                f"{self.file}: {key}: expected numbers, found Python objects (a pickle, which "
                "could run code; it is not read). Convert the array to numbers."
            )
        if columns_first and len(shape) > 1:
            raise ValueError(
                f"{self.file}: {key}: expected rows one after another, found column-major order. "
                "Save numpy.ascontiguousarray of it."
            )
        return shape, dtype

    def _reader(self, key: str, stack: contextlib.ExitStack) -> ReadRows:
        member = stack.enter_context(self._archive.open(f"{key}.npy"))
        self._reading.append(member)
        _, dtype = self._header(key, member)
        row_shape = self.shapes[key][1:]
        row_bytes = dtype.itemsize * int(np.prod(row_shape))

        def read(start: int, count: int) -> NDArray[np.generic]:
            # A member of an archive can only be read forwards, which is the order of chunks.
            content = member.read(count * row_bytes)
            if len(content) != count * row_bytes:
                raise EOFError(f"{key} ends at row {start + len(content) // max(1, row_bytes)}")
            return np.frombuffer(content, dtype=dtype).reshape(count, *row_shape)

        return read
