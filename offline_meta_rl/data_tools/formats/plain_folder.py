"""A folder with one NPZ or HDF5 file for each task: the way in for anyone's own data.

The last number in a file's name is its task. Arrays are named as ours are; ``length`` and ``stage``
say where episodes end and which behaviour they come from, and may be left out.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import Columns, TaskBlock, last_steps
from offline_meta_rl.data.description import TRANSITION_KEYS, Space, are_images, box
from offline_meta_rl.data.source import TaskSource
from offline_meta_rl.data_tools.describe import DescriptionFile, describe
from offline_meta_rl.data_tools.formats.episodes import whole_episodes
from offline_meta_rl.data_tools.formats.files import fingerprint, number_tasks, shared_spaces
from offline_meta_rl.data_tools.formats.rows import HDF5_SUFFIXES, RowFile

SUFFIXES = (".npz", *HDF5_SUFFIXES)
NUMBERS = ("observation", "action", "reward", "next_observation")
FLAGS = ("terminated", "truncated")


class PlainFolder(TaskSource):
    """Reads such a folder.

    Args:
        folder: Folder of the files.
        settings: Settings of the description, see ``describe``.

    Raises:
        ValueError: A file is damaged or does not fit, a task is missing or there twice.
    """

    def __init__(self, folder: Path, settings: DescriptionFile) -> None:
        names = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
        tasks = number_tasks(names, [_task_of(folder / name) for name in names], folder)
        self._files = {task: folder / name for task, name in tasks.items()}
        spaces = {file: _spaces(file) for file in self._files.values()}
        observation, action = shared_spaces(spaces)
        self.description = describe(
            settings,
            where=folder,
            num_tasks=len(tasks),
            observation_space=observation,
            action_space=action,
        )
        config = {"from": "folder", "files": fingerprint(folder, self._files.values())}
        self.origin = {"config": config}

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


def _spaces(file: Path) -> tuple[Space, Space]:
    with _open(file) as rows:
        return _space(rows, "observation"), _space(rows, "action")


def _space(rows: RowFile, key: str) -> Space:
    dtype = rows.dtypes[key]
    limit = 1.0 if key == "action" else None
    name = "uint8" if dtype == np.uint8 else "float32"
    shape = rows.shapes[key][1:]
    found = box(shape, name, None if limit is None else -limit, limit)
    return box(shape, name, 0.0, 255.0) if are_images(found) else found


def _check_stages(
    stage: NDArray[np.generic] | None, episodes: int, file: Path, *, finished: bool
) -> None:
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
    return last_steps(length)


def _chunks(
    rows: RowFile, ends: NDArray[np.bool_] | None
) -> Iterator[tuple[Columns, NDArray[np.bool_]]]:
    start = 0
    for chunk in rows.chunks(TRANSITION_KEYS):
        count = len(chunk["reward"])
        flags = chunk["terminated"].astype(bool) | chunk["truncated"].astype(bool)
        yield chunk, flags if ends is None else ends[start : start + count]
        start += count
