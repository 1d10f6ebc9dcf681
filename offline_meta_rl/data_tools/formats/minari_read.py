"""Reading Minari datasets, one for each task, whoever wrote them."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, Protocol, TypedDict, cast

import numpy as np

from offline_meta_rl.common.extras import require
from offline_meta_rl.data.blocks import Columns, TaskBlock
from offline_meta_rl.data.description import TRANSITION_KEYS, Description, Space, box
from offline_meta_rl.data.source import TaskSource
from offline_meta_rl.data_tools.describe import DescriptionFile, describe
from offline_meta_rl.data_tools.formats.files import (
    fingerprint,
    number_tasks,
    rows_per_block,
    shared_spaces,
)

if TYPE_CHECKING:
    from gymnasium import spaces

METADATA_KEY: Final = "offline_meta_rl"
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError, AssertionError, EOFError)


class OwnMetadata(TypedDict):
    """What this project adds to the metadata of a Minari dataset that it writes."""

    task: int
    description: dict[str, object]


class Metadata(TypedDict, total=False):
    """What is read of a Minari dataset's metadata."""

    dataset_id: str
    offline_meta_rl: OwnMetadata


class MinariStorage(Protocol):
    """What is used of Minari's ``MinariStorage``, which has no types of its own."""

    total_episodes: int
    observation_space: "spaces.Space"
    action_space: "spaces.Space"

    def get_episodes(self, episode_indices: Iterable[int]) -> Iterator[Columns]:
        """Yield the arrays of episodes."""

    def get_episode_metadata(
        self, episode_indices: Iterable[int]
    ) -> Iterator[Mapping[str, object]]:
        """Yield what is noted of episodes."""


class MinariFolder(TaskSource):
    """Reads a folder of Minari datasets, however deep they lie in it.

    The last number in a dataset's name, before its version, is its task; a dataset that this
    project wrote knows its task itself.

    Args:
        folder: Folder of the datasets, for instance Minari's own.
        settings: Settings of the description, see ``describe``; datasets written here need none.

    Raises:
        ValueError: A dataset is damaged or does not fit, a task is missing or there twice.
        ImportError: Minari is not installed.
    """

    def __init__(self, folder: Path, settings: DescriptionFile) -> None:
        self._minari = require("minari")
        files = sorted(folder.rglob("metadata.json"))
        metadata = [_metadata(file, self._minari) for file in files]
        numbers = [_task_of(entry, file) for entry, file in zip(metadata, files, strict=True)]
        names = [str(file.parent.relative_to(folder)) for file in files]
        tasks = number_tasks(names, numbers, folder)
        self._folders = {task: folder / name for task, name in tasks.items()}
        self._storages = {task: self._read(path) for task, path in self._folders.items()}
        # Only a folder that this project wrote as a whole describes itself.
        own = [entry[METADATA_KEY] for entry in metadata if METADATA_KEY in entry]
        if len(own) == len(metadata):
            self.description = _own_description(own, folder, len(tasks))
        else:
            self.description = self._describe(settings, folder)
        data = [
            f for path in self._folders.values() for f in sorted(path.rglob("*")) if f.is_file()
        ]
        self.origin = {"config": {"from": "minari", "files": fingerprint(folder, data)}}

    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one Minari dataset."""
        storage = self._storages[task]
        where = self._folders[task]
        pending: list[Columns] = []
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

    def _read(self, path: Path) -> MinariStorage:
        """Open one dataset without reading its episodes."""
        storage_class = require("minari.dataset.minari_storage").MinariStorage
        with _explained(path):
            storage: MinariStorage = storage_class.read(path)
        if not storage.total_episodes:
            raise ValueError(f"{path}: expected episodes, found an empty task. Remove it.")
        return storage

    def _episode(
        self, found: Columns, about: Mapping[str, object], index: int, where: Path
    ) -> tuple[Columns, int]:
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
        truncated = np.array(found["truncations"], dtype=bool)
        # Minari lets an episode stop without a mark; here one that is cut is truncated.
        truncated[-1] |= not found["terminations"][-1]
        name = str(about.get("stage", self.description.stages[0]))
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

    def _describe(self, settings: DescriptionFile, folder: Path) -> Description:
        found = {
            self._folders[task]: (
                _box(storage.observation_space, self._folders[task]),
                _box(storage.action_space, self._folders[task]),
            )
            for task, storage in self._storages.items()
        }
        observation, action = shared_spaces(found)
        return describe(
            settings,
            where=folder,
            num_tasks=len(found),
            observation_space=observation,
            action_space=action,
        )


def _box(space: "spaces.Space", where: Path) -> Space:
    """Return the manifest's entry of a gymnasium space; floating-point numbers become float32."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Box):
        raise ValueError(f"{where}: expected a Box space, found {space}. Flatten it to one vector.")
    dtype = "float32" if space.dtype.kind == "f" else str(space.dtype)
    low, high = (
        float(side.flat[0]) if np.isfinite(side).all() and (side == side.flat[0]).all() else None
        for side in (space.low, space.high)
    )
    return box(space.shape, dtype, low, high)


def _metadata(file: Path, minari: ModuleType) -> Metadata:
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
    return cast(Metadata, metadata)


def _task_of(metadata: Metadata, file: Path) -> int:
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


def _own_description(own: Sequence[OwnMetadata], folder: Path, found: int) -> Description:
    """Return the description that every dataset of this project's holds."""
    descriptions = [entry["description"] for entry in own]
    if any(entry != descriptions[0] for entry in descriptions):
        raise ValueError(f"{folder}: expected the tasks of one dataset, found those of several.")
    # Checked when a dataset is written from it.
    description = Description(**cast(dict, descriptions[0]))
    if description.num_tasks != found:
        raise ValueError(
            f"{folder}: expected {description.num_tasks} tasks, found {found}. Copy the others."
        )
    return description


def _join(episodes: list[Columns], stages: list[int]) -> TaskBlock:
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
