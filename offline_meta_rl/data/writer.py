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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import explain_os_errors, path_lock, replacing, sync_folder
from offline_meta_rl.data.arrays import file_checksum, write_array
from offline_meta_rl.data.blocks import TaskBlock, checked_block
from offline_meta_rl.data.checks import check_same_collection, plain_returns
from offline_meta_rl.data.manifest import (
    CHUNK_BYTES,
    FINAL_KEY,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    ArrayEntry,
    Manifest,
    are_images,
    box,
    expected_layout,
)

if TYPE_CHECKING:
    from torch import Tensor

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
        path: folder of the finished dataset; must not exist yet.
        environment: ``id``, ``version`` and ``kwargs`` of the gymnasium environment.
        family: short name of the task family.
        observation_size: O.
        action_size: A; actions lie in [-1, 1] unless ``action_space`` says otherwise.
        horizon: steps after which an episode is truncated.
        task_seed: seed the task parameters come from.
        task_parameters: numbers that describe each task, [T, P].
        splits: split name -> (train, test) task indices.
        stages: names of the behaviour stages, poor to expert.
        provenance: seed, configuration, versions: how the data came about (plain JSON values).
        observation_space: replaces the default, an unbounded float32 vector of size O.
        action_space: replaces the default, a float32 vector of size A in [-1, 1].

    Raises:
        FileExistsError: ``path`` exists already.
        ValueError: ``<path>.partial`` belongs to a collection with other settings.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        environment: dict[str, Any],
        family: str,
        observation_size: int,
        action_size: int,
        horizon: int,
        task_seed: int,
        task_parameters: Any,
        splits: Mapping[str, tuple[Any, Any]],
        stages: list[str],
        provenance: dict[str, Any],
        observation_space: dict[str, Any] | None = None,
        action_space: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.partial = Path(f"{path}.partial")
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists already; pass another path or remove it.")
        parameters = np.asarray(task_parameters, dtype=np.float64)
        if parameters.ndim != 2 or not np.isfinite(parameters).all():
            raise ValueError(
                f"task_parameters: expected finite numbers [tasks, parameters], found shape "
                f"{parameters.shape}. Give every task the same number of parameters."
            )
        space = observation_space or box([observation_size], "float32", None, None)
        self._header: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION if are_images(space) else 1,
            "environment": environment,
            "family": family,
            "observation_space": space,
            "action_space": action_space or box([action_size], "float32", -1.0, 1.0),
            "horizon": horizon,
            "task_seed": task_seed,
            "task_parameters": parameters.tolist(),
            "splits": {
                name: {"train": [int(t) for t in train], "test": [int(t) for t in test]}
                for name, (train, test) in splits.items()
            },
            "stages": list(stages),
        }
        self._provenance = provenance
        with explain_os_errors(self.partial):
            (self.partial / "parts").mkdir(parents=True, exist_ok=True)
            settings = {key: provenance[key] for key in ("seed", "config") if key in provenance}
            check_same_collection(self.partial, self._header | {"settings": settings})

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self._header["task_parameters"])

    @property
    def stages(self) -> list[str]:
        """Names of the behaviour stages, poor to expert."""
        return list(self._header["stages"])

    def has_task(self, task: int) -> bool:
        """Return whether this task's part is complete (a damaged one counts as missing)."""
        part, receipt = self._part(task)
        if not (part.is_file() and receipt.is_file()):
            return False
        found: dict[str, Any] = json.loads(receipt.read_text())
        return "blocks" in found and file_checksum(part) == found["checksum"]

    def write_task(
        self,
        task: int,
        transitions: "Mapping[str, NDArray[Any] | Tensor]",
        *,
        stage: Any,
        length: Any,
        final_observation: Any = None,
    ) -> None:
        """Write all episodes of one task; it is there completely or not at all.

        Args:
            task: index of the task.
            transitions: see ``TaskBlock``; ``stage``, ``length`` and ``final_observation`` too.
            stage: index of the behaviour stage of each episode, [E].
            length: steps of each episode, [E]; they sum to N.
            final_observation: of image data, [E, C, h, w] uint8.

        Raises:
            ValueError: names the array and what is wrong with it.
            OSError: the disk is full, or the folder cannot be written.
        """
        self.write_blocks(task, [TaskBlock(transitions, stage, length, final_observation)])

    def write_blocks(self, task: int, blocks: Iterable[TaskBlock]) -> None:
        """Write one task block by block; it is there completely or not at all.

        One block is in memory at a time.

        Args:
            task: index of the task.
            blocks: its episodes, in the order of collection.

        Raises:
            ValueError: names the array and what is wrong with it.
            OSError: the disk is full, or the folder cannot be written.
        """
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"Unknown task {task}: expected 0 to {self.num_tasks - 1}.")
        part, receipt = self._part(task)
        count = rows = 0
        with explain_os_errors(self.partial):
            with replacing(part) as file, zipfile.ZipFile(file, "w") as archive:
                for block in blocks:
                    arrays = checked_block(task, block, self._manifest([], []), rows)
                    for key, array in arrays.items():
                        name = f"{count}/{key}.npy"
                        with archive.open(name, "w", force_zip64=True) as member:
                            np.lib.format.write_array(member, array, allow_pickle=False)
                    count += 1
                    rows += int(np.sum(block.length))
                if not count:
                    raise ValueError(f"Task {task}: expected at least one episode, found none.")
            with replacing(receipt) as file:
                text = json.dumps({"checksum": file_checksum(part), "blocks": count})
                file.write(text.encode())

    def read(self, task: int, key: str) -> NDArray[Any]:
        """Return one array of a task that has been written, as a whole.

        Args:
            task: index of the task.
            key: of its transitions, ``stage``, ``length`` or ``final_observation``.
        """
        return np.concatenate(list(self._load(task, key)))

    def commit(self, reference_returns: dict[str, Any]) -> Path:
        """Join the parts of all tasks, give the dataset its name, and return its path.

        Args:
            reference_returns: "random", "best_behaviour", "standing_still" -> mean return of each
                task [T]; "stages" -> {stage name: [T]}. Without the first two, results cannot be
                normalised.

        Raises:
            RuntimeError: a task is missing.
            ValueError: a reference return is missing for a task or is not finite.
            OSError: the disk is full, or the folder cannot be written.
        """
        missing = [task for task in range(self.num_tasks) if not self.has_task(task)]
        if missing:
            raise RuntimeError(f"Tasks {missing} of {self.path} are missing; write them first.")
        tasks = range(self.num_tasks)
        lengths = [self.read(task, "length") for task in tasks]
        counts = [len(part) for part in lengths]
        every_length = np.concatenate(lengths)
        episodes = {
            "task": np.repeat(np.arange(self.num_tasks), counts),
            "stage": np.concatenate([self.read(task, "stage") for task in tasks]),
            "start": np.cumsum(every_length) - every_length,
            "length": every_length,
        }

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
        reference_returns: dict[str, Any],
        num_episodes: list[int],
        num_transitions: list[int],
        write: Callable[[Path, str, list[int], str], ArrayEntry],
    ) -> Path:
        """Write the final arrays and the manifest, give the dataset its name, return its path.

        Args:
            reference_returns: see ``commit``.
            num_episodes: of each task, [T].
            num_transitions: of each task, [T].
            write: given the folder and an array's name, shape and dtype, writes its file.

        Raises:
            ValueError: a reference return is missing for a task or is not finite.
            OSError: the disk is full, or the folder cannot be written.
        """
        returns = plain_returns(reference_returns)
        folder = self.partial / "dataset"
        layout = expected_layout(self._manifest(num_episodes, num_transitions))
        with explain_os_errors(self.partial):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "transitions").mkdir(parents=True)
            (folder / "episodes").mkdir()
            entries = {
                name: write(folder, name, shape, dtype) for name, (shape, dtype) in layout.items()
            }
            manifest = self._manifest(num_episodes, num_transitions, entries, returns)
            text = manifest.to_json()
            Manifest.from_json(text, folder / MANIFEST_FILE)
            with replacing(folder / MANIFEST_FILE) as file:
                file.write(text.encode())
            os.rename(folder, self.path)
            sync_folder(self.path.parent)
            shutil.rmtree(self.partial, ignore_errors=True)
        return self.path

    def _manifest(
        self,
        num_episodes: list[int],
        num_transitions: list[int],
        arrays: dict[str, ArrayEntry] | None = None,
        reference_returns: dict[str, Any] | None = None,
    ) -> Manifest:
        return Manifest(
            **self._header,
            reference_returns=reference_returns or {},
            num_episodes=num_episodes,
            num_transitions=num_transitions,
            provenance=self._provenance,
            chunk_bytes=CHUNK_BYTES,
            arrays=arrays or {},
        )

    def _part(self, task: int) -> tuple[Path, Path]:
        stem = self.partial / "parts" / f"task_{task:05d}"
        return stem.with_suffix(".npz"), stem.with_suffix(".json")

    def _load(self, task: int, key: str) -> Iterator[NDArray[Any]]:
        """Yield one array of a task, block by block."""
        with zipfile.ZipFile(self._part(task)[0]) as archive:
            for name in archive.namelist():
                if name.endswith(f"/{key}.npy"):
                    with archive.open(name) as member:
                        yield np.lib.format.read_array(member, allow_pickle=False)
