"""Where the tasks of a dataset come from, and how any source becomes a dataset on disk.

A source yields each task in blocks of whole episodes, so that memory does not grow with the data.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from offline_meta_rl.common.progress import progress_bar
from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.manifest import Manifest
from offline_meta_rl.data.writer import DatasetWriter, dataset_lock

BLOCK_BYTES = 16 * 2**20  # of transitions, read or written at a time


@dataclass(frozen=True)
class Description:
    """What a dataset says about its T tasks, apart from the transitions; fields as in Manifest."""

    environment: dict[str, Any]
    family: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    horizon: int
    task_seed: int
    task_parameters: list[list[float]]
    splits: dict[str, dict[str, list[int]]]
    stages: list[str]
    reference_returns: dict[str, Any]

    @classmethod
    def of(cls, manifest: Manifest) -> "Description":
        """Return the description of an existing dataset."""
        return cls(**{field.name: getattr(manifest, field.name) for field in fields(cls)})

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.task_parameters)

    def writer(self, target: Path, provenance: dict[str, Any]) -> DatasetWriter:
        """Return a writer of a dataset with this description."""
        arguments = asdict(self)
        del arguments["reference_returns"]
        arguments["splits"] = {
            name: (split["train"], split["test"]) for name, split in self.splits.items()
        }
        return DatasetWriter(
            target, observation_size=0, action_size=0, provenance=provenance, **arguments
        )


class TaskSource(ABC):
    """Tasks that can be read block by block.

    Attributes:
        description: of the dataset they make.
        origin: all that decides the result, in plain JSON types: an interrupted conversion goes on
            only with the same.
    """

    description: Description
    origin: dict[str, Any]

    @abstractmethod
    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one task, in the order of collection.

        Raises:
            ValueError: names the file, the array and the row that is not as it should be.
        """


def write_dataset(source: TaskSource, target: str | Path, *, label: str) -> Path:
    """Write a dataset from a source; go on where an interrupted call stopped.

    Args:
        source: of the tasks.
        target: folder of the dataset; must not exist.
        label: of the progress bar.

    Returns:
        The path of the finished dataset.

    Raises:
        FileExistsError: ``target`` exists.
        ValueError: the source is damaged, or an interrupted call with other settings is in the way.
        OSError: the disk is full; finished tasks are kept.
    """
    path = local_target(target)
    with dataset_lock(path):
        writer = source.description.writer(path, provenance(source.origin))
        with progress_bar(label, source.description.num_tasks + 1) as advance:
            for task in range(source.description.num_tasks):
                if not writer.has_task(task):
                    writer.write_blocks(task, source.blocks(task))
                advance()
            return writer.commit(source.description.reference_returns)


def local_target(target: str | Path) -> Path:
    """Return a path to write at.

    Raises:
        ValueError: it is a URL.
    """
    if "://" in str(target):
        raise ValueError(f"Expected a local path to write at, found {target}. Copy it there after.")
    return Path(target)


def provenance(origin: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of a dataset that one of the tools made."""
    packages = ("offline_meta_rl", "numpy", "h5py", "minari")
    return {"config": origin, "versions": {name: _version(name) for name in packages}}


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Return one string for files: changes when one is added, replaced or written to."""
    lines = []
    for file in files:
        status = file.stat()
        lines.append(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def rows_per_block(row_bytes: int) -> int:
    """Return how many rows make a block."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def number_tasks(names: Sequence[str], numbers: Sequence[int], where: Path) -> dict[int, str]:
    """Return task -> name, in the order of tasks.

    Args:
        names: of files or datasets.
        numbers: task of each.
        where: named in errors.

    Raises:
        ValueError: there is none, two are the same task, or one is missing.
    """
    if not names:
        raise ValueError(f"{where}: expected the data of at least one task, found none.")
    tasks: dict[int, str] = {}
    for number, name in zip(numbers, names, strict=True):
        if number in tasks:
            raise ValueError(
                f"{where}: task {number} is there twice: {tasks[number]} and {name}. Expected each "
                "task once; remove or renumber one of them."
            )
        tasks[number] = name
    missing = sorted(set(range(max(tasks) + 1)) - set(tasks))
    if missing:
        raise ValueError(
            f"{where}: expected tasks 0 to {max(tasks)}, found none for {missing}. Add them, or "
            "number the tasks anew without gaps."
        )
    return dict(sorted(tasks.items()))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
