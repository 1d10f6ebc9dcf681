"""Fields of a dataset's rows, stored or derived, gathered by row number.

Small datasets are copied into memory or onto a device, so that a batch is one gather per field;
larger ones stay memory-mapped, and their checksums are checked chunk by chunk as rows are used.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.data.dataset import TRANSITION_KEYS, TaskDataset

DERIVED_KEYS = ("return_to_go", "terminal_observation", "terminal_discount", "task")


class FieldTable:
    """Chosen fields of every row of a dataset.

    Besides what is stored, there are ``return_to_go`` [N], ``terminal_observation`` [N, O] (last
    next_observation of a row's episode), ``terminal_discount`` [N] (discount ** k, with k steps
    from the row to that observation) and ``task`` [N] (index of the row's task).

    Args:
        dataset: Dataset of the rows.
        fields: Names of fields.
        discount: Discount per step of ``return_to_go`` and ``terminal_discount``, 0 to 1.
        device: Where fields go; None leaves them memory-mapped.

    Raises:
        ValueError: Unknown field.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        fields: Sequence[str],
        discount: float,
        device: torch.device | None,
    ) -> None:
        known = (*TRANSITION_KEYS, *DERIVED_KEYS)
        unknown = [field for field in fields if field not in known]
        if unknown or not fields:
            raise ValueError(
                f"Unknown fields {unknown}: expected some of {list(known)}. Correct --data.fields."
            )
        self.dataset = dataset
        self.fields = tuple(fields)
        self.device = device
        self._stored = sorted({"next_observation" if f[:9] == "terminal_" else f for f in fields})
        self._stored = [key for key in self._stored if key in TRANSITION_KEYS]
        self._columns: dict[str, Tensor] = {}
        self._last_rows: Tensor | None = None
        if "terminal_observation" in fields:
            self._last_rows = dataset.episode_end
        for field in fields:
            self._columns[field] = self._column(field, discount)
        if device is None:
            dataset.expect_single_rows(self._stored)
        else:
            dataset.touch(self._stored)
            self._columns = {k: _resident(v, device) for k, v in self._columns.items()}
            if self._last_rows is not None:
                self._last_rows = self._last_rows.to(device)

    def gather(self, rows: NDArray[np.int64]) -> TensorDict:
        """Return the fields of rows [...] as a TensorDict of batch size [...].

        Raises:
            ValueError: Rows of a damaged chunk of a memory-mapped file.
        """
        if self.device is None:
            self._touch(rows)
        flat = torch.from_numpy(np.ascontiguousarray(rows).reshape(-1))
        if self.device is not None and self.device.type != "cpu":
            # Pinned, so that the copy does not wait for what the device is doing.
            flat = flat.pin_memory().to(self.device, non_blocking=True)
        gathered = {}
        for field, column in self._columns.items():
            index = flat
            if field == "terminal_observation" and self._last_rows is not None:
                index = self._last_rows[flat]
            gathered[field] = column.index_select(0, index).view(*rows.shape, *column.shape[1:])
        return TensorDict(gathered, batch_size=rows.shape, device=self.device)

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Return uninitialised tensors for the fields of a number of rows."""
        return {k: column.new_empty(rows, *column.shape[1:]) for k, column in self._columns.items()}

    def read(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the fields of ascending rows [n], read from the files in few long pieces.

        Raises:
            ValueError: Rows of a damaged chunk.
        """
        self._touch(rows)
        found = {}
        for field, column in self._columns.items():
            if field == "terminal_observation" and self._last_rows is not None:
                # All rows of an episode share it, so it is read once for each episode.
                last, index = torch.unique(self._last_rows[rows], return_inverse=True)
                found[field] = column[last][index]
            elif field in TRANSITION_KEYS:
                found[field] = torch.from_numpy(self.dataset.read(field, rows))
            else:
                found[field] = column[rows]
        return found

    def _touch(self, rows: NDArray[np.int64]) -> None:
        """Check the chunks that hold the rows' fields, unless checked before."""
        touched = rows.ravel()
        if self._last_rows is not None:
            # ``terminal_observation`` is read from another row than its own, the episode's last.
            touched = np.concatenate([touched, self._last_rows.numpy()[touched]])
        self.dataset.touch(self._stored, touched)

    def _column(self, field: str, discount: float) -> Tensor:
        if field == "return_to_go":
            return self.dataset.returns_to_go(discount)
        if field == "terminal_discount":
            return self.dataset.terminal_discount(discount)
        if field == "task":
            episodes = self.dataset.episodes
            return torch.repeat_interleave(episodes["task"], episodes["length"])
        key = "next_observation" if field == "terminal_observation" else field
        column: Tensor = self.dataset.transitions[key]
        return column


def _resident(column: Tensor, device: torch.device) -> Tensor:
    """Copy a column to a device; a copy also where it is the CPU, so that no file is behind it."""
    return column.clone() if device.type == "cpu" else column.to(device)
