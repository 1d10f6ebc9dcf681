"""Where the command starts: ``lightning data`` and ``lightning experiment`` load no Lightning."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ``arguments`` default to the process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["data"]:
        from offline_meta_rl.data_tools.command import main as data

        data(given[1:])
    elif given[:1] == ["experiment"]:
        from offline_meta_rl.experiments.command import main as experiment

        experiment(given[1:])
    else:
        from offline_meta_rl.cli import main as lightning

        lightning(given)
