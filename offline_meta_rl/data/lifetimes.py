"""Lifetime replays of T agents on the disk: every transition each of them ever saw.

Memory-mapped arrays of fixed size, written step by step for all tasks together, drawn from while
the agents train. They are the dataset to be: once the lifetimes are over they become its arrays
without being copied, unless rows of unfinished or diverged episodes must go. Shapes: T tasks, L
steps of a lifetime, O, A observation and action size, K stored summands of the reward.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline_meta_rl.common.files import explain_os_errors, reserve
from offline_meta_rl.data.arrays import checksum, write_array
from offline_meta_rl.data.description import GivenReturns
from offline_meta_rl.data.manifest import CHUNK_BYTES, ArrayEntry
from offline_meta_rl.data.writer import DatasetWriter, episode_columns

BLOCK_ROWS = 65536
FINGERPRINT_STEPS = 1000


class EpisodeColumns(NamedTuple):
    """Whole episodes of one task, in order of time; diverged ones left out.

    Attributes:
        start: First step, [E] int64.
        length: Steps, [E] int64.
        returns: Undiscounted return of the true reward, [E] float64.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    returns: NDArray[np.float64]


class LifetimeStorage:
    """The arrays, each [T, L, ...]; content that is there already is kept.

    The whole space is claimed at once: on a full disk, writing to a memory map would kill the
    process.

    Args:
        folder: Where the files are.
        num_tasks: T.
        steps: L.
        observation_size: O.
        action_size: A.
        terms: Names of the reward's summands to keep.

    Raises:
        OSError: The disk has not enough room.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_tasks: int,
        steps: int,
        observation_size: int,
        action_size: int,
        terms: Sequence[str] = (),
    ) -> None:
        self.folder, self.num_tasks, self.steps = folder, num_tasks, steps
        self.terms = tuple(terms)
        rows: dict[str, tuple[tuple[int, ...], str]] = {
            "observation": ((observation_size,), "float32"),
            "action": ((action_size,), "float32"),
            "reward": ((), "float32"),
            "next_observation": ((observation_size,), "float32"),
            "terminated": ((), "bool"),
            "truncated": ((), "bool"),
            "diverged": ((), "bool"),
        }
        if terms:
            rows["reward_terms"] = ((len(terms),), "float32")
        with explain_os_errors(folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            self._maps = {
                key: _map(folder / f"{key}.bin", (num_tasks, steps, *shape), dtype)
                for key, (shape, dtype) in rows.items()
            }
        self.arrays: dict[str, NDArray[np.generic]] = {
            key: mapped.view(np.ndarray) for key, mapped in self._maps.items()
        }
        # Rows of all tasks in one dimension: a draw for all agents is one index.
        self._flat = {key: torch.from_numpy(a).flatten(0, 1) for key, a in self.arrays.items()}

    def write(self, step: int, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Write one step of all tasks: array name -> [T, ...]."""
        for key, values in columns.items():
            self.arrays[key][:, step] = values

    def draw(self, shape: tuple[int, int], steps: int, generator: torch.Generator) -> Tensor:
        """Draw rows uniformly from the first ``steps`` of each task's own lifetime.

        Args:
            shape: (updates U, batch B).
            steps: Steps taken so far.
            generator: Source of the draws.

        Returns:
            Rows [U, T, B] for ``gather``; those where the simulator diverged are drawn again.

        Raises:
            RuntimeError: Hardly any row is usable.
        """
        updates, batch = shape
        size = (updates, self.num_tasks, batch)
        first = self.steps * torch.arange(self.num_tasks)[:, None]
        rows = torch.randint(steps, size, generator=generator) + first
        for _ in range(100):
            # Rejection keeps the draw uniform over the usable rows; divergences are rare.
            bad = self._flat["diverged"][rows]
            if not bad.any():
                return rows
            again = torch.randint(steps, size, generator=generator) + first
            rows = torch.where(bad, again, rows)
        raise RuntimeError(
            f"The simulation diverges in nearly all of the first {steps} steps of a task. Check "
            "the tasks' parameters."
        )

    def gather(self, key: str, rows: Tensor) -> Tensor:
        """Return one array's values at rows of ``draw``, [U, T, B, ...], copied into memory."""
        return self._flat[key][rows]

    def gather_terms(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the reward's stored summands at rows of ``draw``, [U, T, B] each."""
        columns = self.gather("reward_terms", rows).unbind(-1)
        return dict(zip(self.terms, columns, strict=True))

    def flush(self) -> None:
        """Force everything written so far to the disk."""
        for mapped in self._maps.values():
            mapped.flush()

    def fingerprint(self, steps: int) -> str:
        """Return a checksum of the last rewards before ``steps``, which tell replays apart."""
        recent = self.arrays["reward"][:, max(0, steps - FINGERPRINT_STEPS) : steps]
        return checksum(np.ascontiguousarray(recent))

    def episodes(self, task: int, steps: int) -> EpisodeColumns:
        """Return the whole episodes among the first ``steps`` of a task."""
        terminated, truncated, diverged = (
            self.arrays[key][task, :steps].astype(bool)
            for key in ("terminated", "truncated", "diverged")
        )
        last = np.flatnonzero(terminated | truncated)
        if not len(last):
            none = np.zeros(0, dtype=np.int64)
            return EpisodeColumns(none, none, np.zeros(0))
        start = np.concatenate([[0], last[:-1] + 1])
        stop = int(last[-1]) + 1
        # An episode is unusable from its first step if the simulation diverges in any of them.
        good = ~np.logical_or.reduceat(diverged[:stop], start)
        reward = self.arrays["reward"][task, :stop].astype(np.float64)
        returns = np.add.reduceat(reward, start)
        return EpisodeColumns(start[good], (last - start + 1)[good], returns[good])


def commit_lifetimes(
    writer: DatasetWriter, storage: LifetimeStorage, reference_returns: GivenReturns
) -> Path:
    """Turn finished lifetimes into the writer's dataset; stages are equal parts of the lifetime.

    Interrupted, it can be called again: the replays stay as they are until the dataset has its
    name.

    Raises:
        ValueError: A task has no whole episode, or a reference return is not finite.
        OSError: The disk is full, or the folder cannot be written.
    """
    tables = [storage.episodes(task, storage.steps) for task in range(storage.num_tasks)]
    empty = [task for task, table in enumerate(tables) if not len(table.start)]
    if empty:
        raise ValueError(
            f"Tasks {empty} have no whole episode, expected one at least. Give them a longer "
            "lifetime, or leave them out."
        )
    lengths = np.concatenate([table.length for table in tables])
    counts = [len(table.start) for table in tables]
    stages = len(writer.description.stages)
    stage = np.concatenate([table.start for table in tables]) * stages // storage.steps
    episodes = episode_columns(counts, stage, lengths)
    kept = [int(table.length.sum()) for table in tables]

    def write(folder: Path, name: str, shape: list[int], dtype: str) -> ArrayEntry:
        group, key = name.split("/")
        if group == "episodes":
            return write_array(folder, name, shape, dtype, [episodes[key]])
        # Nothing has to go: the finished file is the dataset's array as it is.
        if all(count == storage.steps for count in kept):
            return _link(storage.folder / f"{key}.bin", folder, name, shape, dtype)
        return write_array(folder, name, shape, dtype, _kept_rows(storage, key, tables))

    storage.flush()
    return writer.publish(reference_returns, counts, kept, write)


def _kept_rows(
    storage: LifetimeStorage, key: str, tables: Sequence[EpisodeColumns]
) -> Iterator[NDArray[np.generic]]:
    """Yield the rows of whole episodes, task by task, some thousands at a time."""
    for task, table in enumerate(tables):
        # +1 where a kept episode starts, -1 behind its end: the running sum marks kept rows.
        change = np.zeros(storage.steps + 1, dtype=np.int8)
        change[table.start] += 1
        change[table.start + table.length] -= 1
        keep = np.cumsum(change[:-1]).astype(bool)
        for begin in range(0, storage.steps, BLOCK_ROWS):
            block = slice(begin, begin + BLOCK_ROWS)
            yield storage.arrays[key][task, block][keep[block]]


def _link(source: Path, folder: Path, name: str, shape: list[int], dtype: str) -> ArrayEntry:
    """Give a finished array file its name in the dataset too; copy it where links are unknown."""

    def chunks() -> Iterator[bytes]:
        with open(source, "rb") as stream:
            while content := stream.read(CHUNK_BYTES):
                yield content

    file = f"{name}.bin"
    try:
        os.link(source, folder / file)
    except OSError:
        parts = (np.frombuffer(content, dtype=dtype) for content in chunks())
        return write_array(folder, name, shape, dtype, parts)
    sums = [checksum(content) for content in chunks()]
    return ArrayEntry(list(shape), dtype, file, source.stat().st_size, sums)


def _map(
    file: Path, shape: tuple[int, ...], dtype: str
) -> "np.memmap[tuple[int, ...], np.dtype[np.generic]]":
    """Map a file of the array's size, making it if need be."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with open(file, "ab") as stream:
        if stream.tell() != size:
            stream.truncate(0)
            reserve(stream, size)
            stream.truncate(size)
    return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
