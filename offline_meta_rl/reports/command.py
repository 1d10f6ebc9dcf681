"""``lightning report tables | dataset | exploration | probe | strips | sawyer_scene``.

What the pages of results show. Only what parsing needs is imported here.
"""

from collections.abc import Sequence
from pathlib import Path

from offline_meta_rl.common.commands import Commands


def tables(results: list[Path], *, picture: Path | None = None) -> None:
    """Print result files as Markdown tables, and draw their learning curves.

    A file ant_dir_control.json beside ant_dir.json is taken for its control.

    Args:
        results: Result files of Evaluate.
        picture: PNG of the learning curves to write.
    """
    from offline_meta_rl.reports.tables import print_tables

    print_tables(results, picture)


def dataset(data: str) -> None:
    """Print what a dataset holds, stage by stage, as a Markdown table.

    Args:
        data: Short name of a task family, whose data are collected first unless they are there,
            or a dataset's folder.
    """
    from offline_meta_rl.reports.datasets import print_dataset

    print_dataset(data)


def exploration(
    *, arm: list[str], picture: Path | None = None, diagnosis: Path | None = None
) -> None:
    """Print success by the number of exploration episodes as a table, and draw it.

    Args:
        arm: NAME=FILE,FILE,... with one result file of EvaluateExploration for each seed; repeat
            the option for more arms.
        picture: PNG of success by exploration episodes to write.
        diagnosis: PNG of what beliefs say about the task to write.

    Raises:
        ValueError: An arm that is not NAME=FILE,FILE,...
    """
    from offline_meta_rl.reports.exploration import print_exploration

    print_exploration(arm=arm, picture=picture, diagnosis=diagnosis)


def print_probe(*, arm: list[str]) -> None:
    """Print how well the task can be read from filters' beliefs, as a table.

    Args:
        arm: NAME=FILE,FILE,... with one result file of WatchBeliefs for each seed; repeat the
            option for more arms.

    Raises:
        ValueError: An arm that is not NAME=FILE,FILE,...
    """
    from offline_meta_rl.reports.exploration import print_probe_table

    print_probe_table(arm=arm)


def strips(family: str, picture: Path, *, every: int = 1, seed: int = 0) -> None:
    """Draw episodes of a scripted policy as agents see them, one row for each task.

    Args:
        family: Short name of a task family with a script.
        picture: PNG to write.
        every: Draw every K-th step.
        seed: Seed of starts and noise.

    Raises:
        ValueError: The family has no script.
    """
    from offline_meta_rl.reports.strips import draw_script

    draw_script(family, picture, every=every, seed=seed)


def sawyer_scene(picture: Path, *, seed: int = 0) -> None:
    """Draw the scene of two_drawer_sawyer, and what the agent sees at each drawer.

    Args:
        picture: PNG to write.
        seed: Seed of starts and noise.
    """
    from offline_meta_rl.reports.sawyer_scene import draw_sawyer

    draw_sawyer(picture, seed=seed)


COMMANDS = Commands(
    "lightning report",
    "Print the tables and draw the pictures of a page of results.",
    {
        "tables": tables,
        "dataset": dataset,
        "exploration": exploration,
        "probe": print_probe,
        "strips": strips,
        "sawyer_scene": sawyer_scene,
    },
    example="lightning report tables runs/quickstart/results.json --picture curve.png",
)


def report_command(arguments: Sequence[str]) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    COMMANDS.run(arguments)
