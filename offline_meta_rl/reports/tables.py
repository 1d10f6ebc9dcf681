"""Turn result files into the tables and the picture of a results page.

    lightning report tables docs/results/macaw/ant_dir.json --picture macaw.png

A file ``ant_dir_control.json`` beside ``ant_dir.json`` is taken for its control: the same weights,
adapted on another task's context.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
SUMMARY = "| run | outer steps | before | after | normalised before | normalised after | "
SUMMARY += "best behaviour | random | outer steps/s | wall time, min |"
CONTROL = "| run | own context | another task's context | normalised, own | normalised, another |"
BEST = "| run | best evaluation at step | after | normalised after |"


def summary_table(results: Mapping[str, Result]) -> str:
    """Return one Markdown row for each result file (name -> content)."""
    lines = [SUMMARY, "|---" * (SUMMARY.count("|") - 1) + "|"]
    for name, result in results.items():
        before, after = result["before_adaptation"], result["after_adaptation"]
        references = result["references"]
        cells = [
            name,
            str(result["global_step"]),
            f"{before['return']:.1f}",
            f"{after['return']:.1f}",
            f"{before['normalised_return']:.2f}",
            f"{after['normalised_return']:.2f}",
            f"{references['best_behaviour']['return']:.1f}",
            f"{references['random']['return']:.1f}",
            f"{result['steps_per_second']:.1f}" if result.get("steps_per_second") else "-",
            f"{result['wall_time'] / 60:.0f}" if result.get("wall_time") else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def control_table(results: Mapping[str, Result], controls: Mapping[str, Result]) -> str:
    """Return one Markdown row for each run with a control: own context against another task's."""
    lines = [CONTROL, "|---" * (CONTROL.count("|") - 1) + "|"]
    for name, control in controls.items():
        own, other = (each["after_adaptation"] for each in (results[name], control))
        lines.append(
            f"| {name} | {own['return']:.1f} | {other['return']:.1f} "
            f"| {own['normalised_return']:.2f} | {other['normalised_return']:.2f} |"
        )
    return "\n".join(lines)


def best_table(results: Mapping[str, Result]) -> str:
    """Return one Markdown row for each run: the best of its evaluations."""
    lines = [BEST, "|---" * (BEST.count("|") - 1) + "|"]
    for name, result in results.items():
        best = max(result["history"], key=lambda point: point["after_normalised_return"])
        lines.append(
            f"| {name} | {best['step']} | {best['after_return']:.1f} "
            f"| {best['after_normalised_return']:.2f} |"
        )
    return "\n".join(lines)


def task_table(result: Result) -> str:
    """Return one Markdown row for each evaluated task."""
    names = list(result["references"])
    header = ["task", "before", "after", "normalised after", *names]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for task, after in result["after_adaptation"]["per_task"].items():
        before = result["before_adaptation"]["per_task"][task]
        references = [f"{result['references'][name]['per_task'][task]:.1f}" for name in names]
        numbers = [f"{before['return']:.1f}", f"{after['return']:.1f}"]
        numbers.append(f"{after['normalised_return']:.2f}")
        lines.append("| " + " | ".join([task, *numbers, *references]) + " |")
    return "\n".join(lines)


def draw(results: Mapping[str, Result], path: Path) -> None:
    """Draw the normalised return of every run before and after adaptation, one panel each."""
    from matplotlib.figure import Figure

    curves = {name: result for name, result in results.items() if result.get("history")}
    figure = Figure(figsize=(3.1 * len(curves), 3.2), layout="constrained")
    highest = 1.1
    for axes, (name, result) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        steps = [point["step"] for point in result["history"]]
        for when, colour in (("before", "tab:grey"), ("after", "tab:blue")):
            values = [point[f"{when}_normalised_return"] for point in result["history"]]
            axes.plot(steps, values, color=colour, label=f"{when} adaptation")
            highest = max(highest, 1.05 * max(values))
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
    figure.savefig(path, dpi=120)


def with_controls(files: Sequence[Path]) -> tuple[dict[str, Result], dict[str, Result]]:
    """Read result files, and the controls beside those that have one.

    Returns:
        Name of the file -> content, of the files and of their controls.
    """
    results = {path.stem: json.loads(path.read_text()) for path in files}
    beside = {path.stem: path.with_name(f"{path.stem}_control.json") for path in files}
    controls = {name: json.loads(p.read_text()) for name, p in beside.items() if p.is_file()}
    return results, controls
