"""What a datamodule does before its first batch: find the dataset, collect it, check settings."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.sampling.chunks import make_chunks
from datamodules.sampling.rows import make_buffer
from datamodules.sampling.tasks import TaskSampler
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.manifest import MANIFEST_FILE, Manifest
from offline_meta_rl.data.remote import local_dataset

RESIDENT_BYTES = 4 * 2**30
_LOGGER = logging.getLogger(__name__)


def dataset_path(settings: Mapping[str, Any]) -> Path:
    """Return the dataset's folder: ``path``, or the default place of what ``env`` collects.

    A dataset at a URL is copied into the local cache first, unless it is there.
    """
    if settings["path"] is not None:
        return local_dataset(settings["path"])
    from offline_meta_rl.behaviour.collect import default_dataset_path

    return default_dataset_path(_family(settings["env"]), **_collection(settings))


def data_sizes(path: Path, settings: Mapping[str, Any]) -> DataSizes:
    """Return the sizes of a dataset, or of the family whose data are to be collected.

    Args:
        path: the dataset's folder, which need not exist yet.
        settings: those of TaskBuffers.
    """
    file = path / MANIFEST_FILE
    if file.is_file():
        return DataSizes.of_manifest(Manifest.from_json(file.read_text(encoding="utf-8"), file))
    found: DataSizes = _family(settings["env"]).sizes()
    return found


def prepare_dataset(path: Path, settings: Mapping[str, Any]) -> None:
    """Collect the dataset unless it exists or ``collect`` is off.

    Of several processes one collects; the others wait and find it finished.

    Raises:
        FileNotFoundError: it does not exist, and ``collect`` is off.
    """
    if path.exists():
        return
    if not settings["collect"]:
        raise FileNotFoundError(
            f"No dataset at {path}, and collecting is off. Pass --data.path of a dataset, or "
            "--data.collect true."
        )
    from offline_meta_rl.behaviour.collect import collect

    collect(_family(settings["env"]), path, **_collection(settings))


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of TaskBuffers that need no dataset to be found wrong.

    Raises:
        ValueError: names the setting, what was expected and what was found.
    """
    least = {
        "inner_batch_size": 1,
        "outer_batch_size": 1,
        "steps_per_epoch": 1,
        "updates_per_batch": 1,
        "chunk_size": 1,
        "chunks_per_task": 1,
        "prefetch": 0,
        "untrained_episodes": 0,
    }
    for name, smallest in least.items():
        if settings[name] is not None and settings[name] < smallest:
            raise ValueError(f"{name}: expected at least {smallest}, found {settings[name]}.")
    if settings["sampling"] not in ("rows", "chunks"):
        raise ValueError(f"sampling: expected rows or chunks, found {settings['sampling']!r}.")
    if settings["sampling"] == "rows":
        return
    if settings["contiguous"]:
        raise ValueError(
            "contiguous: expected false with sampling chunks, which draws single rows, found true. "
            "Set --data.contiguous false, or --data.sampling rows."
        )
    if settings["device"] not in ("auto", "disk"):
        raise ValueError(
            "device: expected auto or disk with sampling chunks, which keeps the data on the disk, "
            f"found {settings['device']!r}. Set --data.device auto, or --data.sampling rows."
        )


def check_environment(dataset: TaskDataset, env: str) -> None:
    """Check that a dataset is of the environment that was asked for.

    Raises:
        ValueError: it is of another one.
    """
    manifest = dataset.manifest
    env_id = manifest.environment["id"]
    names = {manifest.family, env_id, f"{manifest.environment.get('module')}:{env_id}"}
    if env not in names:
        raise ValueError(
            f"The dataset at {dataset.path} is of {manifest.family} ({env_id}), expected {env}. "
            f"Set --data.env {manifest.family}, or pass another --data.path."
        )


def check_vectors(dataset: TaskDataset) -> None:
    """Check that observations are vectors, for what serves single transitions.

    Raises:
        ValueError: they are images, which are served as whole episodes.
    """
    space = dataset.manifest.observation_space
    if dataset.manifest.has_images:
        raise ValueError(
            f"The dataset at {dataset.path} holds images {space['shape']} {space['dtype']}, "
            "expected vectors: TaskBuffers serves single transitions, images are stored once and "
            "served as whole episodes. Use the datamodule MetaTrajectories (--data "
            "MetaTrajectories), or a dataset of vectors."
        )


def check_vector_family(family: Any) -> None:
    """Check that an agent that is trained online can see the observations of a family.

    Raises:
        ValueError: they are images; the replays hold vectors.
    """
    if family.observation_dtype == "uint8":
        raise ValueError(
            f"family: {family.name} has images {list(family.observation_shape)} as observations, "
            "expected vectors: replays and agents are made for vectors. Its data are collected by "
            "a script: use the datamodule MetaTrajectories, which does so."
        )


def check_intervals(trainer: Any, updates_per_batch: int) -> None:
    """Check that counts of outer steps can be reached with so many outer steps in each batch.

    Raises:
        ValueError: ``max_steps`` or a checkpoint's interval is no multiple of it.
    """
    if trainer is None or updates_per_batch == 1:
        return
    counts = {"trainer.max_steps": trainer.max_steps}
    for callback in trainer.checkpoint_callbacks:
        name = f"every_n_train_steps of {type(callback).__name__}"
        counts[name] = getattr(callback, "_every_n_train_steps", 0)
    for name, count in counts.items():
        if count > 0 and count % updates_per_batch:
            raise ValueError(
                f"{name}: expected a multiple of updates_per_batch {updates_per_batch}, found "
                f"{count}. Change one of them."
            )


def data_device(dataset: TaskDataset, wanted: str, trainer: Any) -> torch.device | None:
    """Return the device for a dataset's fields, None to leave them memory-mapped.

    Args:
        dataset: the dataset.
        wanted: "auto", "disk" for memory-mapped, or a torch device.
        trainer: its device is meant by "auto", as long as the dataset is below 4 GiB.
    """
    own = trainer.strategy.root_device if trainer else torch.device("cpu")
    total = sum(entry.bytes for entry in dataset.manifest.arrays.values())
    if wanted == "disk":
        return None
    if wanted == "auto" and total > RESIDENT_BYTES:
        _LOGGER.info(
            "%s has %.1f GB and stays on the disk. If memory does not hold it besides the "
            "training, --data.sampling chunks is much faster.",
            dataset.path,
            total / 1e9,
        )
        return None
    return own if wanted in ("auto", own.type) else torch.device(wanted)


def make_sampler(dataset: TaskDataset, train_tasks: list[int], settings: Any) -> TaskSampler:
    """Return how batches are drawn with the settings of TaskBuffers, which may be impossible ones.

    Raises:
        ValueError: an unknown stage, or a slice that is longer than a task's data.
    """
    inner = outer = make_buffer(dataset, settings.inner_slice, settings.stride)
    if settings.outer_slice != settings.inner_slice:
        outer = make_buffer(dataset, settings.outer_slice, settings.stride)
    chunks = None
    if settings.sampling == "chunks":
        count = max(1, len(train_tasks))
        chunks = make_chunks(
            inner,
            outer,
            size=settings.chunk_size,
            per_task=settings.chunks_per_task,
            batch_sizes=(settings.inner_batch_size, settings.outer_batch_size),
            share=(settings.tasks_per_batch or count) / count,
            seed=settings.seed,
        )
    return TaskSampler(
        dataset=dataset,
        train_tasks=train_tasks,
        inner=inner,
        outer=outer,
        seed=settings.seed,
        tasks_per_batch=settings.tasks_per_batch,
        inner_size=settings.inner_batch_size,
        outer_size=settings.outer_batch_size,
        updates=settings.updates_per_batch,
        disjoint=settings.disjoint,
        contiguous=settings.contiguous,
        chunks=chunks,
    )


def plain_slice(part: Any) -> dict[str, Any] | list[str] | None:
    """Return a part of the data in plain types, as checkpoints keep it."""
    if part is None:
        return None
    if is_dataclass(part) and not isinstance(part, type):
        return asdict(part)
    if isinstance(part, Mapping):
        return dict(part)
    if isinstance(part, Sequence) and not isinstance(part, str):
        return list(part)
    raise TypeError(
        f"Slice: expected a BufferSlice, a list of stage names or None, found {part!r}."
    )


def _collection(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the collection, those that are None left to its own defaults."""
    chosen = {
        "seed": settings["collect_seed"],
        "task_seed": settings["task_seed"],
        "transitions_per_stage": settings["transitions_per_stage"],
        "untrained_episodes": settings.get("untrained_episodes"),
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _family(env: str) -> Any:
    """Return the task family of a short name or gymnasium id.

    Raises:
        ValueError: there is none.
    """
    import gymnasium

    from offline_meta_rl.envs import FAMILIES, family_of

    module, _, env_id = env.rpartition(":")
    try:
        return family_of({"id": env_id, "module": module})
    except gymnasium.error.Error as error:
        raise ValueError(
            f"Unknown environment {env!r}: expected one of {sorted(FAMILIES)}, or a registered "
            "gymnasium id, as module:Id where a module must be imported first."
        ) from error
