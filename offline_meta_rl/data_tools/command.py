"""``lightning data info | validate | plot | convert | merge | split``.

Only what parsing needs is imported here; a command imports its tools when it runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offline_meta_rl.common.commands import add_command, run_command

FORMATS = ("native", "minari", "macaw", "folder")
DATASET = "a dataset: its folder, or a URL that fsspec knows (s3://, https://, ...)"
WIDTH = 180  # of tables that go into a file or a pipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    run_command(parser(), arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    root = argparse.ArgumentParser(
        prog="lightning data", description="Look at datasets, check, convert, merge and split them."
    )
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    info = add_command(
        commands, "info", _info, "print tasks, counts, returns, spaces and provenance"
    )
    info.add_argument("dataset", help=DATASET)
    info.add_argument("--json", action="store_true", help="print JSON instead of tables")

    validate = add_command(
        commands,
        "validate",
        _validate,
        "check files, numbers, episodes and returns to go; exit with 1 if anything is wrong",
    )
    validate.add_argument("dataset", help=f"{DATASET}; or data that `convert` reads")
    validate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _describing(validate)

    plot = add_command(
        commands,
        "plot",
        _plot,
        "draw returns per task, behaviour learning curves and the overlap of visited states",
    )
    plot.add_argument("dataset", help=DATASET)
    plot.add_argument("picture", type=Path, help="PNG to write")

    convert = add_command(
        commands,
        "convert",
        _convert,
        "make a dataset from Minari, MACAW's HDF5 or plain files, or Minari datasets from one",
    )
    convert.add_argument("source", help="folder of the data, or URL of a dataset")
    convert.add_argument("target", help="folder to write; an interrupted conversion is continued")
    convert.add_argument(
        "--to", choices=("native", "minari"), default="native", help="default: %(default)s"
    )
    _describing(convert)

    merge = add_command(
        commands, "merge", _merge, "join datasets: more tasks, or more episodes of the same tasks"
    )
    merge.add_argument("datasets", nargs="+", help=DATASET)
    merge.add_argument("--into", required=True, metavar="FOLDER", help="folder to write")

    split = add_command(commands, "split", _split, "take tasks, stages or a share of the episodes")
    split.add_argument("dataset", help=DATASET)
    split.add_argument("target", help="folder to write the chosen episodes to")
    split.add_argument("--rest", metavar="FOLDER", help="folder to write all other episodes to")
    split.add_argument("--tasks", type=_numbers, metavar="N,N-N", help="tasks, such as 0,2,5-9")
    split.add_argument("--stages", type=_names, metavar="NAME,NAME", help="behaviour stages")
    split.add_argument(
        "--fraction", type=float, help="share of the episodes of every task and stage, at random"
    )
    split.add_argument("--seed", type=int, default=0, help="of --fraction; default: %(default)s")
    return root


def _describing(command: argparse.ArgumentParser) -> None:
    """Add the options that describe data of others."""
    group = command.add_argument_group("data that does not describe itself")
    group.add_argument("--from", dest="form", choices=FORMATS, help="format; default: look")
    group.add_argument(
        "--description",
        type=Path,
        metavar="FILE",
        help="YAML or JSON with family, environment, horizon, task_parameters, splits, stages, "
        "reference_returns; default: description.yaml beside the data",
    )
    group.add_argument("--family", help="short name of the task family")
    group.add_argument("--task-seed", type=int, help="the tasks are the family's own of this seed")
    group.add_argument("--test-tasks", type=_numbers, metavar="N,N-N", help="held-out tasks")
    group.add_argument(
        "--stride", type=int, default=1, metavar="K", help="MACAW: keep every K-th episode"
    )
    group.add_argument(
        "--task-pickles",
        type=Path,
        metavar="FOLDER",
        help="MACAW: folder of env_*.pkl with the task parameters; no code in them is run",
    )


def _numbers(text: str) -> list[int]:
    """Parse ``0,2,5-9``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _names(text: str) -> list[str]:
    return text.split(",")


def _open(name: str) -> Any:
    """Open a dataset; its content is checked as it is read."""
    from offline_meta_rl.data.dataset import TaskDataset
    from offline_meta_rl.data.remote import local_dataset

    return TaskDataset.open(local_dataset(name))


def _source(name: str, options: argparse.Namespace) -> Any:
    from offline_meta_rl.data_tools.detect import open_source

    given = {
        "family": options.family,
        "task_seed": options.task_seed,
        "test_tasks": options.test_tasks,
    }
    return open_source(
        name,
        form=options.form,
        description=options.description,
        options={key: value for key, value in given.items() if value is not None},
        stride=options.stride,
        pickles=options.task_pickles,
    )


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _info(options: argparse.Namespace) -> None:
    from offline_meta_rl.data_tools.info import information, print_information

    found = information(_open(options.dataset))
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print_information(found, _console())


def _validate(options: argparse.Namespace) -> None:
    from rich.markup import escape
    from rich.table import Table

    from offline_meta_rl.data.remote import local_dataset
    from offline_meta_rl.data_tools.detect import format_of
    from offline_meta_rl.data_tools.validate import validate, validate_source

    folder = local_dataset(options.dataset)
    if (options.form or format_of(folder)) == "native":
        findings = validate(folder)
    else:
        findings = validate_source(_source(str(folder), options))
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    elif findings:
        table = Table(
            title=f"{escape(str(folder))}: {len(findings)} findings", title_justify="left"
        )
        for name in ("task", "array", "row", "what is wrong"):
            table.add_column(name, overflow="fold")
        for finding in findings:
            table.add_row(*("" if part is None else escape(str(part)) for part in finding))
        _console().print(table)
    else:
        print(f"{folder}: nothing is wrong")
    if findings:
        sys.exit(1)


def _plot(options: argparse.Namespace) -> None:
    from offline_meta_rl.data_tools.plot import plot

    plot(_open(options.dataset), options.picture)
    print(options.picture)


def _convert(options: argparse.Namespace) -> None:
    from offline_meta_rl.data_tools.source import write_dataset

    source = _source(options.source, options)
    if options.to == "minari":
        from offline_meta_rl.data_tools.formats.minari_write import write_minari

        print(write_minari(source, options.target))
    else:
        print(write_dataset(source, options.target, label="Converting"))


def _merge(options: argparse.Namespace) -> None:
    from offline_meta_rl.data_tools.merge import merged
    from offline_meta_rl.data_tools.source import write_dataset

    datasets = [_open(name) for name in options.datasets]
    print(write_dataset(merged(datasets), options.into, label="Merging"))


def _split(options: argparse.Namespace) -> None:
    from offline_meta_rl.data_tools.merge import chosen_episodes, selected
    from offline_meta_rl.data_tools.source import write_dataset

    choice = {name: getattr(options, name) for name in ("tasks", "stages", "fraction")}
    if all(value is None for value in choice.values()):
        raise ValueError("Expected --tasks, --stages or --fraction, found none. Name what to take.")
    choice["seed"] = options.seed
    dataset = _open(options.dataset)
    keep = chosen_episodes(dataset, **choice)
    parts = [(options.target, keep)] + ([(options.rest, ~keep)] if options.rest else [])
    sources = [
        (target, selected(dataset, mask, choice | {"rest": target != options.target}))
        for target, mask in parts
    ]
    for target, source in sources:
        if not (options.rest and Path(target).exists()):
            write_dataset(source, target, label="Splitting")
        print(target)
