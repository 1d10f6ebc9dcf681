"""What LifetimeBuffers refuse: impossible settings, and replays other than those to go on with."""

import json
from collections.abc import Sequence
from pathlib import Path

import lightning

from datamodules.replay import check_one_process
from offline_meta_rl.common.files import write_json
from offline_meta_rl.data.lifetimes import LifetimeStorage
from offline_meta_rl.envs.base import TaskFamily

PROGRESS_FILE = "progress.json"


def check_lifetime(
    family: TaskFamily, tasks: Sequence[int], lifetime_steps: int, warmup_steps: int, stages: int
) -> None:
    """Check the tasks and that every stage of a lifetime holds whole episodes.

    Raises:
        ValueError: Names the argument, what was expected and what was found.
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


def check_trainer(trainer: lightning.Trainer, planned_updates: int, path: Path) -> None:
    """Check that one process trains, no longer than the lifetimes, towards a new dataset.

    Raises:
        ValueError: Several processes, or more updates than the lifetimes hold.
        FileExistsError: The dataset is there already.
    """
    check_one_process(trainer, "LifetimeBuffers")
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


def write_progress(storage: LifetimeStorage, steps: int) -> None:
    """Record how many steps of every lifetime are safely on the disk."""
    write_json(storage.folder / PROGRESS_FILE, {"steps": steps})


def progress(storage: LifetimeStorage) -> int:
    """Return how many steps of every lifetime were safely on the disk when last noted."""
    file = storage.folder / PROGRESS_FILE
    return int(json.loads(file.read_text())["steps"]) if file.is_file() else 0


def check_fresh_start(partial: Path, storage: LifetimeStorage, updates: int) -> None:
    """Check that no lifetimes were begun, neither in the replays nor by the agents.

    Args:
        partial: Folder of the dataset to be.
        storage: The replays in it.
        updates: Updates that the agents have had.

    Raises:
        ValueError: The agents come from a checkpoint.
        FileExistsError: There are replays.
    """
    if updates:
        raise ValueError(
            "The checkpoint's agents have learned already, and it holds no lifetimes: "
            "expected one of a run with LifetimeBuffers. Start without --ckpt_path."
        )
    found = progress(storage)
    if found:
        raise FileExistsError(
            f"{partial} holds {found} steps of every lifetime. Go on with --ckpt_path of the run's "
            "last checkpoint, remove that folder, or pass another --data.init_args.path."
        )


def check_same_lifetimes(
    partial: Path, storage: LifetimeStorage, steps: int, fingerprint: str
) -> None:
    """Check that the replays are those of the checkpoint's run.

    Args:
        partial: Folder of the dataset to be.
        storage: The replays in it.
        steps: Steps of every lifetime that the checkpoint's run had taken.
        fingerprint: Fingerprint of the replays at that time.

    Raises:
        ValueError: They are others, or have fewer steps.
    """
    if storage.fingerprint(steps) != fingerprint:
        raise ValueError(
            f"{partial}: expected the replays of the checkpoint's run, {steps} steps of every "
            f"lifetime, found others ({progress(storage)} steps). They lie beside the run's "
            "dataset: keep them together with its checkpoints."
        )
