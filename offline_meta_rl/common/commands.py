"""What ``lightning data`` and ``lightning experiment`` share: commands, errors as one message."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it stopped")
    except Exception as error:  # whichever: raised here on purpose, it is about the input
        if os.environ.get(DEBUG_VARIABLE) or not raised_in_project(error):
            raise
        sys.exit(f"error: {error}\n(set {DEBUG_VARIABLE}=1 for the traceback)")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """Return the parser of one more command.

    Args:
        commands: what ``add_subparsers`` returned.
        name: of the command.
        run: what it does with its options.
        text: what it does, in the list of commands and in its own help.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    command.set_defaults(run=run)
    return command


DEBUG_VARIABLE = "OFFLINE_META_RL_DEBUG"
PACKAGES = {"offline_meta_rl", "datamodules", "callbacks"}


def raised_in_project(error: BaseException) -> bool:
    """Whether the error was raised by this project's code, so that its message says all."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.split(".")[0] in PACKAGES
