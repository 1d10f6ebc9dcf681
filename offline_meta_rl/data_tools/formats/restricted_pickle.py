"""Reading pickles of others without running any code they hold.

A pickle is a program that may call any function. Here it can build numbers, strings, lists, tuples,
dicts and numpy arrays; arrays are rebuilt from their bytes by this module. Anything else is
refused before it is looked up.
"""

import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LARGEST_FILE = 16 * 2**20
MOST_VALUES = 10**5
ByteOrder = Literal["<", ">", "|", "="]
_PLAIN = (int, float, bool, str, bytes, type(None))


class _Refused(Exception):
    """A pickle holds something that is not plain."""


class _Type:
    """Stands for a numpy dtype while a pickle is read.

    What a pickle gives it is checked before it is used.
    """

    def __init__(self, name: str | bytes, *flags: object) -> None:
        self.name = name if isinstance(name, str) else name.decode("ascii")
        self.order: ByteOrder = "|"

    def __setstate__(self, state: tuple[object, ByteOrder]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """Return the dtype; plain numbers only."""
        dtype = np.dtype(self.name)
        if dtype.kind not in "biufc" or self.order not in ("<", ">", "|", "="):
            raise _Refused(f"array of {self.name!r}")
        return dtype if self.order == "|" else dtype.newbyteorder(self.order)


class _Array:
    """Stands for a numpy array while a pickle is read."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.type = _Type("f8")
        self.content: object = b""
        self.order = "C"

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Type, bool, object]) -> None:
        _, self.shape, self.type, columns_first, self.content = state
        self.order = "F" if columns_first else "C"

    def numpy(self) -> NDArray[np.generic]:
        """Return the array."""
        content = self.content
        if isinstance(content, str):
            content = content.encode("latin1")  # as Python 2 stored bytes
        if not isinstance(content, bytes | bytearray | memoryview):
            raise _Refused("array of objects")
        return _filled(content, self.type, self.shape, self.order)


def load_plain(file: Path) -> object:
    """Read a pickle of plain values.

    Returns:
        Numbers, strings, lists, tuples, dicts and numpy arrays.

    Raises:
        ValueError: It holds anything else, for instance a call of a function, or is damaged.
    """
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{file}: expected a pickle of at most {LARGEST_FILE} bytes, found more.")
    try:
        with open(file, "rb") as stream:
            return _plain(_Unpickler(stream, encoding="latin1").load(), itertools.count())
    except _Refused as error:
        raise ValueError(
            f"{file}: expected numbers, strings, lists, dicts and numpy arrays, found {error}. It "
            "was not read, because a pickle can run code: write the values in a description file."
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f"{file}: expected a pickle, found one that cannot be read "
            f"({type(error).__name__}: {error}). It is cut short or damaged; copy it again."
        ) from error


class _Unpickler(pickle.Unpickler):
    """Knows how numpy's arrays and scalars are built, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., object] | None:
        """Return a stand-in, or refuse."""
        core = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        if core and name == "_reconstruct":
            return _empty
        if core and name == "scalar":
            return lambda kind, content=b"\0" * 8: _filled(_bytes(content), kind, (), "C")[()]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return lambda content, kind, shape, order: _filled(bytes(content), kind, shape, order)
        # Only named as an argument of _reconstruct, which does not use it here.
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("numpy", "dtype"):
            return lambda *arguments: _Type(*arguments)
        if (module, name) == ("_codecs", "encode"):
            return _bytes
        raise _Refused(f"{module}.{name}")


def _empty(*_: object) -> _Array:
    """Return an array to be filled, whatever shape it is said to have."""
    return _Array()


def _bytes(text: object, encoding: str = "latin1") -> bytes:
    """Return bytes that a pickle holds as text."""
    if encoding != "latin1":
        raise _Refused(f"text as {encoding!r}")
    return text if isinstance(text, bytes) else str(text).encode("latin1")


def _filled(
    content: bytes | bytearray | memoryview, kind: _Type, shape: Iterable[int], order: str
) -> NDArray[np.generic]:
    """Return an array of its own with this content."""
    array = np.frombuffer(content, dtype=kind.numpy())
    layout: Literal["C", "F"] = "F" if order == "F" else "C"
    return array.reshape(tuple(shape), order=layout).copy(order=layout)


def _plain(value: object, visited: Iterator[int]) -> object:
    """Replace stand-ins; refuse what is not plain, and a few bytes that unfold without end."""
    if next(visited) > MOST_VALUES:
        raise _Refused(f"more than {MOST_VALUES} values")
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, list):
        return [_plain(part, visited) for part in value]
    if isinstance(value, tuple):
        return tuple(_plain(part, visited) for part in value)
    if isinstance(value, dict):
        return {_plain(key, visited): _plain(part, visited) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic) or type(value) in _PLAIN:
        return value
    raise _Refused(f"{type(value).__name__}")
