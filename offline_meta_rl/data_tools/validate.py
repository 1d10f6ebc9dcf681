"""Checking a dataset: everything that is wrong with it, not only the first thing."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.progress import progress_bar
from offline_meta_rl.data.arrays import checksum
from offline_meta_rl.data.manifest import EPISODE_KEYS, MANIFEST_FILE, ArrayEntry, Manifest
from offline_meta_rl.data.source import TaskSource
from offline_meta_rl.data_tools.episode_checks import (
    DISCOUNT,
    Finding,
    check_block,
    episode_findings,
    task_findings,
)

__all__ = ["Finding", "validate", "validate_source"]


class _Array(NamedTuple):
    """One array that has the size it should have."""

    name: str
    entry: ArrayEntry
    values: NDArray[np.generic]


def validate(path: Path) -> list[Finding]:
    """Check a dataset: manifest, files, checksums, numbers, episodes, returns to go.

    Args:
        path: The dataset's folder.

    Returns:
        All that is wrong; empty for a good dataset.

    Raises:
        FileNotFoundError: There is no dataset.
    """
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"No dataset at {path}: expected a folder with {MANIFEST_FILE}. Pass the path of a "
            "complete dataset (an interrupted one ends in '.partial')."
        )
    try:
        manifest = Manifest.from_json(file.read_text(encoding="utf-8"), file)
    # A damaged manifest can break the reader anywhere; any error of it is a finding.
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return [Finding(None, MANIFEST_FILE, None, str(error))]
    findings = list(_manifest_findings(manifest))
    chunks = sum(len(entry.checksums) for entry in manifest.arrays.values())
    with progress_bar("Checking", chunks + manifest.num_tasks) as advance:
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, entry in manifest.arrays.items():
            array, found = _open(path, name, entry)
            findings += found
            if array is not None:
                findings += _chunk_findings(array, manifest, advance)
                arrays[name] = array.values
        # Episodes cannot be followed through arrays that are not whole.
        if set(arrays) != set(manifest.arrays):
            return findings
        broken = list(
            episode_findings(
                manifest, {k: arrays[f"episodes/{k}"].astype(np.int64) for k in EPISODE_KEYS}
            )
        )
        findings += broken
        # Tasks are found by the table of episodes, so it has to be right.
        if not broken:
            from offline_meta_rl.data.dataset import TaskDataset  # imports PyTorch

            dataset = TaskDataset(path, manifest)
            damaged = {finding.array for finding in findings}
            returns = None
            if "transitions/reward" not in damaged:
                returns = dataset.returns_to_go(DISCOUNT).numpy()
            for task in range(manifest.num_tasks):
                findings += task_findings(dataset, task, returns)
                advance()
    return findings


def validate_source(source: TaskSource) -> list[Finding]:
    """Read data of another format as a conversion would, without writing it.

    Returns:
        The first thing that is wrong with each task.
    """
    findings = []
    with progress_bar("Checking", source.description.num_tasks) as advance:
        for task in range(source.description.num_tasks):
            try:
                rows = 0
                for block in source.blocks(task):
                    check_block(source.description, task, block, rows)
                    rows += len(block.transitions["reward"])
            except ValueError as error:
                findings.append(Finding(task, None, None, str(error)))
            advance()
    return findings


def _manifest_findings(manifest: Manifest) -> Iterator[Finding]:
    """Yield tasks without data, and tasks that are there twice."""
    seen: dict[tuple[float, ...], int] = {}
    for task, parameters in enumerate(manifest.task_parameters):
        if not manifest.num_episodes[task]:
            yield Finding(
                task, None, None, "expected at least one episode, found none. Remove the task."
            )
        twin = seen.setdefault(tuple(parameters), task)
        if twin != task:
            yield Finding(
                task,
                "task_parameters",
                None,
                f"expected tasks that differ, found the parameters of task {twin} again. Join "
                "the two: `lightning data merge` gives tasks with the same parameters one number.",
            )


def _open(path: Path, name: str, entry: ArrayEntry) -> tuple[_Array | None, list[Finding]]:
    file = path / entry.file
    if not file.is_file():
        return None, [Finding(None, name, None, f"{file} is missing. Copy the dataset again.")]
    size = file.stat().st_size
    if size != entry.bytes or size == 0:
        row_bytes = max(1, entry.bytes // max(1, entry.shape[0]))
        return None, [
            Finding(
                None,
                name,
                size // row_bytes,
                f"{file}: expected {entry.bytes} bytes, found {size}. The file is cut short or of "
                "another dataset; copy it again.",
            )
        ]
    values = np.memmap(file, dtype=entry.dtype, mode="r", shape=tuple(entry.shape))
    return _Array(name, entry, values.view(np.ndarray)), []


def _chunk_findings(
    array: _Array, manifest: Manifest, advance: Callable[[], None]
) -> Iterator[Finding]:
    """Yield damaged chunks and, task by task, numbers that are not finite."""
    flat = array.values.reshape(-1)
    raw = flat.view(np.uint8)
    row_bytes = raw.nbytes // len(array.values)
    counts = manifest.num_episodes if array.name.startswith("episodes") else None
    stops = np.cumsum(counts or manifest.num_transitions)
    for chunk, expected in enumerate(array.entry.checksums):
        start = chunk * manifest.chunk_bytes
        content = raw[start : start + manifest.chunk_bytes]
        row = start // row_bytes
        task = int(np.searchsorted(stops, row, side="right"))
        found = checksum(content)
        if found != expected:
            last = math.ceil((start + len(content)) / row_bytes) - 1
            yield Finding(
                task,
                array.name,
                row,
                f"rows {row} to {last}: expected checksum {expected}, found {found}. The file was "
                "changed or damaged; copy it again.",
            )
        numbers = content.view(flat.dtype)
        bad = np.flatnonzero(~np.isfinite(numbers))
        rows = (start // flat.itemsize + bad) // (row_bytes // flat.itemsize)
        for task in np.unique(np.searchsorted(stops, rows, side="right")):
            own = rows[np.searchsorted(stops, rows, side="right") == task]
            yield Finding(
                int(task),
                array.name,
                int(own[0]),
                f"expected finite numbers, found NaN or infinity in {len(np.unique(own))} rows. "
                "Drop the episodes they belong to.",
            )
        advance()
