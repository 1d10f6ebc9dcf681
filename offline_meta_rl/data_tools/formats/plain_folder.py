"""A folder with one NPZ or HDF5 file for each task: the way in for anyone's own data.

The last number in a file's name is its task. Arrays are named as ours are; ``length`` and ``stage``
say where episodes end and which behaviour they come from, and may be left out.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.manifest import TRANSITION_KEYS, are_images, box
from offline_meta_rl.data_tools.description import describe
from offline_meta_rl.data_tools.formats.episodes import Rows, whole_episodes
from offline_meta_rl.data_tools.formats.rows import HDF5_SUFFIXES, RowFile
from offline_meta_rl.data_tools.source import TaskSource, fingerprint, number_tasks

SUFFIXES = (".npz", *HDF5_SUFFIXES)
NUMBERS = ("observation", "action", "reward", "next_observation")
FLAGS = ("terminated", "truncated")


class PlainFolder(TaskSource):
    """Reads such a folder.

    Args:
        folder: of the files.
        settings: of the description, see ``describe``.

    Raises:
        ValueError: a file is damaged or does not fit, a task is missing or there twice.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        names = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
        tasks = number_tasks(names, [_task_of(folder / name) for name in names], folder)
        self._files = {task: folder / name for task, name in tasks.items()}
        spaces = {file: _spaces(file) for file in self._files.values()}
        observation, action = spaces[self._files[0]]
        for file, found in spaces.items():
            if found != (observation, action):
                raise ValueError(
                    f"{file}: expected observations and actions as in the first task, "
                    f"{observation} and {action}; found {found[0]} and {found[1]}. All tasks share "
                    "their spaces."
                )
        self.description = describe(
            settings,
            where=folder,
            num_tasks=len(tasks),
            observation_space=observation,
            action_space=action,
        )
        self.origin = {"from": "folder", "files": fingerprint(folder, self._files.values())}

    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one file."""
        file = self._files[task]
        with _open(file) as rows:
            ends = _ends(rows) if "length" in rows.shapes else None
            stage = rows.values("stage") if "stage" in rows.shapes else None
            done = 0
            chunks = _chunks(rows, ends)
            horizon = self.description.horizon
            for block, length in whole_episodes(chunks, where=str(file), horizon=horizon):
                count = len(length)
                _check_stages(stage, done + count, file, finished=False)
                chosen = np.zeros(count) if stage is None else stage[done : done + count]
                yield TaskBlock(block, chosen.astype(np.int64), length)
                done += count
            _check_stages(stage, done, file, finished=True)


def _task_of(file: Path) -> int:
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise ValueError(
            f"{file}: expected the number of the task in the file's name, found none. Name the "
            "files task_0, task_1 and so on."
        )
    return int(numbers[-1])


@contextlib.contextmanager
def _open(file: Path) -> Iterator[RowFile]:
    """Open a file; check names, types and lengths before anything is read."""
    rows = RowFile.open(file)
    try:
        rows.expect(TRANSITION_KEYS)
        for key in NUMBERS:
            rows.expect_kind(key, "fiu", "numbers")
        for key in FLAGS:
            rows.expect_kind(key, "b", "bool")
        for key in ("length", "stage"):
            if key in rows.shapes:
                rows.expect_kind(key, "iu", "integers")
        rows.expect_rows(TRANSITION_KEYS)
        yield rows
    finally:
        rows.close()


def _spaces(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with _open(file) as rows:
        return _space(rows, "observation"), _space(rows, "action")


def _space(rows: RowFile, key: str) -> dict[str, Any]:
    dtype = rows.dtypes[key]
    limit = 1.0 if key == "action" else None
    name = "uint8" if dtype == np.uint8 else "float32"
    found = box(list(rows.shapes[key][1:]), name, None if limit is None else -limit, limit)
    return found | {"low": 0.0, "high": 255.0} if are_images(found) else found


def _check_stages(stage: NDArray[Any] | None, episodes: int, file: Path, *, finished: bool) -> None:
    if stage is None or len(stage) == episodes or (len(stage) > episodes and not finished):
        return
    raise ValueError(
        f"{file}: stage: expected one for each episode, found {len(stage)} stages and "
        f"{episodes}{'' if finished else ' or more'} episodes. Give each episode its stage."
    )


def _ends(rows: RowFile) -> NDArray[np.bool_]:
    length = rows.values("length").astype(np.int64)
    total = rows.shapes["reward"][0]
    if (length <= 0).any() or length.sum() != total:
        raise ValueError(
            f"{rows.file}: length: expected positive lengths that sum to {total} rows, found a sum "
            f"of {length.sum()}. Count the steps of each episode."
        )
    ends = np.zeros(total, dtype=bool)
    ends[np.cumsum(length) - 1] = True
    return ends


def _chunks(
    rows: RowFile, ends: NDArray[np.bool_] | None
) -> Iterator[tuple[Rows, NDArray[np.bool_]]]:
    start = 0
    for chunk in rows.chunks(TRANSITION_KEYS):
        count = len(chunk["reward"])
        flags = chunk["terminated"] | chunk["truncated"]
        yield chunk, flags if ends is None else ends[start : start + count]
        start += count
