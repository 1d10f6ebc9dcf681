"""Turn result files into the tables and the picture of a results page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from offline_meta_rl.common.files import save_figure
from offline_meta_rl.evaluation.result_files import ResultFile

SUMMARY = (
    "run",
    "outer steps",
    "before",
    "after",
    "normalised before",
    "normalised after",
    "best behaviour",
    "random",
    "outer steps/s",
    "wall time, min",
)
CONTROL = (
    "run",
    "own context",
    "another task's context",
    "normalised, own",
    "normalised, another",
)
BEST = ("run", "best evaluation at step", "after", "normalised after")
Results = Mapping[str, ResultFile]
"""Name of a run -> content of its result file."""


def print_tables(results: Sequence[Path], picture: Path | None = None) -> None:
    """Print the tables of a results page as Markdown: all runs, their controls, the best, tasks.

    A file ``ant_dir_control.json`` beside ``ant_dir.json`` is taken for its control: the same
    weights, adapted on another task's context.

    Args:
        results: Result files of the callback Evaluate.
        picture: PNG of the learning curves; None draws none.

    Raises:
        FileNotFoundError: A result file is not there.
    """
    read = {path.stem: read_results(path) for path in results}
    beside = {path.stem: path.with_name(f"{path.stem}_control.json") for path in results}
    controls = {name: read_results(path) for name, path in beside.items() if path.is_file()}
    print(summary_table(read))
    print(f"\n{control_table(read, controls)}")
    print(f"\n{best_table(read)}")
    for name, result in read.items():
        print(f"\n{name}\n\n{task_table(result)}")
    if picture:
        draw_evaluations(read, picture)


def read_results(path: Path) -> ResultFile:
    """Return the content of a result file.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No result file {path}. A training with the callback Evaluate writes results.json "
            "into its folder."
        )
    return cast(ResultFile, json.loads(path.read_text()))


def summary_table(results: Results) -> str:
    """Return one Markdown row for each run: returns, references, speed."""
    rows = []
    for name, result in results.items():
        before, after = result["before_adaptation"], result["after_adaptation"]
        references, speed = result["references"], result.get("steps_per_second")
        minutes = result.get("wall_time", 0.0) / 60
        rows.append(
            [
                name,
                str(result["global_step"]),
                f"{before['return']:.1f}",
                f"{after['return']:.1f}",
                f"{before['normalised_return']:.2f}",
                f"{after['normalised_return']:.2f}",
                f"{references['best_behaviour']['return']:.1f}",
                f"{references['random']['return']:.1f}",
                f"{speed:.1f}" if speed else "-",
                f"{minutes:.0f}" if minutes else "-",
            ]
        )
    return markdown_table(SUMMARY, rows)


def control_table(results: Results, controls: Results) -> str:
    """Return one Markdown row for each run with a control: own context against another task's."""
    rows = []
    for name, control in controls.items():
        own, other = (each["after_adaptation"] for each in (results[name], control))
        returns = [f"{each['return']:.1f}" for each in (own, other)]
        normalised = [f"{each['normalised_return']:.2f}" for each in (own, other)]
        rows.append([name, *returns, *normalised])
    return markdown_table(CONTROL, rows)


def best_table(results: Results) -> str:
    """Return one Markdown row for each run that has evaluations: the best of them."""
    rows = []
    for name, result in results.items():
        if not result.get("history"):
            continue
        best = max(result["history"], key=lambda point: point["after_normalised_return"])
        numbers = [f"{best['after_return']:.1f}", f"{best['after_normalised_return']:.2f}"]
        rows.append([name, str(best["step"]), *numbers])
    return markdown_table(BEST, rows)


def task_table(result: ResultFile) -> str:
    """Return one Markdown row for each evaluated task of a run."""
    names = list(result["references"])
    rows = []
    for task, after in result["after_adaptation"]["per_task"].items():
        before = result["before_adaptation"]["per_task"][task]
        references = [f"{result['references'][name]['per_task'][task]:.1f}" for name in names]
        numbers = [f"{before['return']:.1f}", f"{after['return']:.1f}"]
        numbers.append(f"{after['normalised_return']:.2f}")
        rows.append([task, *numbers, *references])
    return markdown_table(["task", "before", "after", "normalised after", *names], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def draw_evaluations(results: Results, path: Path) -> None:
    """Draw the normalised return of every run before and after adaptation, one panel each.

    Args:
        results: Runs; those without a history get no panel.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    curves = {name: result["history"] for name, result in results.items() if result.get("history")}
    figure = Figure(figsize=(3.1 * len(curves), 3.2), layout="constrained")
    highest = 1.1
    for axes, (name, history) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        steps = [point["step"] for point in history]
        before = [point["before_normalised_return"] for point in history]
        after = [point["after_normalised_return"] for point in history]
        axes.plot(steps, before, color="tab:grey", label="before adaptation")
        axes.plot(steps, after, color="tab:blue", label="after adaptation")
        highest = max(highest, 1.05 * max(*before, *after))
        axes.axhline(1.0, color="black", linestyle=":", label="best behaviour")
        axes.axhline(0.0, color="black", linestyle="--", label="random actions")
        axes.set(title=name, xlabel="outer steps")
        axes.grid(alpha=0.3)
    for axes in figure.axes:
        axes.set_ylim(-0.6, highest)
    handles, labels = axes.get_legend_handles_labels()
    figure.supylabel("normalised return", fontsize="medium")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
