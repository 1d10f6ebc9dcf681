"""Pictures of an experiment: learning curves, intervals, performance profiles, improvement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offline_meta_rl.common import statistics
from offline_meta_rl.common.statistics import Estimate
from offline_meta_rl.experiments.gather import ArmResults
from offline_meta_rl.reports.curves import save_figure

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c564b",
)  # fmt: skip
LINES = ("-", "--", ":", "-.")
Arms = Mapping[str, ArmResults]


def style(position: int) -> dict[str, Any]:
    """Return colour and line of an arm by its place in the experiment."""
    line = LINES[position // len(COLOURS) % len(LINES)]
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": line}


def learning_curves(
    arms: Arms, styles: Mapping[str, dict[str, Any]], path: Path, *, title: str, label: str
) -> None:
    """Draw interquartile means over seeds and tasks against outer steps, with 95 % bands.

    The axis of outer steps is logarithmic, as in the paper, from the first evaluation after step 0
    on; below that, and for fine-tuning, it is linear.

    Args:
        arms: of one family.
        styles: arm -> colour and line.
        path: of the PNG.
        title: of the figure.
        label: of the vertical axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6 + 0.11 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for name, arm in arms.items():
        mean, low, high = statistics.estimated_curve(list(arm.curve))
        axes.plot(
            arm.steps, mean, label=marked(arm.label, len(arm.runs)), marker=".", **styles[name]
        )
        if len(arm.runs) > 1:
            axes.fill_between(arm.steps, low, high, color=styles[name]["color"], alpha=0.18, lw=0)
    positive = [int(step) for arm in arms.values() for step in arm.steps if step > 0]
    counted = next(iter(arms.values())).axis
    if positive and counted == "outer steps":
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.3)
        axes.set_xlim(left=0)
    _reference_lines(axes, next(iter(arms.values())), normalised="normalised" in label)
    axes.set(title=title, xlabel=counted, ylabel=label)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, path)


def intervals(
    estimates: Mapping[str, Mapping[str, Estimate]],
    labels: Mapping[str, str],
    styles: Mapping[str, dict[str, Any]],
    path: Path,
    *,
    label: str,
) -> None:
    """Draw one panel for each family: a bar with its interval for each arm.

    Args:
        estimates: family -> arm -> estimate.
        labels: arm -> label.
        styles: arm -> colour and line.
        path: of the PNG.
        label: of the horizontal axis.
    """
    from matplotlib.figure import Figure

    rows = len(labels)
    size = (1.8 + 2.4 * len(estimates), 1.4 + 0.34 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(estimates), squeeze=False, sharey=True)[0]
    places = {arm: rows - 1 - index for index, arm in enumerate(labels)}
    for axes, (family, arms) in zip(panels, estimates.items(), strict=True):
        for arm, found in arms.items():
            height, colour = places[arm], styles[arm]["color"]
            axes.barh(height, found.high - found.low, 0.7, found.low, color=colour, alpha=0.35)
            axes.plot([found.value] * 2, [height - 0.35, height + 0.35], color=colour, lw=2.5)
            axes.annotate(
                found.mark, (found.high, height), xytext=(3, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
        axes.use_sticky_edges = False  # room beside the lowest bar too
        axes.margins(x=0.1)
        axes.set_title(family, fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(list(places.values()), [labels[arm] for arm in places], fontsize="small")
    panels[0].set_ylim(-0.6, rows - 0.4)
    figure.supxlabel(label, fontsize="medium")
    save_figure(figure, path)


def against(
    estimates: Mapping[str, Estimate],
    lines: Mapping[str, Mapping[str, str]],
    path: Path,
    *,
    title: str,
    labels: tuple[str, str],
) -> None:
    """Draw interquartile means with 95 % intervals against what varies between arms.

    Args:
        estimates: arm -> estimate; arms that are not there leave a gap.
        lines: label of a line -> place on the axis -> arm.
        path: of the PNG.
        title: of the figure.
        labels: of the horizontal and the vertical axis.
    """
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(place for line in lines.values() for place in line))
    figure = Figure(figsize=(6.4, 3.4 + 0.12 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for number, (name, line) in enumerate(lines.items()):
        known = [(places.index(at), estimates[arm]) for at, arm in line.items() if arm in estimates]
        middle = [found.value for _, found in known]
        ends = [[f.value - f.low for _, f in known], [f.high - f.value for _, f in known]]
        shifted = [at + 0.06 * (number - (len(lines) - 1) / 2) for at, _ in known]
        few = any(found.mark for _, found in known)
        text = f"{name} (fewer than 3 seeds)" if few else name
        axes.errorbar(shifted, middle, ends, label=text, marker="o", capsize=3, **style(number))
    axes.set_xticks(range(len(places)), places)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, path)


def profiles(
    scores: Mapping[str, Any],
    labels: Mapping[str, str],
    styles: Mapping[str, dict[str, Any]],
    path: Path,
    *,
    label: str,
) -> None:
    """Draw the share of runs above every score, with 95 % bands.

    Args:
        scores: arm -> scores [S, T].
        labels: arm -> label.
        styles: arm -> colour and line.
        path: of the PNG.
        label: of the horizontal axis.
    """
    from matplotlib.figure import Figure

    every = np.concatenate([values.reshape(-1) for values in scores.values()])
    spare = 0.03 * (every.max() - every.min() or 1.0)
    levels = np.linspace(every.min() - spare, every.max() + spare, 101)
    figure = Figure(figsize=(6.4, 3.6 + 0.11 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for arm, values in scores.items():
        share, low, high = statistics.performance_profile(values, levels, resamples=500)
        axes.plot(levels, share, label=labels[arm], drawstyle="steps-post", **styles[arm])
        if len(values) > 1:
            colour = styles[arm]["color"]
            axes.fill_between(levels, low, high, step="post", color=colour, alpha=0.18, lw=0)
    axes.set(xlabel=f"{label} (τ)", ylabel="share of runs above τ", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, path)


def marked(label: str, seeds: int) -> str:
    """Return a label that says so if there are too few seeds for an interval."""
    return f"{label} ({seeds} seed{'s' * (seeds > 1)})" if seeds < statistics.FEW_SEEDS else label


def _reference_lines(axes: Any, arm: ArmResults, *, normalised: bool) -> None:
    known = {"best behaviour": arm.best_behaviour, "random actions": arm.random}
    values = {"best behaviour": 1.0, "random actions": 0.0} if normalised else known
    for (name, value), line in zip(values.items(), (":", "--"), strict=True):
        if value is not None:
            axes.axhline(value, color="black", linestyle=line, linewidth=1.0, label=name)
