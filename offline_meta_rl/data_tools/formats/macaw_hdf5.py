"""The HDF5 layout of the data published with MACAW.

One file for each task, ``buffers_<environment>_train_<task>_sub_task_0.hdf5``. Every episode is
stored backwards in time; its returns to go (``mc_rewards``), last observation and the discount from
a row to its end are stored with each row. Only a fall sets ``terminals``: where an episode ends
otherwise is seen from the discounts, which shrink by one factor per row and start anew.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offline_meta_rl.data.blocks import Columns, TaskBlock, broken_rows, last_steps
from offline_meta_rl.data.description import box
from offline_meta_rl.data.source import TaskSource
from offline_meta_rl.data_tools.describe import DescriptionFile, describe
from offline_meta_rl.data_tools.formats.episodes import reversed_episodes, whole_episodes
from offline_meta_rl.data_tools.formats.files import fingerprint, number_tasks
from offline_meta_rl.data_tools.formats.restricted_pickle import load_plain
from offline_meta_rl.data_tools.formats.rows import RowFile
from offline_meta_rl.data_tools.returns import backward_returns, disagreement

BUFFER_NAME = re.compile(r"buffers_(?P<environment>.+)_train_(?P<task>\d+)_sub_task_0\.hdf5")
FAMILY_OF = {"walker_param": "walker_params"}
STAGE = "lifetime"
NUMBERS = ("obs", "actions", "rewards", "mc_rewards", "terminal_discounts", "next_obs")
KEYS = (*NUMBERS, "terminals")
PARAMETERS = (
    ("direction",),
    ("velocity",),
    ("goal",),
    ("body_mass", "body_inertia", "geom_friction", "dof_damping"),
)
LARGEST_EXPONENT = 3.0


class MacawFolder(TaskSource):
    """Reads such a folder.

    Args:
        folder: Folder of the files.
        settings: Settings of the description, see ``describe``; the file names tell the family.
        stride: Keep every k-th episode.
        pickles: Folder of the task pickles, which hold the task parameters; None for none.

    Raises:
        ValueError: A file is damaged or does not fit, a task is missing or there twice.
    """

    def __init__(
        self,
        folder: Path,
        settings: DescriptionFile,
        *,
        stride: int = 1,
        pickles: Path | None = None,
    ) -> None:
        if stride < 1:
            raise ValueError(f"Stride: expected at least 1, found {stride}.")
        self._stride = stride
        matches = [match for f in sorted(folder.iterdir()) if (match := BUFFER_NAME.match(f.name))]
        names = [match.string for match in matches]
        tasks = number_tasks(names, [int(match["task"]) for match in matches], folder)
        environments = sorted({match["environment"] for match in matches})
        if len(environments) > 1:
            raise ValueError(f"{folder}: expected files of one environment, found {environments}.")
        environment = environments[0]
        self._files = {task: folder / name for task, name in tasks.items()}
        sizes = {file: _sizes(file) for file in self._files.values()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"{folder}: expected the same observation and action sizes in every task, found "
                f"{ {file.name: size for file, size in sizes.items()} }."
            )
        observation_size, action_size = next(iter(sizes.values()))
        known: DescriptionFile = {"family": FAMILY_OF.get(environment, environment)}
        settings = known | settings
        sources = list(self._files.values())
        if pickles is not None and "task_parameters" not in settings:
            files = [pickles / f"env_{environment}_train_task{task}.pkl" for task in tasks]
            settings["task_parameters"] = [_task_parameters(file) for file in files]
        self.description = describe(
            settings,
            where=folder,
            num_tasks=len(tasks),
            observation_space=box([observation_size]),
            action_space=box([action_size], low=-1.0, high=1.0),
            default_stage=STAGE,
        )
        content = fingerprint(folder, sources)
        self.origin = {"config": {"from": "macaw", "files": content, "stride": stride}}

    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one file in time order, every k-th of them."""
        file = self._files[task]
        with _open(file) as rows:
            discount = float(rows.values("discount_factor")[0])
            episodes = read = 0
            chunks = _stored_episodes(rows, discount)
            horizon = self.description.horizon
            for block, length in whole_episodes(chunks, where=str(file), horizon=horizon):
                transitions = _forwards(block, length, discount, f"{file}", read)
                read += int(length.sum())
                # Every k-th episode thins a lifetime evenly, from its first to its last.
                kept = (np.arange(episodes, episodes + len(length)) % self._stride) == 0
                episodes += len(length)
                if kept.any():
                    chosen = np.repeat(kept, length)
                    yield TaskBlock(
                        {key: array[chosen] for key, array in transitions.items()},
                        np.zeros(int(kept.sum()), dtype=np.int64),
                        length[kept],
                    )


@contextlib.contextmanager
def _open(file: Path) -> Iterator[RowFile]:
    """Open a file; check names, types and lengths before anything is read."""
    rows = RowFile.open(file)
    try:
        rows.expect((*KEYS, "discount_factor"))
        for key in NUMBERS:
            rows.expect_kind(key, "f", "floating-point numbers")
        rows.expect_kind("terminals", "b", "bool")
        rows.expect_rows(KEYS)
        yield rows
    finally:
        rows.close()


def _sizes(file: Path) -> tuple[int, int]:
    with _open(file) as rows:
        return int(np.prod(rows.shapes["obs"][1:])), int(np.prod(rows.shapes["actions"][1:]))


def _stored_episodes(rows: RowFile, discount: float) -> Iterator[tuple[Columns, NDArray[np.bool_]]]:
    """Yield rows as stored, and whether the next stored row belongs to another episode."""
    held: Columns | None = None
    for chunk in rows.chunks(KEYS):
        joined = (
            chunk
            if held is None
            else {key: np.concatenate([held[key], chunk[key]]) for key in KEYS}
        )
        first = _is_last_step(joined, discount)
        # Whether a row ends its episode is seen from the row after, so one row waits.
        held = {key: array[-1:] for key, array in joined.items()}
        if len(first) > 1:
            yield {key: array[:-1] for key, array in joined.items()}, first[1:]
    if held is not None:
        yield held, np.ones(1, dtype=bool)


def _is_last_step(rows: Columns, discount: float) -> NDArray[np.bool_]:
    """Return whether each row is the last step of an episode: the first of it that is stored."""
    to_end = rows["terminal_discounts"].reshape(-1).astype(np.float64)
    first = np.ones(len(to_end), dtype=bool)
    if discount < 1.0:
        # Stored backwards, each row is one step further from the end.
        expected = discount * to_end[:-1]
        first[1:] = np.abs(to_end[1:] - expected) > 1e-3 * to_end[:-1]
    else:
        # Without discounting all are 1; then rows that do not follow each other tell.
        first[1:] = (rows["next_obs"][1:] != rows["obs"][:-1]).any(axis=1)
    return first | rows["terminals"].reshape(-1)


def _forwards(
    rows: Columns, length: NDArray[np.int64], discount: float, where: str, read: int
) -> Columns:
    """Turn episodes around and check that they are what they say."""
    stored = reversed_episodes(length)
    rows = {key: array[stored] for key, array in rows.items()}
    end = last_steps(length)
    reward, returns = (
        rows[key].reshape(-1).astype(np.float64) for key in ("rewards", "mc_rewards")
    )
    terminated = rows["terminals"].reshape(-1).astype(bool)
    broken = broken_rows(rows["obs"], rows["next_obs"], end)
    if len(broken):
        raise ValueError(
            f"{where}: row {read + stored[broken[0]]}: next_obs: expected the observation that "
            "follows in time, found another. The rows of an episode are mixed up; copy the file "
            "again."
        )
    wrong = disagreement(returns, backward_returns(reward, end, discount))
    if len(wrong):
        raise ValueError(
            f"{where}: row {read + stored[wrong[0]]}: mc_rewards: expected the discounted sum of "
            "the rewards that follow in the episode, found another. Rewards, discount or ends are "
            "damaged; copy the file again."
        )
    return {
        "observation": rows["obs"].reshape(len(stored), -1),
        "action": rows["actions"].reshape(len(stored), -1),
        "reward": rows["rewards"].reshape(-1),
        "next_observation": rows["next_obs"].reshape(len(stored), -1),
        "terminated": terminated,
        "truncated": end & ~terminated,
    }


def _task_parameters(file: Path) -> list[float]:
    """Return the numbers of one task pickle: a list with one dict."""
    if not file.is_file():
        raise FileNotFoundError(f"No task pickle at {file}; expected one for each task.")
    content = load_plain(file)
    task = content[0] if isinstance(content, list) and len(content) == 1 else content
    names = next((n for n in PARAMETERS if isinstance(task, dict) and set(n) <= set(task)), None)
    if names is None or not isinstance(task, dict):
        raise ValueError(
            f"{file}: expected a list with one dict with the keys "
            f"{' or '.join(' '.join(names) for names in PARAMETERS)}, found {content!r:.80}. List "
            "the task parameters in a description file instead."
        )
    if len(names) > 1:
        return _walker_exponents(task, file)
    return [float(value) for value in np.asarray(task[names[0]]).reshape(-1)]


def _walker_exponents(task: Mapping[str, ArrayLike], file: Path) -> list[float]:
    """Return which powers of each nominal body parameter give the values of a task."""
    from offline_meta_rl.envs.locomotion.families import WalkerParams

    model = WalkerParams().base_model()
    exponents: list[float] = []
    for name, (array, base) in WalkerParams.scaled_arrays(model).items():
        nominal = np.asarray(array, dtype=np.float64).reshape(-1)
        found = np.asarray(task[name], dtype=np.float64).reshape(-1)
        # A parameter that is 0 stays 0 whatever its power, so it says nothing: power 0.
        ratio = np.ones(len(nominal))
        scaled = nominal != 0.0
        if len(found) == len(nominal):
            ratio[scaled] = found[scaled] / nominal[scaled]
        with np.errstate(invalid="ignore", divide="ignore"):
            exponent = np.log(ratio) / np.log(base)
        if len(found) != len(nominal) or not (np.abs(exponent) <= LARGEST_EXPONENT + 1e-3).all():
            raise ValueError(
                f"{file}: {name}: expected {len(nominal)} values between {base}^-3 and {base}^3 "
                "times the nominal ones, found others: this is another walker. List the task "
                "parameters in a description file instead."
            )
        exponents += exponent.tolist()
    return exponents
