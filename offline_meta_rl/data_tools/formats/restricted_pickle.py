"""Reading pickles of others without running any code they hold.

A pickle is a program that may call any function. Here it can build numbers, strings, lists, tuples,
dicts and numpy arrays; arrays are rebuilt from their bytes by this module. Anything else is
refused before it is looked up.
"""

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

LARGEST_FILE = 16 * 2**20
MOST_VALUES = 10**5
_PLAIN = (int, float, bool, str, bytes, type(None))


class _Refused(Exception):
    """A pickle holds something that is not plain."""


class _Type:
    """Stands for a numpy dtype while a pickle is read."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.name = name if isinstance(name, str) else name.decode("ascii")
        self.order: Any = "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
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
        self.content: Any = b""
        self.order = "C"

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, columns_first, self.content = state
        self.order = "F" if columns_first else "C"

    def numpy(self) -> Any:
        """Return the array."""
        content = self.content
        if isinstance(content, str):
            content = content.encode("latin1")  # as Python 2 stored bytes
        if not isinstance(content, bytes | bytearray | memoryview):
            raise _Refused("array of objects")
        return _filled(content, self.type, self.shape, self.order)


def load_plain(file: Path) -> Any:
    """Read a pickle of plain values.

    Returns:
        Numbers, strings, lists, tuples, dicts and numpy arrays.

    Raises:
        ValueError: it holds anything else, for instance a call of a function, or is damaged.
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

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, or refuse."""
        core = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        if core and name == "_reconstruct":
            return _empty
        if core and name == "scalar":
            return lambda kind, content=b"\0" * 8: _filled(_bytes(content), kind, (), "C")[()]
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return lambda content, kind, shape, order: _filled(bytes(content), kind, shape, order)
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("numpy", "dtype"):
            return lambda *arguments: _Type(*arguments)
        if (module, name) == ("_codecs", "encode"):
            return _bytes
        raise _Refused(f"{module}.{name}")


def _empty(*_: Any) -> _Array:
    """Return an array to be filled, whatever shape it is said to have."""
    return _Array()


def _bytes(text: Any, encoding: str = "latin1") -> bytes:
    """Return bytes that a pickle holds as text."""
    if encoding != "latin1":
        raise _Refused(f"text as {encoding!r}")
    return text if isinstance(text, bytes) else str(text).encode("latin1")


def _filled(content: Any, kind: _Type, shape: Any, order: str) -> Any:
    """Return an array of its own with this content."""
    array = np.frombuffer(content, dtype=kind.numpy())
    layout: Literal["C", "F"] = "F" if order == "F" else "C"
    return array.reshape(tuple(shape), order=layout).copy(order=layout)


def _plain(value: Any, visited: Iterator[int]) -> Any:
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
