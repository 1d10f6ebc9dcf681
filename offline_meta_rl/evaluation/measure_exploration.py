"""Meta-episodes of a trained explorer with what they say about its beliefs; no hooks here."""

from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from offline_meta_rl.evaluation.contracts import ExplorationData, Explores, HasNearest
from offline_meta_rl.evaluation.diagnosis import Diagnosis, diagnose, task_reader
from offline_meta_rl.evaluation.exploration import ExplorationPoint, explore, summarise


@dataclass(frozen=True)
class MetaEpisodes:
    """How meta-episodes are run.

    Attributes:
        num_episodes: K, episodes of each.
        sample_actions: Sample from the policy instead of taking its mean action.
        seed: Seed of initial states and noise.
        batch_size: Meta-episodes that run together; None for all.
        num_threads: Threads of the simulator; None for one per core.
    """

    num_episodes: int
    sample_actions: bool = False
    seed: int = 0
    batch_size: int | None = None
    num_threads: int | None = None


class ExplorationProtocol(TypedDict):
    """What was evaluated, and how.

    Attributes:
        tasks: Indices of the tasks.
        meta_episodes: How many were run.
        num_episodes: Episodes of each.
        trained_episodes: Episodes of the meta-trajectories that the policy was trained on.
        sample_actions: Whether actions were sampled.
        seed: Seed of initial states and noise.
        diverged: Meta-episodes that are left out because the simulator diverged.
    """

    tasks: list[int]
    meta_episodes: int
    num_episodes: int
    trained_episodes: int
    sample_actions: bool
    seed: int
    diverged: int


class MeasuredExploration(TypedDict):
    """What a measurement found.

    Attributes:
        points: One entry for each number of exploration episodes done.
        protocol: What was evaluated, and how.
        diagnosis: What beliefs say about the task, if that was asked for.
        film: Name of the film, if one was asked for; None where it could not be made.
    """

    points: list[ExplorationPoint]
    protocol: ExplorationProtocol
    diagnosis: NotRequired[Diagnosis]
    film: NotRequired[str | None]


def measure_exploration(
    method: Explores,
    data: ExplorationData,
    settings: MetaEpisodes,
    *,
    meta_episodes: int,
    diagnose_beliefs: bool,
    film: int,
    film_path: Path,
) -> MeasuredExploration:
    """Run meta-episodes in the test tasks and summarise them.

    Args:
        method: What explores.
        data: Has the tasks and held-out meta-trajectories.
        settings: How meta-episodes are run.
        meta_episodes: How many.
        diagnose_beliefs: Say what beliefs tell about the task, before and after evidence. Only
            where the evaluated tasks are those of the meta-trajectories.
        film: Meta-episodes to film; 0 for no film.
        film_path: Path of the film without suffix.
    """
    tasks, manifest = list(data.test_tasks), data.dataset.manifest
    family = data.family
    exploration = explore(
        family,
        method.explorer,
        np.asarray(manifest.task_parameters, dtype=np.float64)[tasks],
        meta_episodes=meta_episodes,
        num_episodes=settings.num_episodes,
        seed=settings.seed,
        sample_actions=settings.sample_actions,
        num_frames=film,
        batch_size=settings.batch_size,
        num_threads=settings.num_threads,
    )
    nearest = family.nearest if isinstance(family, HasNearest) else None
    content: MeasuredExploration = {
        "points": summarise(exploration, tasks, nearest),
        "protocol": {
            "tasks": tasks,
            "meta_episodes": meta_episodes,
            "num_episodes": settings.num_episodes,
            "trained_episodes": data.num_episodes,
            "sample_actions": settings.sample_actions,
            "seed": settings.seed,
            "diverged": meta_episodes - len(exploration.target),
        },
    }
    # A readout of the task knows the tasks that it was fitted on, and no others.
    readable = tasks == sorted(data.train_tasks)
    if not readable or not (diagnose_beliefs or film):
        return content
    item = data.held_out_item()
    fit, held_out = (method.held_out_beliefs(item[name]) for name in ("fit", "held_out"))
    probability = task_reader(item["fit"], fit).probabilities(exploration.belief)
    if diagnose_beliefs:
        content["diagnosis"] = diagnose(item, fit, held_out, exploration, probability)
    if film:
        from offline_meta_rl.evaluation.exploration_films import film_exploration  # gymnasium

        found = film_exploration(exploration, probability[:film], film_path)
        content["film"] = None if found is None else found.name
    return content
