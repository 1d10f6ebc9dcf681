"""``lightning data info | validate | plot | convert | merge | split``.

Only what parsing needs is imported here: a command imports its tools when it runs, and none but
those that check returns or fill in a built-in family needs PyTorch.
"""

import json as json_format
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offline_meta_rl.common.commands import Commands

if TYPE_CHECKING:
    from rich.console import Console

    from offline_meta_rl.data.source import TaskSource
    from offline_meta_rl.data.stored import StoredDataset

WIDTH = 180  # of tables that go into a file or a pipe
Format = Literal["native", "minari", "macaw", "folder"]


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What data of others does not say about itself.

    Attributes:
        from_: Format of the data. By default the files tell.
        description: YAML or JSON with family, environment, horizon, task_parameters, splits,
            stages, reference_returns. By default description.yaml beside the data.
        family: Short name of the task family.
        task_seed: The tasks are the family's own of this seed.
        test_tasks: Held-out tasks, such as 0,2,5-9.
        stride: Keep every K-th episode of MACAW's data.
        task_pickles: Folder of MACAW's env_*.pkl with the task parameters. No code in them is run.
    """

    from_: Format | None = None
    description: Path | None = None
    family: str | None = None
    task_seed: int | None = None
    test_tasks: str | None = None
    stride: int = 1
    task_pickles: Path | None = None

    def open(self, source: str) -> "TaskSource":
        """Open data of any format; its content is checked as it is read."""
        from offline_meta_rl.data_tools.detect import open_source

        given = {
            "family": self.family,
            "task_seed": self.task_seed,
            "test_tasks": numbers(self.test_tasks, "--test_tasks"),
        }
        return open_source(
            source,
            form=self.from_,
            description=self.description,
            options={key: value for key, value in given.items() if value is not None},
            stride=self.stride,
            pickles=self.task_pickles,
        )


def info(dataset: str, *, json: bool = False) -> None:
    """Print tasks, counts, returns, spaces and provenance.

    Args:
        dataset: Folder of the dataset, or a URL that fsspec knows (s3://, https://, ...).
        json: Print JSON instead of tables.
    """
    from offline_meta_rl.data_tools.info import information, print_information

    found = information(_open(dataset, verify=False))  # what is read is checked
    if json:
        print(json_format.dumps(found, indent=1))
    else:
        print_information(found, _console())


def validate_dataset(dataset: str, foreign: Foreign, *, json: bool = False) -> None:
    """Check files, numbers, episodes and returns to go; exit with 1 if anything is wrong.

    Args:
        dataset: Folder or URL of a dataset, or data that `convert` reads.
        foreign: What data of others does not say about itself.
        json: Print JSON instead of a table.
    """
    from rich.markup import escape
    from rich.table import Table

    from offline_meta_rl.data.remote import local_dataset
    from offline_meta_rl.data_tools.detect import format_of
    from offline_meta_rl.data_tools.validate import validate as findings_of
    from offline_meta_rl.data_tools.validate import validate_source

    folder = local_dataset(dataset)
    if (foreign.from_ or format_of(folder)) == "native":
        findings = findings_of(folder)
    else:
        findings = validate_source(foreign.open(str(folder)))
    if json:
        print(json_format.dumps([finding._asdict() for finding in findings], indent=1))
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


def plot_dataset(dataset: str, picture: Path) -> None:
    """Draw returns per task, behaviour learning curves and the overlap of visited states.

    Args:
        dataset: Folder or URL of the dataset.
        picture: PNG to write.
    """
    from offline_meta_rl.data_tools.plot import plot as draw

    draw(_open(dataset), picture)
    print(picture)


def convert(
    source: str, target: str, foreign: Foreign, *, to: Literal["native", "minari"] = "native"
) -> None:
    """Make a dataset from Minari, MACAW's HDF5 or plain files, or Minari datasets from one.

    Args:
        source: Folder of the data, or URL of a dataset.
        target: Folder to write. The same command continues an interrupted conversion.
        foreign: What data of others does not say about itself.
        to: Format to write.
    """
    opened = foreign.open(source)
    if to == "minari":
        from offline_meta_rl.data_tools.formats.minari_write import write_minari

        print(write_minari(opened, target))
    else:
        _write(opened, target, "Converting")


def merge(datasets: list[str], *, into: str) -> None:
    """Join datasets: more tasks, or more episodes of the same tasks.

    Args:
        datasets: Folders or URLs of the datasets.
        into: Folder to write.
    """
    from offline_meta_rl.data_tools.merge import merged

    _write(merged([_open(name) for name in datasets]), into, "Merging")


def split(
    dataset: str,
    target: str,
    *,
    rest: str | None = None,
    tasks: str | None = None,
    stages: str | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> None:
    """Take tasks, stages or a share of the episodes.

    Args:
        dataset: Folder or URL of the dataset.
        target: Folder to write the chosen episodes to.
        rest: Folder to write all other episodes to.
        tasks: Tasks to take, such as 0,2,5-9.
        stages: Behaviour stages to take, such as poor,expert.
        fraction: Share of the episodes of every task and stage to take at random, 0 to 1.
        seed: Seed of the random choice.

    Raises:
        ValueError: Nothing says what to take.
    """
    from offline_meta_rl.data_tools.merge import chosen_episodes, selected

    if tasks is None and stages is None and fraction is None:
        raise ValueError("Expected --tasks, --stages or --fraction, found none. Name what to take.")
    opened = _open(dataset)
    chosen, named = numbers(tasks, "--tasks"), stages.split(",") if stages else None
    keep = chosen_episodes(opened, tasks=chosen, stages=named, fraction=fraction, seed=seed)
    choice = {"tasks": chosen, "stages": named, "fraction": fraction, "seed": seed}
    parts = [(target, keep)] + ([(rest, ~keep)] if rest else [])
    sources = [
        (folder, selected(opened, mask, choice | {"rest": folder != target}))
        for folder, mask in parts
    ]
    for folder, source in sources:
        if rest and Path(folder).exists():
            print(folder)
        else:
            _write(source, folder, "Splitting")


COMMANDS = Commands(
    "lightning data",
    "Look at datasets, check, convert, merge and split them.",
    {
        "info": info,
        "validate": validate_dataset,
        "plot": plot_dataset,
        "convert": convert,
        "merge": merge,
        "split": split,
    },
    example="lightning data info my_dataset\nlightning data convert my_files my_dataset",
)


def data_command(arguments: Sequence[str]) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    COMMANDS.run(arguments)


def numbers(text: str | None, option: str) -> list[int] | None:
    """Return the tasks in a text such as ``0,2,5-9``; None without one.

    Args:
        text: Numbers and ranges, separated by commas.
        option: Where the text comes from, for the message.

    Raises:
        ValueError: The text is something else.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            found += range(int(first), int(last or first) + 1)
        except ValueError:
            raise ValueError(
                f"{option}: expected tasks such as 0,2,5-9, found {text!r}. Separate numbers and "
                "ranges by commas."
            ) from None
    return found


def _open(name: str, verify: bool | None = None) -> "StoredDataset":
    """Open a dataset; see ``StoredDataset.open`` for ``verify``."""
    from offline_meta_rl.data.remote import local_dataset
    from offline_meta_rl.data.stored import StoredDataset

    return StoredDataset.open(local_dataset(name), verify)


def _write(source: "TaskSource", target: str, label: str) -> None:
    """Write a dataset; say what it holds and what to do next."""
    from offline_meta_rl.data.manifest import MANIFEST_FILE, Manifest
    from offline_meta_rl.data.source import write_dataset

    started = time.monotonic()
    path = write_dataset(source, target, label=label)
    print(path)
    manifest = Manifest.from_json((path / MANIFEST_FILE).read_text(), path / MANIFEST_FILE)
    print(
        f"{manifest.num_tasks} tasks, {sum(manifest.num_episodes)} episodes, "
        f"{sum(manifest.num_transitions)} transitions in {time.monotonic() - started:.1f} s. "
        f"Next: lightning data info {path}",
        file=sys.stderr,
    )


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
