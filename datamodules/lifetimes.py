"""What LifetimeBuffers write: the replays, what is in them, and the dataset they become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.behaviour.collect import PACKAGES
from offline_meta_rl.behaviour.learning import ActsInEnvironments
from offline_meta_rl.behaviour.references import Measurement
from offline_meta_rl.behaviour.shaping import TERMS, Shaping
from offline_meta_rl.common.provenance import derived_seed, package_versions
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.data.description import Splits, named_splits
from offline_meta_rl.data.lifetimes import LifetimeStorage
from offline_meta_rl.data.writer import DatasetWriter
from offline_meta_rl.envs.base import Array, StepResult, TaskFamily


@dataclass(frozen=True)
class Lives:
    """The agents' lifetimes: where they are spent, and how long they are.

    Attributes:
        family: The task family.
        tasks: Indices of the tasks, one agent each.
        steps: L, environment steps of each agent.
        num_stages: Equal parts of a lifetime.
        seed: Seed of initial states, noise and the replays' draws.
        task_seed: Seed of the task parameters.
        num_threads: Threads of the simulator's pool; None for one per core.
    """

    family: TaskFamily
    tasks: tuple[int, ...]
    steps: int
    num_stages: int
    seed: int
    task_seed: int
    num_threads: int | None

    @property
    def parameters(self) -> Array:
        """Parameters of the agents' tasks, [T, P]."""
        return self.family.task_parameters(self.task_seed)[list(self.tasks)]

    @property
    def stages(self) -> list[str]:
        """Names of the stages, poor to expert."""
        return [*(f"stage_{stage}" for stage in range(self.num_stages - 1)), "expert"]

    @property
    def evaluation(self) -> Measurement:
        """How the reference returns of these tasks are measured."""
        return Measurement(
            seed=derived_seed(self.seed, 2),
            task_seed=self.task_seed,
            tasks=self.tasks,
            num_threads=self.num_threads,
        )


def restricted_splits(
    splits: Mapping[str, tuple[Sequence[int], Sequence[int]]], tasks: Sequence[int]
) -> Splits:
    """Return the manifest's splits of chosen tasks, which are numbered anew.

    A split that leaves no task to train on is dropped; the default split then has them all.
    """
    number = {task: index for index, task in enumerate(tasks)}
    result: dict[str, tuple[list[int], list[int]]] = {}
    for name, parts in splits.items():
        train, test = ([number[task] for task in part if task in number] for part in parts)
        if train:
            result[name] = (train, test)
        elif name == "default":
            result[name] = (list(range(len(tasks))), test)
    return named_splits(result)


def kept_terms(family: TaskFamily, parameters: Array, shaping: Shaping) -> list[str]:
    """Return the summands of the reward that have to be kept for the agents' own reward."""
    if not shaping.reweighs:
        return []
    # Which summands there are only an engine's step tells.
    engine = family.make_engine(parameters[:1], seed=0, num_threads=1)
    engine.reset()
    known = engine.step(np.zeros((1, family.action_size))).reward_terms
    engine.close()
    return [name for name in TERMS if name in known]


def transition_columns(
    observation: NDArray[np.float32],
    action: NDArray[np.float32],
    result: StepResult,
    terms: Sequence[str],
) -> dict[str, NDArray[np.generic]]:
    """Return one step of all tasks as LifetimeStorage keeps it; numbers that are not finite as 0.

    Args:
        observation: Observations before the step, [T, O].
        action: Actions taken, [T, A].
        result: What the engine returned. Where it diverged, the episode counts as truncated.
        terms: Names of the reward's summands to keep.
    """
    finite = np.isfinite(result.observation).all(axis=1) & np.isfinite(result.reward)
    diverged = result.diverged | ~finite
    columns: dict[str, NDArray[np.generic]] = {
        "observation": observation,
        "action": action,
        "reward": np.nan_to_num(result.reward),
        "next_observation": np.nan_to_num(result.observation),
        "terminated": result.terminated,
        # A diverged episode was cut off; it did not end by itself.
        "truncated": (result.truncated | diverged) & ~result.terminated,
        "diverged": diverged,
    }
    if terms:
        kept = [result.reward_terms[name] for name in terms]
        columns["reward_terms"] = np.nan_to_num(np.stack(kept, axis=1))
    return columns


def lifetime_storage(lives: Lives, shaping: Shaping, folder: Path) -> LifetimeStorage:
    """Return the replays in a folder.

    Args:
        lives: Whose replays.
        shaping: The reward that the agents see.
        folder: Folder of the arrays; made if it is missing.

    Raises:
        OSError: The disk has not enough room.
    """
    return LifetimeStorage(
        folder,
        num_tasks=len(lives.tasks),
        steps=lives.steps,
        observation_size=lives.family.observation_size,
        action_size=lives.family.action_size,
        terms=kept_terms(lives.family, lives.parameters, shaping),
    )


def lifetime_writer(
    lives: Lives, path: Path, agents: ActsInEnvironments, data: Mapping[str, object]
) -> DatasetWriter:
    """Return the writer of the dataset, with the settings that decide its content as provenance.

    Args:
        lives: The lifetimes that the dataset is made of.
        path: Folder of the finished dataset.
        agents: Their settings are kept.
        data: Settings of the datamodule.

    Raises:
        ValueError: ``<path>.partial`` belongs to lifetimes with other settings.
    """
    family = lives.family
    apart = {"path", "num_threads", "steps_per_epoch", "seed"}
    own = {k: v for k, v in agents.hparams.items() if not k.startswith("compile")}
    config = {
        "agent": {"method": type(agents).__name__, **own},
        "data": {k: v for k, v in data.items() if k not in apart},
    }
    description = replace(
        family.describe(lives.task_seed, lives.stages),
        task_parameters=lives.parameters.tolist(),
        splits=restricted_splits(family.splits, lives.tasks),
    )
    versions = package_versions(*PACKAGES)
    provenance = {"seed": lives.seed, "config": to_plain(config), "versions": versions}
    return DatasetWriter(path, description, provenance)
