"""Data in the layouts of others, written without this project's code."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.utils import create_dataset_from_buffers
from numpy.typing import NDArray

from tests.helpers import make_episodes

DISCOUNT = 0.99
LENGTHS = ([20, 7, 20, 1, 13], [20, 20, 4])
HORIZON = 20
OBSERVATION_SIZE, ACTION_SIZE = 4, 2
DESCRIPTION = "family: mine\nenvironment: {id: Mine-v0}\nhorizon: 20\n"


def forward_task(task: int, observation_size: int = OBSERVATION_SIZE) -> dict[str, NDArray[Any]]:
    """Return the transitions of a task as they should come out."""
    return make_episodes(LENGTHS[task], HORIZON, observation_size, ACTION_SIZE, seed=task)


def returns_to_go(reward: NDArray[Any], lengths: list[int]) -> NDArray[np.float64]:
    """Return discounted sums, episode by episode, from their definition."""
    result: list[float] = []
    for rewards in np.split(reward.astype(np.float64), np.cumsum(lengths)[:-1]):
        for start in range(len(rewards)):
            later = rewards[start:]
            result.append(float((later * DISCOUNT ** np.arange(len(later))).sum()))
    return np.asarray(result)


def write_macaw(folder: Path, name: str = "cheetah_vel", observation_size: int = 20) -> None:
    """Write buffers and task pickles as MACAW's data has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, lengths in enumerate(LENGTHS):
        columns = make_episodes(lengths, HORIZON, observation_size, 6, seed=task)
        mc_returns = returns_to_go(columns["reward"], lengths)
        stored: list[list[Any]] = [[] for _ in range(8)]
        stop = 0
        for length in lengths:
            start, stop = stop, stop + length
            for row in reversed(range(start, stop)):
                values = (
                    columns["observation"][row],
                    columns["action"][row],
                    [columns["reward"][row]],
                    [mc_returns[row]],
                    [columns["terminated"][row]],
                    columns["next_observation"][stop - 1],
                    [DISCOUNT ** (stop - row)],
                    columns["next_observation"][row],
                )
                for column, value in zip(stored, values, strict=True):
                    column.append(value)
        keys = ("obs", "actions", "rewards", "mc_rewards", "terminals")
        keys += ("terminal_obs", "terminal_discounts", "next_obs")
        with h5py.File(folder / f"buffers_{name}_train_{task}_sub_task_0.hdf5", "w") as file:
            for key, values in zip(keys, stored, strict=True):
                dtype = bool if key == "terminals" else np.float32
                file.create_dataset(key, data=np.asarray(values, dtype=dtype), compression="lzf")
            file.create_dataset("discount_factor", data=np.float32(DISCOUNT))
        with open(folder / f"env_{name}_train_task{task}.pkl", "wb") as stream:
            pickle.dump([{"velocity": np.float64(0.075 * (task + 1))}], stream)


def write_plain(folder: Path, suffix: str = ".npz", **extra: Any) -> None:
    """Write one file for each task, and a description."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "description.yaml").write_text(DESCRIPTION)
    for task in range(len(LENGTHS)):
        write_plain_task(folder / f"task_{task}{suffix}", forward_task(task) | extra)


def write_plain_task(file: Path, arrays: dict[str, Any]) -> None:
    """Write one file."""
    if file.suffix == ".npz":
        np.savez_compressed(file, **arrays)
        return
    with h5py.File(file, "w") as stream:
        for key, values in arrays.items():
            stream[key] = values


def write_minari(root: Path, monkeypatch: Any) -> None:
    """Let Minari itself write one dataset for each task."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    for task, lengths in enumerate(LENGTHS):
        columns = forward_task(task)
        buffers = []
        for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
            part = {key: array[stop - length : stop] for key, array in columns.items()}
            last = part["next_observation"][-1:]
            buffers.append(
                EpisodeBuffer(
                    observations=np.concatenate([part["observation"], last]),
                    actions=part["action"],
                    rewards=part["reward"],
                    terminations=part["terminated"],
                    truncations=part["truncated"],
                )
            )
        create_dataset_from_buffers(
            f"mine/task-{task}-v0",
            buffers,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,)),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (ACTION_SIZE,)),
            algorithm_name="random numbers",
            author="nobody",
            author_email="nobody@example.org",
            code_permalink="https://example.org",
            description="random numbers",
            eval_env=None,
            data_format="hdf5",
        )
