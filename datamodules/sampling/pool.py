"""The chunks of every task that are drawn from at the moment, held in memory."""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from tensordict import TensorDict

from datamodules.sampling.chunks import Chunks
from datamodules.sampling.fields import FieldTable
from datamodules.sampling.rows import Rows


class ChunkPool:
    """Gathers rows of windows from memory; reads a chunk when a step first needs its window.

    Args:
        table: Fields to hold, memory-mapped.
        chunks: Says which chunks each outer step needs.
        tasks: Tasks that may be asked for.
    """

    def __init__(self, table: FieldTable, chunks: Chunks, tasks: Sequence[int]) -> None:
        self._table, self._chunks = table, chunks
        self._place = {task: index for index, task in enumerate(tasks)}
        largest = int(chunks.buffer.size[list(tasks)].max())
        self._rows = min(chunks.size, largest)
        width = min(chunks.per_task, max(chunks.count(task) for task in tasks))
        self._held = np.full((len(tasks), width), -1)
        self._columns = table.empty(self._held.size * self._rows)
        self._lock = threading.Lock()

    def gather(self, step: int, tasks: Rows, *parts: Rows) -> list[TensorDict]:
        """Return the fields of rows drawn from the windows of U outer steps.

        Args:
            step: Number of the first outer step.
            tasks: Tasks of each outer step, [U, T].
            parts: Row numbers [U, T, B], B of each part its own.

        Returns:
            A TensorDict [U, T, B] of each part.

        Raises:
            ValueError: A chunk's file is damaged.
        """
        # The thread that makes batches ahead and validation may both ask.
        with self._lock:
            steps = []
            for index, mine in enumerate(tasks.tolist()):
                for task in mine:
                    self._load(task, self._chunks.window(task, step + index))
                steps.append([self._gather(mine, rows[index]) for rows in parts])
        return [torch.stack(part) for part in zip(*steps, strict=True)]

    def _gather(self, tasks: list[int], rows: Rows) -> TensorDict:
        """Return the fields of rows [T, B] of chunks in memory."""
        places = np.empty_like(rows)
        for index, task in enumerate(tasks):
            bounds = self._chunks.bounds(task)
            # Row number -> position in the task's buffer -> chunk -> slot in memory.
            position = np.searchsorted(self._chunks.buffer.rows_of(task), rows[index])
            chunk = np.searchsorted(bounds, position, side="right") - 1
            start = np.full(len(bounds), -(2**62))  # its last place is for empty slots
            start[self._held[self._place[task]]] = self._starts(task)
            places[index] = start[chunk] + position - bounds[chunk]
        flat = torch.from_numpy(places.reshape(-1))
        fields = {
            name: column.index_select(0, flat).view(*rows.shape, *column.shape[1:])
            for name, column in self._columns.items()
        }
        return TensorDict(fields, batch_size=rows.shape)

    def _load(self, task: int, window: Rows) -> None:
        """Read the window's chunks that are not in memory in place of others of the same task."""
        held = self._held[self._place[task]]
        wanted, present = set(window.tolist()), set(held.tolist())
        missing = [chunk for chunk in window.tolist() if chunk not in present]
        free = [slot for slot, chunk in enumerate(held.tolist()) if chunk not in wanted]
        for chunk, slot in zip(missing, free, strict=False):
            held[slot] = -1  # until it is read completely
            found = self._table.read(self._chunks.rows(task, chunk))
            start = self._starts(task)[slot]
            for name, values in found.items():
                self._columns[name][start : start + len(values)] = values
            held[slot] = chunk

    def _starts(self, task: int) -> Rows:
        """Return where each of a task's slots begins in memory, [C]."""
        width = self._held.shape[1]
        result: Rows = (self._place[task] * width + np.arange(width)) * self._rows
        return result
