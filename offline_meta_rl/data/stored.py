"""A dataset as it lies on the disk: NumPy arrays, memory-mapped, checked before they are used.

All that looking at a dataset needs, and no PyTorch, which takes more than a second to import.
``data/dataset.py`` adds the tensors that training reads. All tasks are concatenated in the order
(task, episode, time). Shapes: N transitions, E episodes, O/A observation/action size.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.arrays import ArrayFile
from offline_meta_rl.data.description import FINAL_KEY
from offline_meta_rl.data.manifest import EPISODE_KEYS, Manifest

VERIFY_AT_OPEN_BYTES = 2**30


class StoredDataset:
    """A dataset opened for reading; make one with ``open``.

    Attributes:
        path: The dataset's folder.
        manifest: What it holds.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Map the arrays; ``open`` also checks their content."""
        self.path = path
        self.manifest = manifest
        self._arrays = {
            name: ArrayFile(path, entry, manifest.chunk_bytes)
            for name, entry in manifest.arrays.items()
        }

    @classmethod
    def open(cls, path: str | Path, verify: bool | None = None) -> Self:
        """Open a dataset.

        Args:
            path: The dataset's folder.
            verify: Check every array's checksums now (True), on first touch (False), or now when
                the dataset is smaller than 1 GiB (None). Sizes and episodes are always checked.

        Returns:
            The dataset.

        Raises:
            FileNotFoundError: There is no dataset there, or one of its files is missing.
            ValueError: Names the file and field that is not as it should be.
        """
        path = Path(path)
        dataset = cls(path, Manifest.read(path))
        for key in EPISODE_KEYS:
            dataset._arrays[f"episodes/{key}"].verify()
        dataset._check_episodes()
        # Checking 1 GiB takes seconds; more is checked when it is first used.
        small = sum(e.bytes for e in dataset.manifest.arrays.values()) < VERIFY_AT_OPEN_BYTES
        if verify or (verify is None and small):
            dataset.validate()
        return dataset

    def __len__(self) -> int:
        """Number of transitions N."""
        return int(self._task_starts[-1])

    @property
    def checksum(self) -> str:
        """One string that identifies data, tasks and splits; for result files."""
        return self.manifest.checksum

    def values(self, name: str) -> NDArray:
        """Return an array, memory-mapped, whose chunks ``touch`` checks.

        Args:
            name: Name as in the manifest: ``transitions/reward`` [N], ``episodes/length`` [E].
        """
        return self._arrays[name].values

    def task_rows(self, task: int) -> tuple[int, int]:
        """Return (start, stop): the rows of one task.

        Raises:
            ValueError: There is no such task.
        """
        if not 0 <= task < self.manifest.num_tasks:
            raise ValueError(
                f"Unknown task {task}: expected 0 to {self.manifest.num_tasks - 1} in {self.path}. "
                "Name one of these tasks."
            )
        return int(self._task_starts[task]), int(self._task_starts[task + 1])

    def split(self, name: str = "default") -> tuple[list[int], list[int]]:
        """Return (train, test) task indices of a named split.

        Raises:
            ValueError: There is no such split.
        """
        if name not in self.manifest.splits:
            raise ValueError(
                f"Unknown split {name!r}: expected one of {sorted(self.manifest.splits)} in "
                f"{self.path}. Set --data.split to one of these."
            )
        split = self.manifest.splits[name]
        return list(split["train"]), list(split["test"])

    def validate(self) -> None:
        """Check every checksum, and every number for NaN and infinity, not checked before.

        Raises:
            ValueError: Names the first file and chunk that is not as it was written.
        """
        for array in self._arrays.values():
            array.verify()

    def touch(self, keys: Iterable[str], rows: NDArray[np.int64] | None = None) -> None:
        """Check the chunks that hold these rows (None: all) of these arrays, once each.

        Args:
            keys: Names of arrays of ``transitions``, or ``final_observation``, whose rows are
                episodes.
            rows: Row numbers of any shape.

        Raises:
            ValueError: Names the first file and chunk that is not as it was written.
        """
        for key in keys:
            group = "episodes" if key == FINAL_KEY else "transitions"
            self._arrays[f"{group}/{key}"].verify(rows)

    def read(self, key: str, rows: NDArray[np.int64]) -> NDArray:
        """Return one of ``transitions`` at ascending rows, read from the file, not mapped."""
        return self._arrays[f"transitions/{key}"].read(rows)

    def expect_single_rows(self, keys: Iterable[str]) -> None:
        """Let the system know that rows of these ``transitions`` will be used here and there."""
        for key in keys:
            self._arrays[f"transitions/{key}"].expect_single_rows()

    @cached_property
    def _task_starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.manifest.num_transitions)]).astype(np.int64)

    def _check_episodes(self) -> None:
        """Check that episodes follow one another and agree with the manifest's counts."""
        task, stage, start, length = (self.values(f"episodes/{key}") for key in EPISODE_KEYS)
        tasks = self.manifest.num_tasks
        expected_start = np.concatenate([[0], np.cumsum(length)[:-1]])
        checks = {
            "task": (np.diff(task) >= 0).all()
            and np.array_equal(np.bincount(task, minlength=tasks), self.manifest.num_episodes),
            "start": np.array_equal(start, expected_start),
            "length": (length > 0).all()
            and np.array_equal(
                np.bincount(task, weights=length, minlength=tasks), self.manifest.num_transitions
            ),
            "stage": ((stage >= 0) & (stage < len(self.manifest.stages))).all(),
        }
        for key, good in checks.items():
            if not good:
                file = self._arrays[f"episodes/{key}"].file
                raise ValueError(
                    f"{file}: expected episodes "
                    "in (task, time) order with the manifest's counts and stages, found others. "
                    "Collect or copy the dataset again."
                )
