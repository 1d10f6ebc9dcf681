"""What LifetimeBuffers do before the first step: checks, splits of chosen tasks, the writer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offline_meta_rl.collect import package_versions
from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.reward_shaping import TERMS, RewardShaping
from offline_meta_rl.storage import DatasetWriter

Splits = Mapping[str, tuple[Sequence[int], Sequence[int]]]


def check_lifetime(
    family: TaskFamily, tasks: Sequence[int], lifetime_steps: int, warmup_steps: int, stages: int
) -> None:
    """Check the tasks and that every stage of a lifetime holds whole episodes.

    Raises:
        ValueError: names the argument, what was expected and what was found.
    """
    unknown = [task for task in tasks if not 0 <= task < family.num_tasks]
    if not tasks or unknown or len(set(tasks)) < len(tasks):
        raise ValueError(
            f"tasks: expected different indices from 0 to {family.num_tasks - 1} of {family.name}, "
            f"found {list(tasks)}. Pass null for all tasks."
        )
    least = 2 * max(1, stages) * family.horizon
    if stages < 1 or lifetime_steps < least:
        raise ValueError(
            f"lifetime_steps: expected at least {least}, two episodes of {family.horizon} steps "
            f"for each of {stages} stages, found {lifetime_steps}. Use a longer lifetime or fewer "
            "stages, but one at least."
        )
    if not 1 <= warmup_steps < lifetime_steps:
        raise ValueError(
            f"warmup_steps: expected 1 to {lifetime_steps - 1}, less than a lifetime, found "
            f"{warmup_steps}."
        )


def check_trainer(trainer: Any, planned_updates: int, path: Path) -> None:
    """Check that one process trains, no longer than the lifetimes, towards a new dataset.

    Raises:
        ValueError: several processes, or more updates than the lifetimes hold.
        FileExistsError: the dataset is there already.
    """
    if trainer.world_size > 1:
        raise ValueError(
            "LifetimeBuffers simulates and keeps its replays in one process, found "
            f"{trainer.world_size}. Set --trainer.devices=1."
        )
    if not 0 < trainer.max_steps <= planned_updates:
        raise ValueError(
            f"trainer.max_steps: expected {planned_updates}, (lifetime_steps - warmup_steps) * "
            f"updates_per_step, or fewer to go on later; found {trainer.max_steps}. Set "
            f"--trainer.max_steps={planned_updates}."
        )
    if path.exists():
        raise FileExistsError(
            f"{path} exists already: its lifetimes are over. Pass another "
            "--data.init_args.path or remove it."
        )


def restricted_splits(splits: Splits, tasks: Sequence[int]) -> dict[str, tuple[Any, Any]]:
    """Return splits of chosen tasks, which are numbered anew.

    A split that leaves no task to train on is dropped; the default split then has them all.
    """
    number = {task: index for index, task in enumerate(tasks)}
    result: dict[str, tuple[Any, Any]] = {}
    for name, parts in splits.items():
        train, test = ([number[task] for task in part if task in number] for part in parts)
        if train:
            result[name] = (train, test)
        elif name == "default":
            result[name] = (list(range(len(tasks))), test)
    return result


def progress(folder: Path) -> int:
    """Return how many steps of every lifetime were safely on the disk when last looked at."""
    file = folder / "progress.json"
    return int(json.loads(file.read_text())["steps"]) if file.is_file() else 0


def kept_terms(family: TaskFamily, parameters: Array, shaping: RewardShaping) -> list[str]:
    """Return the summands of the reward that have to be kept for the agents' own reward."""
    if not shaping.reweighs:
        return []
    engine = family.make_engine(parameters[:1], seed=0, num_threads=1)
    engine.reset()
    known = engine.step(np.zeros((1, family.action_size))).reward_terms
    engine.close()
    return [name for name in TERMS if name in known]


def lifetime_writer(data: Any, module: Any) -> DatasetWriter:
    """Return the writer of the dataset to be; what decides its content is its provenance.

    Args:
        data: a LifetimeBuffers.
        module: the agents.

    Raises:
        ValueError: ``<path>.partial`` belongs to lifetimes with other settings.
    """
    family = data.family
    apart = {"path", "num_threads", "steps_per_epoch", "seed"}
    agent = {k: v for k, v in module.hparams.items() if not k.startswith("compile")}
    config = {k: v for k, v in data.hparams.items() if k not in apart}
    return DatasetWriter(
        data.path,
        environment={"id": family.env_id, "version": family.version, "kwargs": {}},
        family=family.name,
        observation_size=family.observation_size,
        action_size=family.action_size,
        horizon=family.horizon,
        task_seed=data.hparams.task_seed,
        task_parameters=data.parameters,
        splits=restricted_splits(family.splits, data.tasks),
        stages=data.stages,
        provenance={
            "seed": data.hparams.seed,
            "config": {"agent": {"method": type(module).__name__, **agent}, "data": config},
            "versions": package_versions(),
        },
    )
