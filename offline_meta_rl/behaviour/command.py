"""``lightning behaviour pack``: the shipped behaviour policies."""

from collections.abc import Sequence
from pathlib import Path

from offline_meta_rl.common.commands import Commands


def pack(
    family: str,
    folder: Path,
    *,
    stages: int = 5,
    steps: list[int] | None = None,
    out: Path | None = None,
) -> None:
    """Choose snapshots of behaviour agents from poor to expert, and pack them as one file.

    Args:
        family: Short name of the task family that they were trained on.
        folder: Folder with <step>.pt snapshots of the callback BehaviourSnapshots.
        stages: How many snapshots to choose.
        steps: Choose these training steps instead.
        out: File to write. By default the package's own.

    Raises:
        ValueError: The family has no learned behaviour, or there are too few snapshots.
    """
    from offline_meta_rl.behaviour.pack import pack_snapshots

    for line in pack_snapshots(family, folder, stages=stages, steps=steps, out=out):
        print(line)


COMMANDS = Commands(
    "lightning behaviour",
    "Make the behaviour policies that datasets are collected with.",
    {"pack": pack},
    example="lightning behaviour pack ant_dir runs/collect_ant/snapshots",
)


def main(arguments: Sequence[str]) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    COMMANDS.run(arguments)
