"""Reading Minari datasets, one for each task, whoever wrote them."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offline_meta_rl.common.extras import require
from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.manifest import TRANSITION_KEYS, box
from offline_meta_rl.data_tools.description import describe
from offline_meta_rl.data_tools.source import (
    Description,
    TaskSource,
    fingerprint,
    number_tasks,
    rows_per_block,
)

METADATA_KEY = "offline_meta_rl"
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, AssertionError, EOFError)


class MinariFolder(TaskSource):
    """Reads a folder of Minari datasets, however deep they lie in it.

    The last number in a dataset's name, before its version, is its task; a dataset that this
    project wrote knows its task itself.

    Args:
        folder: of the datasets, for instance Minari's own.
        settings: of the description, see ``describe``; not needed for datasets written here.

    Raises:
        ValueError: a dataset is damaged or does not fit, a task is missing or there twice.
        ImportError: Minari is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._minari = require("minari")
        files = sorted(folder.rglob("metadata.json"))
        metadata = [_metadata(file, self._minari) for file in files]
        numbers = [_task_of(entry, file) for entry, file in zip(metadata, files, strict=True)]
        names = [str(file.parent.relative_to(folder)) for file in files]
        tasks = number_tasks(names, numbers, folder)
        self._folders = {task: folder / name for task, name in tasks.items()}
        self._storages = {task: self._read(path) for task, path in self._folders.items()}
        own = [entry.get(METADATA_KEY) for entry in metadata]
        if all(own):
            self.description = _own_description(own, folder, len(tasks))
        else:
            self.description = self._describe(settings, folder)
        data = [
            f for path in self._folders.values() for f in sorted(path.rglob("*")) if f.is_file()
        ]
        self.origin = {"from": "minari", "files": fingerprint(folder, data)}

    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one Minari dataset."""
        storage = self._storages[task]
        where = self._folders[task]
        pending: list[dict[str, Any]] = []
        stages: list[int] = []
        size = 0
        limit = rows_per_block(1)
        every = range(storage.total_episodes)
        found, about = storage.get_episodes(every), storage.get_episode_metadata(every)
        for index in every:
            with _explained(where, f"episode {index}: "):
                columns, metadata = next(found), next(about)
            episode, stage = self._episode(columns, metadata, index, where)
            pending.append(episode)
            stages.append(stage)
            size += sum(array.nbytes for array in episode.values())
            if size >= limit:
                yield _join(pending, stages)
                pending, stages, size = [], [], 0
        if pending:
            yield _join(pending, stages)

    def _read(self, path: Path) -> Any:
        """Open one dataset without reading its episodes."""
        storage_class = require("minari.dataset.minari_storage").MinariStorage
        with _explained(path):
            storage = storage_class.read(path)
        if not storage.total_episodes:
            raise ValueError(f"{path}: expected episodes, found an empty task. Remove it.")
        return storage

    def _episode(
        self, found: dict[str, Any], about: dict[str, Any], index: int, where: Path
    ) -> tuple[dict[str, Any], int]:
        """Return the transitions of one episode and its stage."""
        observations, steps = found["observations"], len(found["rewards"])
        keys = ("actions", "rewards", "terminations", "truncations")
        lengths = {key: len(found[key]) for key in keys}
        if not steps or set(lengths.values()) != {steps} or len(observations) != steps + 1:
            raise ValueError(
                f"{where}: episode {index}: expected equally many {', '.join(keys)} and one "
                f"observation more, found {lengths} and {len(observations)} observations. Write "
                "the dataset again."
            )
        for key, kinds in (("rewards", "fiu"), ("terminations", "b"), ("truncations", "b")):
            if found[key].dtype.kind not in kinds:
                raise ValueError(
                    f"{where}: episode {index}: {key}: expected "
                    f"{'bool' if kinds == 'b' else 'numbers'}, found {found[key].dtype}. "
                    "Convert it."
                )
        truncated = np.array(found["truncations"])
        truncated[-1] |= not found["terminations"][-1]
        name = about.get("stage", self.description.stages[0])
        if name not in self.description.stages:
            raise ValueError(
                f"{where}: episode {index}: expected a stage out of {self.description.stages}, "
                f"found {name!r}. Name it in the description (stages: [...])."
            )
        values = (
            observations[:-1],
            found["actions"],
            found["rewards"],
            observations[1:],
            found["terminations"],
            truncated,
        )
        return dict(zip(TRANSITION_KEYS, values, strict=True)), self.description.stages.index(name)

    def _describe(self, settings: Mapping[str, Any], folder: Path) -> Description:
        spaces: dict[str, dict[str, Any]] = {}
        for task, storage in self._storages.items():
            found = {
                "observation_space": _box(storage.observation_space, self._folders[task]),
                "action_space": _box(storage.action_space, self._folders[task]),
            }
            if spaces and found != spaces:
                raise ValueError(
                    f"{self._folders[task]}: expected the spaces of the other tasks, {spaces}; "
                    f"found {found}. All tasks share their spaces."
                )
            spaces = found
        return describe(
            settings,
            where=folder,
            num_tasks=len(self._storages),
            observation_space=spaces["observation_space"],
            action_space=spaces["action_space"],
        )


def _box(space: Any, where: Path) -> dict[str, Any]:
    """Return the manifest's entry of a gymnasium space; floating-point numbers become float32."""
    if type(space).__name__ != "Box":
        raise ValueError(f"{where}: expected a Box space, found {space}. Flatten it to one vector.")
    dtype = "float32" if space.dtype.kind == "f" else str(space.dtype)
    low, high = (
        float(side.flat[0]) if np.isfinite(side).all() and (side == side.flat[0]).all() else None
        for side in (space.low, space.high)
    )
    return box(list(space.shape), dtype, low, high)


def _metadata(file: Path, minari: Any) -> dict[str, Any]:
    """Return the metadata of a dataset of a version that can be read."""
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        version = metadata["minari_version"]
        int(metadata["total_episodes"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected the metadata of a Minari dataset, found {type(error).__name__}: "
            f"{error}. It is cut short or of another format; copy the dataset again."
        ) from error
    if version not in minari.supported_dataset_versions:
        raise ValueError(
            f"{file}: expected a dataset of Minari {min(minari.supported_dataset_versions)} to "
            f"{minari.__version__}, found {version}. Install the Minari that wrote it."
        )
    result: dict[str, Any] = metadata
    return result


def _task_of(metadata: dict[str, Any], file: Path) -> int:
    if METADATA_KEY in metadata:
        return int(metadata[METADATA_KEY]["task"])
    name = re.sub(r"-v\d+$", "", str(metadata.get("dataset_id", "")))
    numbers = re.findall(r"\d+", name)
    if not numbers:
        raise ValueError(
            f"{file}: expected the number of the task in the dataset's name, found {name!r}. Name "
            "the datasets task-0-v0, task-1-v0 and so on."
        )
    return int(numbers[-1])


def _own_description(own: list[Any], folder: Path, found: int) -> Description:
    """Return the description that every dataset of this project's holds."""
    descriptions = [entry["description"] for entry in own]
    if any(entry != descriptions[0] for entry in descriptions):
        raise ValueError(f"{folder}: expected the tasks of one dataset, found those of several.")
    description = Description(**descriptions[0])
    if description.num_tasks != found:
        raise ValueError(
            f"{folder}: expected {description.num_tasks} tasks, found {found}. Copy the others."
        )
    return description


def _join(episodes: list[dict[str, Any]], stages: list[int]) -> TaskBlock:
    columns = {key: np.concatenate([e[key] for e in episodes]) for key in TRANSITION_KEYS}
    return TaskBlock(columns, stages, [len(episode["reward"]) for episode in episodes])


@contextlib.contextmanager
def _explained(where: Path, part: str = "") -> Iterator[None]:
    """Say which dataset cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(
            f"{where}: {part}expected a whole Minari dataset, found one that cannot be read "
            f"({type(error).__name__}: {error}). It is cut short or a key is missing; copy it "
            "again."
        ) from error
