"""What LifetimeBuffers write: the replays, what is in them, and the dataset they become."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.behaviour.collect import package_versions
from offline_meta_rl.behaviour.shaping import TERMS, RewardShaping
from offline_meta_rl.data.lifetimes import LifetimeStorage
from offline_meta_rl.data.writer import DatasetWriter
from offline_meta_rl.envs.base import Array, StepResult, TaskFamily

Splits = Mapping[str, tuple[Sequence[int], Sequence[int]]]


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


def kept_terms(family: TaskFamily, parameters: Array, shaping: RewardShaping) -> list[str]:
    """Return the summands of the reward that have to be kept for the agents' own reward."""
    if not shaping.reweighs:
        return []
    engine = family.make_engine(parameters[:1], seed=0, num_threads=1)
    engine.reset()
    known = engine.step(np.zeros((1, family.action_size))).reward_terms
    engine.close()
    return [name for name in TERMS if name in known]


def transition_columns(
    observation: NDArray[Any], action: NDArray[Any], result: StepResult, terms: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Return one step of all tasks as LifetimeStorage keeps it; numbers that are not finite as 0.

    Args:
        observation: before the step, [T, O].
        action: taken, [T, A].
        result: of the simulator. Where it diverged, the episode counts as truncated.
        terms: of the reward, to keep.
    """
    finite = np.isfinite(result.observation).all(axis=1) & np.isfinite(result.reward)
    diverged = result.diverged | ~finite
    columns: dict[str, NDArray[Any]] = {
        "observation": observation,
        "action": action,
        "reward": np.nan_to_num(result.reward),
        "next_observation": np.nan_to_num(result.observation),
        "terminated": result.terminated,
        "truncated": (result.truncated | diverged) & ~result.terminated,
        "diverged": diverged,
    }
    if terms:
        kept = [result.reward_terms[name] for name in terms]
        columns["reward_terms"] = np.nan_to_num(np.stack(kept, axis=1))
    return columns


def lifetime_storage(data: Any, folder: Path) -> LifetimeStorage:
    """Return the replays in a folder.

    Args:
        data: a LifetimeBuffers.
        folder: of the arrays; made if it is missing.

    Raises:
        OSError: the disk has not enough room.
    """
    return LifetimeStorage(
        folder,
        num_tasks=data.num_tasks,
        steps=data.hparams.lifetime_steps,
        observation_size=data.family.observation_size,
        action_size=data.family.action_size,
        terms=kept_terms(data.family, data.parameters, data.shaping),
    )


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
