"""Making one dataset of several, and parts of one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.data.description import (
    References,
    Split,
    Splits,
    policy_returns,
    stage_returns,
)
from offline_meta_rl.data.stored import StoredDataset
from offline_meta_rl.data_tools.formats.native import EpisodeSource, Part

SHARED = ("environment", "family", "observation_space", "action_space", "horizon", "task_seed")
"""What datasets must have in common to be merged."""


def merged(datasets: Sequence[StoredDataset]) -> EpisodeSource:
    """Return the union of datasets of one family.

    Tasks with the same parameters are one task, with the episodes of all; other tasks are added.
    Splits and reference returns are kept where every dataset has them.

    Raises:
        ValueError: The datasets do not fit together, or two are the same.
    """
    first = datasets[0].manifest
    for dataset in datasets[1:]:
        for name in SHARED:
            expected, found = vars(first)[name], vars(dataset.manifest)[name]
            if expected != found:
                raise ValueError(
                    f"{dataset.path}: {name}: expected {expected} as in {datasets[0].path}, found "
                    f"{found}. Only datasets of the same tasks and spaces can be merged."
                )
    seen: dict[str, StoredDataset] = {}
    for dataset in datasets:
        # By the arrays and not the manifest: a copy with other splits is the same data.
        twin = seen.setdefault(_data_checksum(dataset), dataset)
        if twin is not dataset:
            raise ValueError(
                f"{dataset.path} holds the same data as {twin.path}: expected different episodes, "
                "found every one twice. Name each dataset once."
            )
    tasks: dict[tuple[float, ...], int] = {}
    # Tasks are told apart by their parameters: numbers mean nothing across datasets.
    places = [
        [tasks.setdefault(tuple(p), len(tasks)) for p in d.manifest.task_parameters]
        for d in datasets
    ]
    stages = list(dict.fromkeys(stage for d in datasets for stage in d.manifest.stages))
    parts: list[list[Part]] = [[] for _ in tasks]
    for dataset, place in zip(datasets, places, strict=True):
        # Stages are the same if their names are; each dataset has numbers of its own.
        renamed = np.asarray([stages.index(name) for name in dataset.manifest.stages])
        task, stage = (dataset.values(f"episodes/{key}") for key in ("task", "stage"))
        for own, new in enumerate(place):
            episodes = np.flatnonzero(task == own)
            parts[new].append((dataset, episodes, renamed[stage[episodes]]))
    description = replace(
        first.without_data(),
        task_parameters=[list(parameters) for parameters in tasks],
        splits=_merged_splits(datasets, places),
        stages=stages,
        reference_returns=_merged_returns(datasets, places, len(tasks)),
    )
    return EpisodeSource(description, {"merged": [d.checksum for d in datasets]}, parts)


def selected(
    dataset: StoredDataset, keep: NDArray[np.bool_], origin: Mapping[str, object]
) -> EpisodeSource:
    """Return some episodes of a dataset; tasks and stages without any are left out.

    Args:
        dataset: The dataset.
        keep: Which episodes to keep, [E].
        origin: How they were chosen, for the provenance.

    Raises:
        ValueError: No episode is left.
    """
    manifest = dataset.manifest
    if not keep.any():
        raise ValueError(f"{dataset.path}: expected at least one episode to be left, found none.")
    task, stage = (dataset.values(f"episodes/{key}") for key in ("task", "stage"))
    tasks, stages = np.unique(task[keep]).tolist(), np.unique(stage[keep]).tolist()
    new_stage = np.searchsorted(stages, stage)
    parts: list[list[Part]] = []
    for index in tasks:
        episodes = np.flatnonzero(keep & (task == index))
        parts.append([(dataset, episodes, new_stage[episodes])])
    names = [manifest.stages[index] for index in stages]
    description = replace(
        manifest.without_data(),
        task_parameters=[manifest.task_parameters[index] for index in tasks],
        splits={
            name: Split(
                train=[tasks.index(task) for task in split["train"] if task in tasks],
                test=[tasks.index(task) for task in split["test"] if task in tasks],
            )
            for name, split in manifest.splits.items()
        },
        stages=names,
        reference_returns=_returns_of(manifest.reference_returns, tasks, names),
    )
    return EpisodeSource(description, {"dataset": dataset.checksum, **origin}, parts)


def chosen_episodes(
    dataset: StoredDataset,
    *,
    tasks: Sequence[int] | None = None,
    stages: Sequence[str] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Choose episodes by task, stage, and a random share of every task's episodes of every stage.

    Returns:
        Whether each episode is chosen, [E].

    Raises:
        ValueError: An unknown task or stage, or a fraction outside (0, 1).
    """
    manifest = dataset.manifest
    task, stage = (dataset.values(f"episodes/{key}") for key in ("task", "stage"))
    keep = np.ones(len(task), dtype=bool)
    if tasks is not None:
        unknown = sorted(set(tasks) - set(range(manifest.num_tasks)))
        if unknown:
            raise ValueError(
                f"Unknown tasks {unknown}: expected some of 0 to {manifest.num_tasks - 1}."
            )
        keep &= np.isin(task, tasks)
    if stages is not None:
        unknown_stages = sorted(set(stages) - set(manifest.stages))
        if unknown_stages:
            raise ValueError(
                f"Unknown stages {unknown_stages}: expected some of {manifest.stages}."
            )
        keep &= np.isin(stage, [manifest.stages.index(name) for name in stages])
    if fraction is not None:
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"Fraction: expected a number between 0 and 1, found {fraction}.")
        random = np.random.default_rng(seed)
        # A share of every (task, stage), so that no stage of a task is lost by chance.
        for group in np.unique(task * len(manifest.stages) + stage):
            episodes = np.flatnonzero(task * len(manifest.stages) + stage == group)
            order = random.permutation(episodes)
            count = round(fraction * len(episodes))
            # At least one episode on each side, where there are two: both halves of a split.
            keep[order[max(1, min(count, len(episodes) - 1)) :]] = False
    return keep


def _data_checksum(dataset: StoredDataset) -> str:
    entries = dataset.manifest.arrays
    return " ".join(c for name in sorted(entries) for c in entries[name].checksums)


def _merged_splits(datasets: Sequence[StoredDataset], places: list[list[int]]) -> Splits:
    """Return the splits that every dataset has, of the new task numbers."""
    names = [
        n for n in datasets[0].manifest.splits if all(n in d.manifest.splits for d in datasets)
    ]
    result = {}
    for name in names:
        roles: dict[int, tuple[bool, bool]] = {}
        for dataset, place in zip(datasets, places, strict=True):
            split = dataset.manifest.splits[name]
            for own, new in enumerate(place):
                role = (own in split["train"], own in split["test"])
                if roles.setdefault(new, role) != role:
                    raise ValueError(
                        f"{dataset.path}: split {name!r}: expected task {own} on the same side as "
                        "in the other datasets, found another. Merging would mix train and test "
                        "tasks; make the splits agree."
                    )
        result[name] = Split(
            train=[task for task in sorted(roles) if roles[task][0]],
            test=[task for task in sorted(roles) if roles[task][1]],
        )
    return result


def _merged_returns(
    datasets: Sequence[StoredDataset], places: list[list[int]], num_tasks: int
) -> References:
    """Return the reference returns that every dataset has; a task's come from the first with it."""

    def join(tables: list[dict[str, list[float]]]) -> dict[str, list[float]]:
        result = {}
        for name in tables[0]:
            if any(name not in table for table in tables):
                continue
            values: dict[int, float] = {}
            for table, place in zip(tables, places, strict=True):
                for own, new in enumerate(place):
                    values.setdefault(new, table[name][own])
            result[name] = [values[task] for task in range(num_tasks)]
        return result

    references = [dataset.manifest.reference_returns for dataset in datasets]
    stages = join([stage_returns(table) for table in references])
    merged: References = {**join([policy_returns(table) for table in references])}
    if stages:
        merged["stages"] = {**stages}
    return merged


def _returns_of(references: References, tasks: list[int], stages: list[str]) -> References:
    """Return the reference returns of some tasks and stages."""
    result: References = {}
    for name, values in references.items():
        if isinstance(values, dict):
            kept = {stage: own for stage, own in values.items() if stage in stages}
            result[name] = _returns_of(kept, tasks, stages)
        else:
            result[name] = [values[task] for task in tasks]
    return result
