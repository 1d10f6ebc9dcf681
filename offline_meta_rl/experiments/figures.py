"""Pictures of an experiment: learning curves, intervals, performance profiles, improvement."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offline_meta_rl.common import statistics
from offline_meta_rl.common.files import save_figure
from offline_meta_rl.common.statistics import Array, Estimate
from offline_meta_rl.experiments.gather import ArmResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c564b",
)  # fmt: skip
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Style:
    """How an arm is drawn.

    Attributes:
        label: Name in legends.
        colour: Colour of lines and bands.
        line: Dashes of lines.
    """

    label: str
    colour: str
    line: str

    @classmethod
    def of(cls, position: int, label: str) -> "Style":
        """Return the style of the arm at a place in the experiment."""
        line = LINES[position // len(COLOURS) % len(LINES)]
        return cls(label, COLOURS[position % len(COLOURS)], line)


Styles = Mapping[str, Style]
"""Arm -> how it is drawn."""


def learning_curves(
    arms: Mapping[str, ArmResults], styles: Styles, path: Path, *, title: str, label: str
) -> None:
    """Draw interquartile means over seeds and tasks against outer steps, with 95 % bands.

    The axis of outer steps is logarithmic, as in the paper, from the first evaluation after step 0
    on; below that, and for fine-tuning, it is linear.

    Args:
        arms: Arms of one family.
        styles: Arm -> how it is drawn.
        path: Path of the PNG.
        title: Title of the figure.
        label: Label of the vertical axis.
    """
    first = next(iter(arms.values()))
    with _legend_below(path, height=3.6 + 0.11 * len(arms)) as axes:
        for name, arm in arms.items():
            style, seeds = styles[name], len(arm.runs)
            mean, low, high = statistics.estimated_curve(list(arm.curve))
            axes.plot(
                arm.steps,
                mean,
                label=marked(arm.label, seeds),
                marker=".",
                color=style.colour,
                linestyle=style.line,
            )
            if seeds > 1:
                axes.fill_between(arm.steps, low, high, color=style.colour, alpha=0.18, lw=0)
        positive = [int(step) for arm in arms.values() for step in arm.steps if step > 0]
        if positive and first.axis == "outer steps":
            axes.set_xscale("symlog", linthresh=min(positive), linscale=0.3)
            axes.set_xlim(left=0)
        _reference_lines(axes, first, normalised="normalised" in label)
        axes.set(title=title, xlabel=first.axis, ylabel=label)


def intervals(
    estimates: Mapping[str, Mapping[str, Estimate]], styles: Styles, path: Path, *, label: str
) -> None:
    """Draw one panel for each family: a bar with its interval for each arm.

    Args:
        estimates: Family -> arm -> estimate.
        styles: Arm -> how it is drawn, from top to bottom.
        path: Path of the PNG.
        label: Label of the horizontal axis.
    """
    from matplotlib.figure import Figure

    rows = len(styles)
    size = (1.8 + 2.4 * len(estimates), 1.4 + 0.34 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(estimates), squeeze=False, sharey=True)[0]
    places = {arm: rows - 1 - index for index, arm in enumerate(styles)}
    for axes, (family, arms) in zip(panels, estimates.items(), strict=True):
        for arm, found in arms.items():
            height, colour = places[arm], styles[arm].colour
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
    labels = [styles[arm].label for arm in places]
    panels[0].set_yticks(list(places.values()), labels, fontsize="small")
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
        estimates: Arm -> estimate; arms that are not there leave a gap.
        lines: Label of a line -> place on the axis -> arm.
        path: Path of the PNG.
        title: Title of the figure.
        labels: Labels of the horizontal and the vertical axis.
    """
    places = list(dict.fromkeys(place for line in lines.values() for place in line))
    with _legend_below(path, height=3.4 + 0.12 * len(lines)) as axes:
        for number, (name, line) in enumerate(lines.items()):
            style = Style.of(number, name)
            known = [
                (places.index(at), estimates[arm]) for at, arm in line.items() if arm in estimates
            ]
            middle = [found.value for _, found in known]
            ends = [[f.value - f.low for _, f in known], [f.high - f.value for _, f in known]]
            shifted = [at + 0.06 * (number - (len(lines) - 1) / 2) for at, _ in known]
            few = any(found.mark for _, found in known)
            axes.errorbar(
                shifted,
                middle,
                ends,
                label=f"{name} (fewer than 3 seeds)" if few else name,
                marker="o",
                capsize=3,
                color=style.colour,
                linestyle=style.line,
            )
        axes.set_xticks(range(len(places)), places)
        axes.set(title=title, xlabel=labels[0], ylabel=labels[1])


def profiles(scores: Mapping[str, Array], styles: Styles, path: Path, *, label: str) -> None:
    """Draw the share of runs above every score, with 95 % bands.

    Args:
        scores: Arm -> scores [S, T].
        styles: Arm -> how it is drawn.
        path: Path of the PNG.
        label: Label of the horizontal axis.
    """
    every = np.concatenate([values.reshape(-1) for values in scores.values()])
    spare = 0.03 * (every.max() - every.min() or 1.0)
    levels = np.linspace(every.min() - spare, every.max() + spare, 101)
    with _legend_below(path, height=3.6 + 0.11 * len(scores)) as axes:
        for arm, values in scores.items():
            style = styles[arm]
            share, low, high = statistics.performance_profile(values, levels, resamples=500)
            axes.plot(
                levels,
                share,
                label=marked(style.label, len(values)),
                drawstyle="steps-post",
                color=style.colour,
                linestyle=style.line,
            )
            if len(values) > 1:
                colour = style.colour
                axes.fill_between(levels, low, high, step="post", color=colour, alpha=0.18, lw=0)
        axes.set(xlabel=f"{label} (τ)", ylabel="share of runs above τ", ylim=(-0.02, 1.02))


@contextmanager
def _legend_below(path: Path, *, height: float) -> Iterator["Axes"]:
    """Draw a figure of one panel with a grid and its legend below; write it afterwards.

    Args:
        path: Path of the PNG.
        height: Inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, path)


def marked(label: str, seeds: int) -> str:
    """Return a label that says so if there are too few seeds for an interval."""
    return f"{label} ({seeds} seed{'s' * (seeds > 1)})" if seeds < statistics.FEW_SEEDS else label


def _reference_lines(axes: "Axes", arm: ArmResults, *, normalised: bool) -> None:
    known = {"best behaviour": arm.best_behaviour, "random actions": arm.random}
    values = {"best behaviour": 1.0, "random actions": 0.0} if normalised else known
    for (name, value), line in zip(values.items(), (":", "--"), strict=True):
        if value is not None:
            axes.axhline(value, color="black", linestyle=line, linewidth=1.0, label=name)
