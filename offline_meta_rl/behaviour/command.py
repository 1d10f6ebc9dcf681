"""``lightning behaviour``: the policies that datasets are collected with.

The functions import what they need themselves, so that their help does not wait for a simulator.
"""

from collections.abc import Sequence
from pathlib import Path

from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.common.commands import Commands


def pack_snapshots(
    family: str,
    folder: Path,
    *,
    stages: int = 5,
    steps: list[int] | None = None,
    out: Path | None = None,
) -> None:
    """Choose snapshots of a behaviour agent from poor to expert, and pack them as one file.

    The agent comes from `lightning fit --config configs/behaviour/ant.yaml` and the like. Datasets
    of the family are collected with what was packed last.

    Args:
        family: Short name of the task family, such as ant_dir.
        folder: Folder with the training's <step>.pt files, such as runs/behaviour/ant/snapshots.
        stages: How many snapshots to choose.
        steps: Choose these training steps instead.
        out: File to write. By default the package's own.

    Raises:
        FileNotFoundError: No snapshot in the folder.
        ValueError: The family has no learned behaviour, or there are too few snapshots.
    """
    from offline_meta_rl.behaviour.pack import pack_policies

    for line in pack_policies(family, folder, stages=stages, steps=steps, out=out):
        print(line)


def collect_dataset(
    family: str,
    collection: Collection,
    *,
    path: Path | None = None,
    num_threads: int | None = None,
) -> None:
    """Collect the dataset of a family without training on it; go on if it was interrupted.

    Args:
        family: Short name of the task family, such as ant_dir.
        collection: Seeds, and how much of what is collected.
        path: Folder of the dataset. By default where `lightning fit` looks for it.
        num_threads: Threads of the simulator. By default one per core.

    Raises:
        ValueError: An unknown family, or an interrupted collection with other settings.
    """
    from offline_meta_rl.behaviour.collect import collect, default_dataset_path
    from offline_meta_rl.envs import FAMILIES

    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {sorted(FAMILIES)}, found {family!r}.")
    found = FAMILIES[family]
    if path is None:
        path = default_dataset_path(found, collection)
    written = collect(found, path, collection, num_threads=num_threads)
    print(written)


COMMANDS = Commands(
    "lightning behaviour",
    "Collect datasets, and make the behaviour policies for them.",
    {"collect": collect_dataset, "pack": pack_snapshots},
    example="lightning behaviour pack ant_dir runs/behaviour/ant/snapshots",
)


def behaviour_command(arguments: Sequence[str]) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    COMMANDS.run(arguments)
