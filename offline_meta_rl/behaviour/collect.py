"""Collect a task dataset: roll the behaviour policy of a family out in all of its tasks.

Each task gets the same number of transitions from every stage of the behaviour policy, in whole
episodes with sampled actions, labelled by stage. Every task draws from its own generator, so an
interrupted collection goes on where it stopped and ends with the same data.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np

from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.behaviour.episodes import (
    block_of,
    collect_task,
    script_blocks,
)
from offline_meta_rl.behaviour.policy import BehaviourPolicy, load_behaviour
from offline_meta_rl.behaviour.references import reference_returns
from offline_meta_rl.behaviour.untrained import WithUntrained
from offline_meta_rl.common.progress import Bars
from offline_meta_rl.common.provenance import derived_seed
from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.description import References
from offline_meta_rl.data.source import TaskSource, write_dataset
from offline_meta_rl.data.writer import DatasetWriter, dataset_lock, dataset_root
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.scripted import ScriptedFamily

TRANSITIONS_PER_TASK = 8000
PACKAGES = ("offline_meta_rl", "torch", "numpy", "mujoco", "gymnasium")


def default_dataset_path(family: TaskFamily, collection: Collection = Collection()) -> Path:
    """Return where the dataset of a family is kept; all that changes its content is in the name.

    The folder is ``$OFFLINE_META_RL_DATA``, or ``~/.cache/offline_meta_rl/datasets``.
    """
    behaviour, (*_, quota) = _stages(family, collection)
    return dataset_root() / (
        f"{family.name}-v{family.version}-tasks{collection.task_seed}-seed{collection.seed}"
        f"-n{quota}-{behaviour.digest}"
    )


def collect(
    family: TaskFamily,
    path: str | Path,
    collection: Collection = Collection(),
    *,
    num_threads: int | None = None,
) -> Path:
    """Collect the dataset of a family, unless it is there already; resume it if interrupted.

    Args:
        family: The task family; one that ships a behaviour policy.
        path: Folder of the dataset.
        collection: Seeds, and how much of what is collected.
        num_threads: Threads of the simulator; None for one per core.

    Returns:
        The path of the finished dataset.

    Raises:
        ValueError: No behaviour policy ships with the family, or an interrupted collection with
            other settings is in the way.
        OSError: The disk is full; finished tasks are kept.
    """
    with dataset_lock(path):
        if Path(path).exists():
            return Path(path)
        source = BehaviourSource(family, collection, num_threads)
        return write_dataset(source, path, label=f"Collecting {family.name}: tasks")


class BehaviourSource(TaskSource):
    """The tasks of a family, to be collected with its behaviour policy.

    Args:
        family: The task family; one that ships a behaviour policy.
        collection: Seeds, and how much of what is collected.
        num_threads: Threads of the simulator; None for one per core.
    """

    packages = PACKAGES

    def __init__(
        self, family: TaskFamily, collection: Collection, num_threads: int | None = None
    ) -> None:
        self.family, self.collection, self.num_threads = family, collection, num_threads
        self.behaviour, self.quotas = _stages(family, collection)
        self.parameters = family.task_parameters(collection.task_seed)
        self.description = family.describe(collection.task_seed, self.behaviour.stages)
        self.origin = {
            "seed": collection.seed,
            "config": {
                "transitions_per_stage": self.quotas[-1],
                "behaviour": self.behaviour.digest,
            },
        }
        self.task_size = sum(self.quotas)

    def blocks(self, task: int) -> Iterator[TaskBlock]:
        """Yield the episodes of one task: of a script as they come, else all as one block."""
        family, parameters = self.family, self.parameters[task]
        seed = self._seed(task)
        if isinstance(family, ScriptedFamily):
            quota = self.quotas[-1]
            yield from script_blocks(
                family,
                parameters,
                seed=seed,
                transitions_per_stage=quota,
                num_threads=self.num_threads,
            )
            return
        episodes = collect_task(
            family,
            self.behaviour,
            parameters,
            seed=seed,
            transitions_per_stage=self.quotas,
            num_threads=self.num_threads,
        )
        yield block_of(episodes)

    def reference_returns(self, written: DatasetWriter, bars: Bars) -> References:
        """Roll the reference policies out; for a script add its success in the data."""
        returns = reference_returns(
            self.family,
            self.behaviour,
            # A stream of its own: tasks have the numbers below.
            seed=self._seed(self.family.num_tasks),
            task_seed=self.collection.task_seed,
            num_threads=self.num_threads,
            advance=bars.add("Reference returns", len(self.behaviour.stages) + 2),
        )
        if isinstance(self.family, ScriptedFamily):
            returns["success"] = rewarded_at_the_end(written)
        return returns

    def _seed(self, number: int) -> int:
        return derived_seed(self.collection.seed, self.collection.task_seed, number)


def rewarded_at_the_end(written: DatasetWriter) -> list[float]:
    """Return the share of each task's episodes that were rewarded at their last step, [T]."""
    shares = []
    for task in range(written.num_tasks):
        last = np.cumsum(written.read(task, "length").astype(np.int64)) - 1
        reward = written.read(task, "reward").astype(np.float64)
        shares.append(float((reward[last] > 0.0).mean()))
    return shares


def _stages(family: TaskFamily, collection: Collection) -> tuple[BehaviourPolicy, list[int]]:
    """Return the behaviour policy and the transitions to collect in a task from each stage."""
    behaviour = load_behaviour(family)
    quota = collection.transitions_per_stage
    # A scripted family says how many episodes it needs; others share 8000 transitions.
    if quota is None and isinstance(family, ScriptedFamily):
        quota = family.episodes_per_task * family.horizon
    quota = quota or ceil(TRANSITIONS_PER_TASK / len(behaviour.stages))
    quotas = [quota] * len(behaviour.stages)
    if not collection.untrained_episodes:
        return behaviour, quotas
    first = collection.untrained_episodes * family.horizon
    return WithUntrained(behaviour, family, collection.untrained_episodes), [first, *quotas]
