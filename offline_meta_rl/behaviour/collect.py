"""Collect a task dataset: roll the behaviour policy of a family out in all of its tasks.

Each task gets the same number of transitions from every stage of the behaviour policy, in whole
episodes with sampled actions, labelled by stage. Every task draws from its own generator, so an
interrupted collection goes on where it stopped and ends with the same data.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offline_meta_rl.behaviour.collect_script import script_blocks, script_success
from offline_meta_rl.behaviour.policy import BehaviourPolicy, acting, load_behaviour
from offline_meta_rl.behaviour.references import reference_returns
from offline_meta_rl.behaviour.untrained import WithUntrained
from offline_meta_rl.data.manifest import TRANSITION_KEYS
from offline_meta_rl.data.writer import DatasetWriter, dataset_lock, dataset_root
from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import Episodes, run_episodes

TRANSITIONS_PER_TASK = 8000
MAX_ENVIRONMENTS = 64  # of one stage at a time


class Episode(NamedTuple):
    """One whole episode and the stage it comes from; ``columns`` as in a dataset, [L, ...]."""

    stage: int
    columns: dict[str, NDArray[np.generic]]


def default_dataset_path(
    family: TaskFamily,
    *,
    seed: int = 0,
    task_seed: int = 0,
    transitions_per_stage: int | None = None,
    untrained_episodes: int = 0,
) -> Path:
    """Return where the dataset of a family is kept; all that changes its content is in the name.

    The folder is ``$OFFLINE_META_RL_DATA``, or ``~/.cache/offline_meta_rl/datasets``.
    """
    behaviour, (*_, quota) = _stages(family, transitions_per_stage, untrained_episodes)
    return dataset_root() / (
        f"{family.name}-v{family.version}-tasks{task_seed}-seed{seed}-n{quota}-{behaviour.digest}"
    )


def _stages(
    family: TaskFamily, transitions_per_stage: int | None, untrained_episodes: int
) -> tuple[BehaviourPolicy, list[int]]:
    """Return the behaviour policy and the transitions to collect in a task from each stage."""
    behaviour = load_behaviour(family)
    if transitions_per_stage is None and isinstance(family, ScriptedFamily):
        transitions_per_stage = family.episodes_per_task * family.horizon
    quota = transitions_per_stage or ceil(TRANSITIONS_PER_TASK / len(behaviour.stages))
    quotas = [quota] * len(behaviour.stages)
    if not untrained_episodes:
        return behaviour, quotas
    first = untrained_episodes * family.horizon
    return WithUntrained(behaviour, family, untrained_episodes), [first, *quotas]


def derived_seed(*numbers: int) -> int:
    """Mix numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def whole_episodes(episodes: Episodes, stages: NDArray[np.int64]) -> list[Episode]:
    """Cut a rollout [H, N] into its episodes, dropping those in which the simulator diverged."""
    return [
        Episode(
            int(stages[index]),
            {
                name: getattr(episodes, name)[: episodes.lengths[index], index]
                for name in TRANSITION_KEYS
            },
        )
        for index in np.flatnonzero(~episodes.diverged)
    ]


def _episodes_wanted(lacking: int, found: list[Episode], horizon: int) -> int:
    """Return how many episodes will probably fill what a stage lacks, a few too many."""
    if not found:
        return min(ceil(lacking / horizon), MAX_ENVIRONMENTS)
    mean_length = np.mean([len(episode.columns["reward"]) for episode in found])
    return min(max(0, ceil(1.1 * lacking / mean_length)), MAX_ENVIRONMENTS)


def collect_task(
    family: TaskFamily,
    behaviour: BehaviourPolicy,
    parameters: Array,
    *,
    seed: int,
    transitions_per_stage: int | Sequence[int],
    num_threads: int | None = None,
) -> list[Episode]:
    """Collect one task's episodes, ordered by stage, poor to expert.

    Args:
        family: the task family.
        behaviour: its behaviour policy.
        parameters: of the task, [P].
        seed: of initial states and actions; the same seed gives the same data.
        transitions_per_stage: at least so many transitions of every stage, or of each one.
        num_threads: of the simulator; None for one per core.

    Raises:
        RuntimeError: if a stage yields no usable episode in 50 rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    collected: list[list[Episode]] = [[] for _ in behaviour.stages]
    count = np.zeros(len(behaviour.stages), dtype=np.int64)
    quotas = np.broadcast_to(transitions_per_stage, count.shape)
    for number in range(50):
        wanted = [
            _episodes_wanted(quotas[stage] - count[stage], found, family.horizon)
            for stage, found in enumerate(collected)
        ]
        if not any(wanted):
            return [episode for found in collected for episode in found]
        stages = np.repeat(np.arange(len(wanted)), wanted)
        rows = np.tile(parameters, (len(stages), 1))
        engine = family.make_engine(rows, seed=derived_seed(seed, number), num_threads=num_threads)
        act = acting(behaviour, stages, rows, stochastic=True, generator=generator)
        for episode in whole_episodes(run_episodes(engine, act, family.horizon), stages):
            collected[episode.stage].append(episode)
            count[episode.stage] += len(episode.columns["reward"])
        engine.close()
    raise RuntimeError(
        f"Collected {count.tolist()} transitions by stage in 50 rounds of {family.name}, expected "
        f"{transitions_per_stage} each: the simulation diverges. Check the task's parameters."
    )


def collect(
    family: TaskFamily,
    path: str | Path,
    *,
    seed: int = 0,
    task_seed: int = 0,
    transitions_per_stage: int | None = None,
    untrained_episodes: int = 0,
    num_threads: int | None = None,
    progress: bool = True,
) -> Path:
    """Collect the dataset of a family, unless it is there already; resume it if interrupted.

    Args:
        family: the task family; one that ships a behaviour policy.
        path: folder of the dataset.
        seed: of initial states and actions.
        task_seed: of the task parameters.
        transitions_per_stage: at least so many transitions of every stage in every task; None for
            an equal share of 8000 for the task, or for the script's number of episodes.
        untrained_episodes: as many transitions as so many episodes of full length, of a policy that
            was never trained, as the first stage ``untrained`` of every task.
        num_threads: of the simulator; None for one per core.
        progress: show a progress bar.

    Returns:
        The path of the finished dataset.

    Raises:
        ValueError: no behaviour policy ships with the family, or an interrupted collection with
            other settings is in the way.
        OSError: the disk is full; finished tasks are kept.
    """
    with dataset_lock(path):
        if Path(path).exists():
            return Path(path)
        behaviour, quotas = _stages(family, transitions_per_stage, untrained_episodes)
        parameters = family.task_parameters(task_seed)
        writer = DatasetWriter(
            path,
            environment={"id": family.env_id, "version": family.version, "kwargs": {}},
            family=family.name,
            observation_size=family.observation_size,
            action_size=family.action_size,
            horizon=family.horizon,
            task_seed=task_seed,
            task_parameters=parameters,
            splits=family.splits,
            stages=behaviour.stages,
            observation_space=family.observation_space,
            provenance=_provenance(seed, quotas[-1], behaviour.digest),
        )
        bar = Progress(
            TextColumn(f"Collecting {family.name}: {{task.description}}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            disable=not progress,
        )
        with bar:
            tasks = bar.add_task("tasks", total=family.num_tasks)
            for task in range(family.num_tasks):
                if not writer.has_task(task):
                    settings: dict[str, Any] = {
                        "seed": derived_seed(seed, task_seed, task),
                        "transitions_per_stage": quotas,
                        "num_threads": num_threads,
                    }
                    if isinstance(family, ScriptedFamily):
                        settings["transitions_per_stage"] = quotas[-1]
                        _write_script(writer, family, task, parameters[task], settings, bar)
                    else:
                        episodes = collect_task(family, behaviour, parameters[task], **settings)
                        write_episodes(writer, task, episodes)
                bar.advance(tasks)
            policies = bar.add_task("reference returns", total=len(behaviour.stages) + 2)
            returns = reference_returns(
                family,
                behaviour,
                seed=derived_seed(seed, task_seed, family.num_tasks),
                task_seed=task_seed,
                num_threads=num_threads,
                advance=lambda: bar.advance(policies),
            )
        if isinstance(family, ScriptedFamily):
            returns["success"] = script_success(writer)
        return writer.commit(returns)


def _write_script(
    writer: DatasetWriter,
    family: ScriptedFamily,
    task: int,
    parameters: Array,
    settings: dict[str, Any],
    bar: Progress,
) -> None:
    """Write the episodes of one task's script as they come."""
    total = settings["transitions_per_stage"] / family.horizon
    part = bar.add_task(f"episodes of task {task}", total=total)

    def advance(count: int) -> None:
        bar.advance(part, count)

    blocks = script_blocks(family, parameters, advance=advance, **settings)
    writer.write_blocks(task, blocks)


def write_episodes(writer: DatasetWriter, task: int, episodes: list[Episode]) -> None:
    """Write the episodes of one task, one after another."""
    writer.write_task(
        task,
        {name: np.concatenate([e.columns[name] for e in episodes]) for name in TRANSITION_KEYS},
        stage=[episode.stage for episode in episodes],
        length=[len(episode.columns["reward"]) for episode in episodes],
    )


def _provenance(seed: int, transitions_per_stage: int, digest: str) -> dict[str, Any]:
    """Return how the data comes about: what decides it, and the versions it was made with."""
    return {
        "seed": seed,
        "config": {"transitions_per_stage": transitions_per_stage, "behaviour": digest},
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the versions that data is made with."""
    packages = ("offline_meta_rl", "torch", "numpy", "mujoco", "gymnasium")
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    """Return the installed version of a package, None if it runs from source."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
