"""Writing Minari datasets: one for each task.

Minari stores L + 1 observations for an episode of L steps, so the next observations are not written
twice. What Minari has no place for (stages, task parameters, splits) goes into its metadata under
the key ``offline_meta_rl``, so that a dataset comes back as it was.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.extras import require
from offline_meta_rl.common.files import (
    explain_os_errors,
    path_lock,
    replacing,
    reserve,
    sync_folder,
)
from offline_meta_rl.common.progress import progress_bar
from offline_meta_rl.data.blocks import Columns, TaskBlock, broken_rows, last_steps
from offline_meta_rl.data.description import Space
from offline_meta_rl.data.source import TaskSource, local_target
from offline_meta_rl.data.writer import check_same_collection
from offline_meta_rl.data_tools.formats.minari_read import METADATA_KEY

if TYPE_CHECKING:
    from gymnasium import spaces

EPISODE_BYTES = 2**15  # that HDF5 needs for an episode beside its numbers, at most


def write_minari(source: TaskSource, target: str | Path) -> Path:
    """Write one Minari dataset for each task below a folder; go on where a call was interrupted.

    ``MINARI_DATASETS_PATH=<target>`` makes Minari find them as ``<family>/task-<number>-v0``.

    Args:
        source: Where the tasks come from.
        target: Folder to write; must not exist.

    Raises:
        FileExistsError: The folder exists.
        ValueError: An episode cannot be stored by Minari, or an interrupted conversion of another
            dataset is in the way.
        OSError: The disk is full; finished tasks are kept.
    """
    minari = require("minari")
    path = local_target(target).absolute()  # Minari misreads relative ones
    partial = Path(f"{path}.partial")
    namespace = re.sub(r"[^-\w]", "_", source.description.family)
    with path_lock(path):
        if path.exists():
            raise FileExistsError(f"{path} exists already; pass another path or remove it.")
        with explain_os_errors(partial):
            finished = partial / "datasets"
            (finished / namespace).mkdir(parents=True, exist_ok=True)
            settings = {"settings": source.origin} | asdict(source.description)
            check_same_collection(partial, settings)
            with replacing(finished / namespace / "namespace_metadata.json") as file:
                file.write(b"{}")
            with progress_bar("Writing Minari datasets", source.description.num_tasks) as advance:
                for task in range(source.description.num_tasks):
                    name = f"task-{task:05d}-v0"
                    if not (finished / namespace / name).exists():
                        _write_task(source, task, f"{namespace}/{name}", partial / "task", minari)
                        os.rename(partial / "task", finished / namespace / name)
                        sync_folder(finished / namespace)
                    advance()
            os.rename(finished, path)
            sync_folder(path.parent)
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _write_task(
    source: TaskSource, task: int, dataset_id: str, folder: Path, minari: ModuleType
) -> None:
    """Write one Minari dataset, then force it to the disk."""
    storage_class = require("minari.dataset.minari_storage").MinariStorage
    about = source.description
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    storage = storage_class.new(
        folder / "data",
        observation_space=_space(about.observation_space),
        action_space=_space(about.action_space),
        data_format="hdf5",
        jpeg_encoding=False,
    )
    own = {"task": task, "description": asdict(about)}
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "description": f"Task {task} of {about.family}, parameters "
            f"{about.task_parameters[task]}",
            METADATA_KEY: own,
        }
    )
    stages: list[dict[str, str]] = []
    # Stages are noted while the episodes pass by, so they are complete after this line.
    storage.update_episodes(_buffers(source, task, folder, stages))
    storage.update_episode_metadata(stages)
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())


def _check_room(folder: Path, block: TaskBlock) -> None:
    """Check that a block fits on the disk: HDF5 crashes when it does not.

    Raises:
        OSError: It does not.
    """
    size = sum(np.asarray(array).nbytes for array in block.transitions.values())
    file = folder / "reserve"
    try:
        with open(file, "wb") as stream:
            # Twice, to be safe: HDF5 takes more room than the numbers do.
            reserve(stream, 2 * size + EPISODE_BYTES * len(block.length))
    finally:
        file.unlink(missing_ok=True)


def _buffers(
    source: TaskSource, task: int, folder: Path, stages: list[dict[str, str]]
) -> Iterator[object]:
    """Yield Minari's episodes, noting the stage of each."""
    episode_class = require("minari.data_collector.episode_buffer").EpisodeBuffer
    for block in source.blocks(task):
        _check_room(folder, block)
        arrays = {key: np.asarray(array) for key, array in block.transitions.items()}
        length = np.asarray(block.length, dtype=np.int64)
        stop = np.cumsum(length)
        if block.final_observation is None:
            final = _final_observations(task, arrays, length)
        else:
            final = np.asarray(block.final_observation)
        for index, (last, stage) in enumerate(zip(stop, block.stage, strict=True)):
            first = last - length[index]
            part = {key: array[first:last] for key, array in arrays.items()}
            stages.append({"stage": source.description.stages[int(stage)]})
            yield episode_class(
                observations=np.concatenate([part["observation"], final[index : index + 1]]),
                actions=part["action"],
                rewards=part["reward"],
                terminations=part["terminated"],
                truncations=part["truncated"],
            )


def _final_observations(
    task: int, arrays: Columns, length: NDArray[np.int64]
) -> NDArray[np.generic]:
    """Return the last next observation of each episode, once the others are known to be there."""
    end = last_steps(length)
    if len(broken_rows(arrays["observation"], arrays["next_observation"], end)):
        raise ValueError(
            f"Task {task}: next_observation: expected the observation of the following row "
            "within every episode, found others, which Minari cannot store. `lightning data "
            "validate` names the rows."
        )
    return arrays["next_observation"][end]


def _space(entry: Space) -> "spaces.Box":
    """Return the gymnasium space of a manifest's entry."""
    from gymnasium import spaces

    integer = np.issubdtype(np.dtype(entry["dtype"]), np.integer)
    limits = np.iinfo(entry["dtype"]) if integer else None
    low = entry["low"] if entry["low"] is not None else (limits.min if limits else -np.inf)
    high = entry["high"] if entry["high"] is not None else (limits.max if limits else np.inf)
    return spaces.Box(low, high, shape=tuple(entry["shape"]), dtype=np.dtype(entry["dtype"]).type)
