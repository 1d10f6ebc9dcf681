"""Where the tasks of a dataset come from, and how any source becomes a dataset on disk.

Collecting with a behaviour policy, converting the data of others, merging and splitting are all
sources. A source yields each task in blocks of whole episodes, so that memory does not grow with
the data.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from offline_meta_rl.common.progress import Bars, progress_bars
from offline_meta_rl.common.provenance import package_versions
from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.description import Description, GivenReturns
from offline_meta_rl.data.writer import DatasetWriter, dataset_lock


class TaskSource(ABC):
    """Tasks that can be read block by block.

    Attributes:
        description: Of the dataset they make.
        origin: All that decides the result, as ``seed`` and ``config``, in plain JSON types: an
            interrupted call goes on only with the same.
        packages: Names of the packages whose versions are kept with the dataset.
        task_size: Transitions of a task as far as they are known before, for the progress bar.
    """

    description: Description
    origin: dict[str, object]
    packages: tuple[str, ...] = ("offline_meta_rl", "numpy", "h5py", "minari")
    task_size: int | None = None

    @abstractmethod
    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one task, in the order of collection.

        Raises:
            ValueError: Names the file, the array and the row that is not as it should be.
        """

    def reference_returns(self, written: DatasetWriter, bars: Bars) -> GivenReturns:
        """Return the mean return of reference policies on each task; see ``Description``.

        Args:
            written: The writer, which has every task by now, for what is measured on the data.
            bars: Progress bars, for a source that rolls policies out.
        """
        return self.description.reference_returns


def write_dataset(source: TaskSource, target: str | Path, *, label: str) -> Path:
    """Write a dataset from a source; go on where an interrupted call stopped.

    Args:
        source: Where the tasks come from.
        target: Folder of the dataset; must not exist.
        label: Label of the progress bar.

    Returns:
        The path of the finished dataset.

    Raises:
        FileExistsError: ``target`` exists.
        ValueError: The source is damaged, or an interrupted call with other settings is in the way.
        OSError: The disk is full; finished tasks are kept.
    """
    path = local_target(target)
    provenance = source.origin | {"versions": package_versions(*source.packages)}
    with dataset_lock(path), progress_bars() as bars:
        writer = DatasetWriter(path, source.description, provenance)
        advance = bars.add(label, writer.num_tasks + 1)
        for task in range(writer.num_tasks):
            # A finished task stays; one that was interrupted begins anew, from its own seed.
            if not writer.has_task(task):
                with bars.passing(f"Task {task}: transitions", source.task_size) as rows:
                    writer.write_blocks(task, source.blocks(task), rows)
            advance()
        return writer.commit(source.reference_returns(writer, bars))


def local_target(target: str | Path) -> Path:
    """Return a path to write at.

    Raises:
        ValueError: It is a URL.
    """
    if "://" in str(target):
        raise ValueError(f"Expected a local path to write at, found {target}. Copy it there after.")
    return Path(target)
