"""Where a datamodule keeps its data while it trains: on a device, in memory, or on the disk."""

import logging
from dataclasses import dataclass
from typing import Literal

import lightning
import torch

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.data.dataset import TaskDataset

RESIDENT_BYTES = 4 * 2**30
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """Where TaskBuffers keeps the data, and how it reads what does not fit in memory.

    Attributes:
        device: Where the data lives: "auto" (the trainer's device while it is small, else
            memory-mapped), "cpu", "cuda", or "disk" for memory-mapped.
        sampling: What train batches are drawn from: all "rows", or, for data that does not fit in
            memory, a moving window of "chunks" of each task, read ahead by a thread.
        chunk_size: Neighbouring rows that are read together.
        chunks_per_task: Chunks of each task in memory. One batch holds rows of so many chunks.
        prefetch: Batches made ahead by a thread; None for 4 with chunks, none with rows.

    Raises:
        ValueError: Names the setting, what was expected and what was found.
    """

    device: str = "auto"
    sampling: Literal["rows", "chunks"] = "rows"
    chunk_size: int = 1024
    chunks_per_task: int = 16
    prefetch: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_at_least(self, 1, "chunk_size", "chunks_per_task")
        check_at_least(self, 0, "prefetch")
        if self.sampling not in ("rows", "chunks"):
            raise ValueError(f"sampling: expected rows or chunks, found {self.sampling!r}.")
        if self.sampling == "chunks" and self.device not in ("auto", "disk"):
            raise ValueError(
                "device: expected auto or disk with sampling chunks, which keeps the data on the "
                f"disk, found {self.device!r}. Set --data.storage.device auto, or "
                "--data.storage.sampling rows."
            )

    @property
    def batches_ahead(self) -> int:
        """Batches made ahead by a thread."""
        usual = 4 if self.sampling == "chunks" else 0
        return usual if self.prefetch is None else self.prefetch


def data_device(
    dataset: TaskDataset, wanted: str, trainer: lightning.Trainer | None
) -> torch.device | None:
    """Return the device for a dataset's fields, None to leave them memory-mapped.

    Args:
        dataset: The dataset.
        wanted: "auto", "disk" for memory-mapped, or a torch device.
        trainer: The trainer, whose device "auto" is while the dataset is below 4 GiB.
    """
    own = trainer.strategy.root_device if trainer else torch.device("cpu")
    total = sum(entry.bytes for entry in dataset.manifest.arrays.values())
    if wanted == "disk":
        return None
    if wanted == "auto" and total > RESIDENT_BYTES:
        _LOGGER.info(
            "%s has %.1f GB and stays on the disk. If memory does not hold it besides the "
            "training, --data.storage.sampling chunks is much faster.",
            dataset.path,
            total / 1e9,
        )
        return None
    # "cuda" means the trainer's own device of that kind, not the first one.
    return own if wanted in ("auto", own.type) else torch.device(wanted)
