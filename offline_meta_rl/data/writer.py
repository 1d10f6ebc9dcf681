"""Writing a dataset so that it is either whole or not there.

A collection works in ``<path>.partial``: one file per finished task, each with its own checksum, so
that an interrupted collection resumes. ``commit`` joins them into the final arrays and renames the
finished folder to ``<path>``. Nothing but a finished dataset ever has that name.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import explain_os_errors, path_lock, replacing, sync_folder
from offline_meta_rl.common.progress import Advance, no_progress
from offline_meta_rl.data.arrays import file_checksum, write_array
from offline_meta_rl.data.blocks import Counts, Numbers, TaskBlock, checked_block
from offline_meta_rl.data.description import FINAL_KEY, Description, GivenReturns, plain_returns
from offline_meta_rl.data.manifest import (
    CHUNK_BYTES,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    ArrayEntry,
    Manifest,
    expected_layout,
)

dataset_lock = path_lock


def dataset_root() -> Path:
    """Return the folder of datasets that were given no other place.

    ``$OFFLINE_META_RL_DATA``, or ``~/.cache/offline_meta_rl/datasets``.
    """
    folder = os.environ.get("OFFLINE_META_RL_DATA")
    return Path(folder) if folder else Path.home() / ".cache" / "offline_meta_rl" / "datasets"


class DatasetWriter:
    """Writes one dataset, task by task; hold ``dataset_lock(path)`` meanwhile.

    Args:
        path: Folder of the finished dataset; must not exist yet.
        description: What the dataset says of its T tasks. Its reference returns are not used:
            ``commit`` is given them, since they may not be known before the data.
        provenance: How the data come about, in plain JSON values: ``seed`` and ``config`` decide
            the data; everything else, such as ``versions``, is kept for the reader.

    Raises:
        FileExistsError: ``path`` exists already.
        ValueError: ``<path>.partial`` belongs to a collection with other settings.
    """

    def __init__(
        self, path: str | Path, description: Description, provenance: Mapping[str, object]
    ) -> None:
        self.path = Path(path)
        self.partial = Path(f"{path}.partial")
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already; pass another path or remove it.")
        self.description = replace(
            description, task_parameters=_checked_parameters(description), reference_returns={}
        )
        self._provenance = dict(provenance)
        with explain_os_errors(self.partial):
            (self.partial / "parts").mkdir(parents=True, exist_ok=True)
            settings = {key: provenance[key] for key in ("seed", "config") if key in provenance}
            content = asdict(self.description) | {"settings": settings}
            # They are measured at the end; all else must not change within one collection.
            del content["reference_returns"]
            check_same_collection(self.partial, {"schema_version": self._version} | content)

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return self.description.num_tasks

    def has_task(self, task: int) -> bool:
        """Return whether this task's part is complete (a damaged one counts as missing)."""
        part, receipt = self._part(task)
        if not (part.is_file() and receipt.is_file()):
            return False
        found = json.loads(receipt.read_text())
        return "blocks" in found and file_checksum(part) == found["checksum"]

    def write_task(
        self,
        task: int,
        transitions: Mapping[str, Numbers],
        *,
        stage: Counts,
        length: Counts,
        final_observation: Numbers | None = None,
    ) -> None:
        """Write all episodes of one task; it is there completely or not at all.

        Args:
            task: Index of the task.
            transitions: Arrays of all episodes, as in ``TaskBlock``.
            stage: Index of the behaviour stage of each episode, [E].
            length: Steps of each episode, [E]; they sum to N.
            final_observation: Last image of each episode, [E, C, h, w] uint8; for image data.

        Raises:
            ValueError: Names the array and what is wrong with it.
            OSError: The disk is full, or the folder cannot be written.
        """
        self.write_blocks(task, [TaskBlock(transitions, stage, length, final_observation)])

    def write_blocks(
        self,
        task: int,
        blocks: Iterable[TaskBlock],
        advance: Advance = no_progress,
    ) -> None:
        """Write one task block by block; it is there completely or not at all.

        One block is in memory at a time.

        Args:
            task: Index of the task.
            blocks: Its episodes, in the order of collection.
            advance: Called after each block with its number of transitions.

        Raises:
            ValueError: Names the array and what is wrong with it.
            OSError: The disk is full, or the folder cannot be written.
        """
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"Unknown task {task}: expected 0 to {self.num_tasks - 1}.")
        part, receipt = self._part(task)
        count = rows = 0
        with explain_os_errors(self.partial):
            # Blocks are members of one archive: a task is one file, and one block is in memory.
            with replacing(part) as file, zipfile.ZipFile(file, "w") as archive:
                for block in blocks:
                    arrays = checked_block(task, block, self.description, rows)
                    for key, array in arrays.items():
                        name = f"{count}/{key}.npy"
                        with archive.open(name, "w", force_zip64=True) as member:
                            np.lib.format.write_array(member, array, allow_pickle=False)
                    count += 1
                    added = int(np.sum(block.length))
                    rows += added
                    advance(added)
                if not count:
                    raise ValueError(f"Task {task}: expected at least one episode, found none.")
            # Written last: a part without its receipt was interrupted and counts as missing.
            with replacing(receipt) as file:
                text = json.dumps({"checksum": file_checksum(part), "blocks": count})
                file.write(text.encode())

    def read(self, task: int, key: str) -> NDArray[np.generic]:
        """Return one array of a task that has been written, as a whole.

        Args:
            task: Index of the task.
            key: Name of one of its arrays of transitions, ``stage``, ``length`` or
                ``final_observation``.
        """
        return np.concatenate(list(self._load(task, key)))

    def commit(self, reference_returns: GivenReturns) -> Path:
        """Join the parts of all tasks, give the dataset its name, and return its path.

        Args:
            reference_returns: "random", "best_behaviour", "standing_still" -> mean return of each
                task [T]; "stages" -> {stage name: [T]}. Without the first two, results cannot be
                normalised.

        Raises:
            RuntimeError: A task is missing.
            ValueError: A reference return is missing for a task or is not finite.
            OSError: The disk is full, or the folder cannot be written.
        """
        missing = [task for task in range(self.num_tasks) if not self.has_task(task)]
        if missing:
            raise RuntimeError(f"Tasks {missing} of {self.path} are missing; write them first.")
        tasks = range(self.num_tasks)
        lengths = [self.read(task, "length").astype(np.int64) for task in tasks]
        counts = [len(part) for part in lengths]
        stage = np.concatenate([self.read(task, "stage") for task in tasks]).astype(np.int64)
        episodes = episode_columns(counts, stage, np.concatenate(lengths))

        def write(folder: Path, name: str, shape: list[int], dtype: str) -> ArrayEntry:
            group, key = name.split("/")
            parts = (
                iter([episodes[key]])
                if group == "episodes" and key != FINAL_KEY
                else (part for task in tasks for part in self._load(task, key))
            )
            return write_array(folder, name, shape, dtype, parts)

        transitions = [int(part.sum()) for part in lengths]
        return self.publish(reference_returns, counts, transitions, write)

    def publish(
        self,
        reference_returns: GivenReturns,
        num_episodes: list[int],
        num_transitions: list[int],
        write: Callable[[Path, str, list[int], str], ArrayEntry],
    ) -> Path:
        """Write the final arrays and the manifest, give the dataset its name, return its path.

        Args:
            reference_returns: Mean returns of reference policies; see ``commit``.
            num_episodes: Episodes of each task, [T].
            num_transitions: Transitions of each task, [T].
            write: Writes the file of one array, given the folder and the array's name, shape and
                dtype.

        Raises:
            ValueError: A reference return is missing for a task or is not finite.
            OSError: The disk is full, or the folder cannot be written.
        """
        described = replace(self.description, reference_returns=plain_returns(reference_returns))
        empty = Manifest(
            **vars(described),
            schema_version=self._version,
            num_episodes=num_episodes,
            num_transitions=num_transitions,
            provenance=self._provenance,
            chunk_bytes=CHUNK_BYTES,
            arrays={},
        )
        folder = self.partial / "dataset"
        with explain_os_errors(self.partial):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "transitions").mkdir(parents=True)
            (folder / "episodes").mkdir()
            entries = {
                name: write(folder, name, shape, dtype)
                for name, (shape, dtype) in expected_layout(empty).items()
            }
            text = replace(empty, arrays=entries).to_json()
            # Reading it back finds what does not fit before the dataset gets its name.
            Manifest.from_json(text, folder / MANIFEST_FILE)
            with replacing(folder / MANIFEST_FILE) as file:
                file.write(text.encode())
            # The rename is the one moment at which the dataset comes to be.
            os.rename(folder, self.path)
            sync_folder(self.path.parent)
            shutil.rmtree(self.partial, ignore_errors=True)
        return self.path

    @property
    def _version(self) -> int:
        """The manifest's version: old readers know vectors, and no other."""
        return SCHEMA_VERSION if self.description.has_images else 1

    def _part(self, task: int) -> tuple[Path, Path]:
        stem = self.partial / "parts" / f"task_{task:05d}"
        return stem.with_suffix(".npz"), stem.with_suffix(".json")

    def _load(self, task: int, key: str) -> Iterator[NDArray[np.generic]]:
        """Yield one array of a task, block by block."""
        with zipfile.ZipFile(self._part(task)[0]) as archive:
            for name in archive.namelist():
                if name.endswith(f"/{key}.npy"):
                    with archive.open(name) as member:
                        yield np.lib.format.read_array(member, allow_pickle=False)


def episode_columns(
    counts: list[int], stage: NDArray[np.int64], length: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Return the table of E episodes as a dataset stores it: task, stage, start, length, [E] each.

    Args:
        counts: Episodes of each task, [T]; they sum to E.
        stage: Index of each episode's stage, [E].
        length: Steps of each episode, [E].
    """
    return {
        "task": np.repeat(np.arange(len(counts)), counts),
        "stage": stage,
        "start": np.cumsum(length) - length,
        "length": length,
    }


def check_same_collection(partial: Path, settings: Mapping[str, object]) -> None:
    """Refuse to mix the parts of two collections; keep the settings of the first.

    Args:
        partial: Folder of the unfinished collection.
        settings: All that decides what is collected, in plain JSON types.

    Raises:
        ValueError: Names the settings that differ.
    """
    file = partial / "collection.json"
    text = json.dumps(settings, allow_nan=False)
    if not file.is_file():
        with replacing(file) as stream:
            stream.write(text.encode())
        return
    wanted, found = json.loads(text), json.loads(file.read_text(encoding="utf-8"))
    different = sorted(key for key in wanted if wanted[key] != found.get(key))
    if different:
        raise ValueError(
            f"{partial} holds an interrupted collection with other settings (they differ in "
            f"{', '.join(different)}). Remove that folder or pass another path."
        )


def _checked_parameters(description: Description) -> list[list[float]]:
    """Return the task parameters, [T, P].

    Raises:
        ValueError: They are not numbers, or not equally many for each task.
    """
    parameters = np.asarray(description.task_parameters, dtype=np.float64)
    if parameters.ndim != 2 or not np.isfinite(parameters).all():
        raise ValueError(
            f"task_parameters: expected finite numbers [tasks, parameters], found shape "
            f"{parameters.shape}. Give every task the same number of parameters."
        )
    result: list[list[float]] = parameters.tolist()
    return result
