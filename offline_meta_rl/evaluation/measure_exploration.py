"""Meta-episodes of a trained explorer with what they say about its beliefs; no hooks here."""

from pathlib import Path
from typing import Any

import numpy as np

from offline_meta_rl.evaluation.diagnosis import diagnose, task_reader
from offline_meta_rl.evaluation.exploration import explore
from offline_meta_rl.evaluation.exploration_films import film_exploration
from offline_meta_rl.evaluation.exploration_summary import summarise


def measure_exploration(
    module: Any,
    datamodule: Any,
    *,
    meta_episodes: int,
    num_episodes: int,
    sample_actions: bool,
    seed: int,
    batch_size: int | None,
    num_threads: int | None,
    diagnose_beliefs: bool,
    film: int,
    film_path: Path,
) -> dict[str, Any]:
    """Run meta-episodes in the test tasks and summarise them.

    Args:
        module: has an ``explorer`` and a ``held_out_generator``.
        datamodule: has ``dataset``, ``family``, ``train_tasks``, ``test_tasks`` and held-out
            meta-trajectories, as MetaTrajectories.
        meta_episodes: how many.
        num_episodes: of each.
        sample_actions: sample from the policy instead of taking its mean action.
        seed: of initial states and noise.
        batch_size: meta-episodes that run together; None for all.
        num_threads: of the simulator; None for one per core.
        diagnose_beliefs: what beliefs say about the task, before and after evidence. Only where
            the evaluated tasks are those of the meta-trajectories.
        film: meta-episodes to film.
        film_path: of the film, without suffix.

    Returns:
        ``points`` by exploration episodes done, ``protocol``, and ``diagnosis`` if asked for.
    """
    tasks, manifest = list(datamodule.test_tasks), datamodule.dataset.manifest
    protocol = {
        "tasks": tasks,
        "meta_episodes": meta_episodes,
        "num_episodes": num_episodes,
        "trained_episodes": int(datamodule.hparams["num_episodes"]),
        "sample_actions": sample_actions,
        "seed": seed,
    }
    family = datamodule.family
    exploration = explore(
        family,
        module.explorer,
        np.asarray(manifest.task_parameters, dtype=np.float64)[tasks],
        meta_episodes=meta_episodes,
        num_episodes=num_episodes,
        seed=seed,
        sample_actions=sample_actions,
        num_frames=film,
        batch_size=batch_size,
        num_threads=num_threads,
    )
    protocol["diverged"] = meta_episodes - len(exploration.target)
    nearest = getattr(family, "nearest", None)
    content: dict[str, Any] = {
        "points": summarise(exploration, tasks, nearest),
        "protocol": protocol,
    }
    readable = tasks == sorted(datamodule.train_tasks)
    if not readable or not (diagnose_beliefs or film):
        return content
    item = next(iter(datamodule.val_dataloader()))
    fit, held_out = (
        module.explorer.beliefs(item[name], module.held_out_generator())
        for name in ("fit", "held_out")
    )
    probability = task_reader(item["fit"], fit).probabilities(exploration.belief)
    if diagnose_beliefs:
        content["diagnosis"] = diagnose(item, fit, held_out, exploration, probability)
    if film:
        found = film_exploration(exploration, probability[:film], film_path)
        content["film"] = None if found is None else found.name
    return content
