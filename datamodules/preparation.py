"""What a datamodule does before its first batch: find the dataset, collect it, check settings."""

from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.description import Environment
from offline_meta_rl.data.manifest import MANIFEST_FILE, Manifest
from offline_meta_rl.data.remote import local_dataset

if TYPE_CHECKING:
    from offline_meta_rl.envs.base import TaskFamily  # imports the simulators


def dataset_path(env: str, path: str | None, collection: Collection) -> Path:
    """Return the dataset's folder: ``path``, or the default place of what ``env`` collects.

    A dataset at a URL is copied into the local cache first, unless it is there.
    """
    if path is not None:
        return local_dataset(path)
    from offline_meta_rl.behaviour.collect import default_dataset_path

    return default_dataset_path(family_named(env), collection)


def data_sizes(env: str, path: Path) -> DataSizes:
    """Return the sizes of a dataset, or of the family whose data are to be collected.

    Args:
        env: Short name of the family, or gymnasium id.
        path: The dataset's folder, which need not exist yet.
    """
    if (path / MANIFEST_FILE).is_file():
        return DataSizes.of_manifest(Manifest.read(path))
    return family_named(env).sizes()


def prepare_dataset(env: str, path: Path, collection: Collection, *, collecting: bool) -> None:
    """Collect the dataset unless it exists or ``collecting`` is off.

    Of several processes one collects; the others wait and find it finished.

    Raises:
        FileNotFoundError: It does not exist, and ``collecting`` is off.
    """
    if path.exists():
        return
    if not collecting:
        raise FileNotFoundError(
            f"No dataset at {path}, and collecting is off. Pass --data.path of a dataset, or "
            "--data.collect true."
        )
    from offline_meta_rl.behaviour.collect import collect

    collect(family_named(env), path, collection)


def family_named(env: str) -> "TaskFamily":
    """Return the task family of a short name or gymnasium id.

    Raises:
        ValueError: There is none.
    """
    import gymnasium

    from offline_meta_rl.envs import FAMILIES, family_of

    module, _, env_id = env.rpartition(":")
    environment: Environment = {"id": env_id, "module": module}
    try:
        return family_of(environment)
    except gymnasium.error.Error as error:
        raise ValueError(
            f"Unknown environment {env!r}: expected one of {sorted(FAMILIES)}, or a registered "
            "gymnasium id, as module:Id where a module must be imported first."
        ) from error


def check_environment(dataset: TaskDataset, env: str) -> None:
    """Check that a dataset is of the environment that was asked for.

    Raises:
        ValueError: It is of another one.
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
        ValueError: They are images, which are served as whole episodes.
    """
    space = dataset.manifest.observation_space
    if dataset.manifest.has_images:
        raise ValueError(
            f"The dataset at {dataset.path} holds images {space['shape']} {space['dtype']}, "
            "expected vectors: TaskBuffers serves single transitions, images are stored once and "
            "served as whole episodes. Use the datamodule MetaTrajectories (--data "
            "MetaTrajectories), or a dataset of vectors."
        )


def check_vector_family(family: "TaskFamily") -> None:
    """Check that an agent that is trained online can see the observations of a family.

    Raises:
        ValueError: They are images; the replays hold vectors.
    """
    if family.observation_dtype == "uint8":
        raise ValueError(
            f"family: {family.name} has images {list(family.observation_shape)} as observations, "
            "expected vectors: replays and agents are made for vectors. Its data are collected by "
            "a script: use the datamodule MetaTrajectories, which does so."
        )


def check_intervals(trainer: lightning.Trainer | None, updates: int) -> None:
    """Check that counts of outer steps can be reached with so many outer steps in each batch.

    Args:
        trainer: None outside of a run.
        updates: Outer steps in each batch.

    Raises:
        ValueError: ``max_steps`` or a checkpoint's interval is no multiple of it.
    """
    if trainer is None or updates == 1:
        return
    counts = {"trainer.max_steps": trainer.max_steps}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            # Lightning has no public name for what its constructor calls every_n_train_steps.
            interval = callback._every_n_train_steps
            counts[f"every_n_train_steps of {type(callback).__name__}"] = interval
    for name, count in counts.items():
        if count > 0 and count % updates:
            raise ValueError(
                f"{name}: expected a multiple of the {updates} updates of a batch, found {count}. "
                "Change one of them."
            )
