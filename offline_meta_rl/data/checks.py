"""Checks of what is about to be written into a dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import replacing


def check_task(
    task: int,
    arrays: dict[str, NDArray[Any]],
    stage: NDArray[np.int64],
    length: NDArray[np.int64],
    row_shapes: dict[str, tuple[int, ...]],
    num_stages: int,
    first_row: int = 0,
) -> None:
    """Check that the episodes of one task fit the dataset and each other.

    Args:
        task: named in errors.
        arrays: transitions, each [N, ...].
        stage: index of the behaviour stage of each episode, [E].
        length: steps of each episode, [E].
        row_shapes: array name -> shape of one row.
        num_stages: number of stages of the dataset.
        first_row: row of the task that the arrays begin with; for errors.

    Raises:
        ValueError: names the array, what was expected of it and what it is.
    """
    rows = int(length.sum())
    for key, array in arrays.items():
        shape = (rows, *row_shapes[key])
        if array.shape != shape:
            raise ValueError(
                f"Task {task}: {key}: expected shape {shape}, found {array.shape}. Episode "
                "lengths must sum to the number of transitions, sizes must fit the spaces."
            )
        if not np.isfinite(array).all():
            row = first_row + int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(
                f"Task {task}: {key}: expected finite numbers, found NaN or infinity in row "
                f"{row}. Drop the episode it belongs to."
            )
    if len(length) == 0 or (length <= 0).any() or stage.shape != length.shape:
        raise ValueError(
            f"Task {task}: expected at least one episode, positive lengths and one stage for "
            f"each; found {len(length)} lengths and {len(stage)} stages."
        )
    if not ((stage >= 0) & (stage < num_stages)).all():
        raise ValueError(
            f"Task {task}: stage: expected 0 to {num_stages - 1}, found "
            f"{stage.min()} to {stage.max()}. List every stage in stages=."
        )
    ended = arrays["terminated"].astype(bool) | arrays["truncated"].astype(bool)
    expected = np.zeros(rows, dtype=bool)
    expected[np.cumsum(length) - 1] = True
    if not np.array_equal(ended, expected):
        row = first_row + int(np.argmax(ended != expected))
        raise ValueError(
            f"Task {task}: row {row}: expected terminated or truncated exactly on the last step "
            "of every episode. Check length=, or mark the last step of a cut episode truncated."
        )


def broken_rows(
    observation: NDArray[Any], next_observation: NDArray[Any], end: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the rows whose next observation is not the observation of the row that follows."""
    differ = next_observation[:-1] != observation[1:]
    return np.flatnonzero(differ.any(axis=tuple(range(1, differ.ndim))) & ~end[:-1])


def check_same_collection(partial: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix the parts of two collections; keep the settings of the first.

    Args:
        partial: folder of the unfinished collection.
        settings: all that decides what is collected, in plain JSON types.

    Raises:
        ValueError: names the settings that differ.
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


def plain_returns(returns: dict[str, Any]) -> dict[str, Any]:
    """Turn reference returns into lists.

    Args:
        returns: name -> mean return of each task [T], or -> {name: [T]}.

    Raises:
        ValueError: one is not finite or not a vector.
    """
    result: dict[str, Any] = {}
    for name, values in returns.items():
        if isinstance(values, dict):
            result[name] = plain_returns(values)
            continue
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(
                f"reference_returns: {name!r}: expected one finite number for each task, found "
                f"{array.tolist()}. Measure it on every task."
            )
        result[name] = array.tolist()
    return result
