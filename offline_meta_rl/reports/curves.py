"""Pictures of learning: over outer steps, over an agent's lifetime, over a fine-tuning.

Matplotlib is imported when a picture is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offline_meta_rl.common.files import save_figure
from offline_meta_rl.evaluation.result_files import HistoryPoint, TaskCurve

if TYPE_CHECKING:
    pass

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LifetimeCurve:
    """Episodes of one agent, in order of time.

    Attributes:
        title: Title of its panel.
        steps: Environment steps at the end of each of E episodes, [E].
        returns: Their returns, [E].
        references: Name -> return of a reference policy, drawn as a line; None where not known.
    """

    title: str
    steps: ArrayLike
    returns: ArrayLike
    references: Mapping[str, float | None]


def learning_curve(
    history: Sequence[HistoryPoint], path: str | Path, *, standing_still: float | None = None
) -> None:
    """Draw held-out returns before and after adaptation against outer steps.

    Args:
        history: Points of the learning curve.
        path: Path of the PNG; replaced when complete.
        standing_still: Normalised return of standing still, drawn as a line; None for no line.
    """
    from matplotlib.figure import Figure

    steps = [point["step"] for point in history]
    raw = ([p["before_return"] for p in history], [p["after_return"] for p in history])
    normalised = (
        [p["before_normalised_return"] for p in history],
        [p["after_normalised_return"] for p in history],
    )
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (before, after), label in zip(
        panels, (raw, normalised), ("return", "normalised return"), strict=True
    ):
        axes.plot(steps, before, color="tab:grey", marker=".", label="before adaptation")
        axes.plot(steps, after, color="tab:blue", marker=".", label="after adaptation")
        axes.set(xlabel="outer steps", ylabel=label)
        axes.grid(alpha=0.3)
    panels[1].axhline(1.0, color="black", linestyle=":", label="best behaviour")
    panels[1].axhline(0.0, color="black", linestyle="--", label="random actions")
    if standing_still is not None:
        panels[1].axhline(standing_still, color="tab:brown", linestyle="-.", label="standing still")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    save_figure(figure, path)


def lifetime_curves(curves: Sequence[LifetimeCurve], path: str | Path) -> None:
    """Draw every task's returns over its agent's lifetime, one small panel for each task.

    Args:
        curves: One for each task.
        path: Path of the PNG; replaced when complete.
    """
    from matplotlib.figure import Figure

    columns = min(len(curves), 8)
    rows = -(-len(curves) // columns)
    size = (max(4.0, 1.7 * columns), 0.8 + 1.5 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    styles = [("black", "--"), ("black", ":")]
    for axes, curve in zip(panels, curves, strict=False):
        axes.plot(*binned(curve.steps, curve.returns), color="tab:blue", linewidth=1.0)
        for (name, value), (colour, line) in zip(curve.references.items(), styles, strict=False):
            if value is not None:
                axes.axhline(value, color=colour, linestyle=line, linewidth=0.8, label=name)
        axes.set_title(curve.title, fontsize="x-small")
        axes.tick_params(labelsize="xx-small")
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="x-small")
    figure.supxlabel("environment steps", fontsize="small")
    figure.supylabel("return of an episode", fontsize="small")
    save_figure(figure, path)


def fine_tuning_curves(
    curves: Mapping[str, TaskCurve], path: str | Path, *, warmup_steps: float | None = None
) -> None:
    """Draw the return of every task against environment steps, and their mean.

    Args:
        curves: Task -> its curve; of its references, random actions and the best behaviour are
            drawn, as means over tasks.
        path: Path of the PNG; replaced when complete.
        warmup_steps: Environment steps before the first update, drawn as a line; None for no line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for task, curve in curves.items():
        axes.plot(*binned(curve["steps"], curve["return"]), linewidth=0.9, label=f"task {task}")
    mean_steps = np.mean([curve["steps"] for curve in curves.values()], axis=0)
    mean_return = np.mean([curve["return"] for curve in curves.values()], axis=0)
    axes.plot(*binned(mean_steps, mean_return), color="black", linewidth=2.0, label="mean")
    for name, line in (("best_behaviour", ":"), ("random", "--")):
        known = [curve["references"][name] for curve in curves.values() if curve.get("references")]
        if known:
            axes.axhline(
                float(np.mean(known)), color="black", linestyle=line, label=name.replace("_", " ")
            )
    if warmup_steps is not None:
        axes.axvline(warmup_steps, color="tab:grey", linewidth=0.8, label="first update")
    axes.set(xlabel="environment steps of each task", ylabel="return, mean actions")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    save_figure(figure, path)


def binned(steps: ArrayLike, returns: ArrayLike, count: int = 50) -> tuple[Array, Array]:
    """Return means of steps and returns over groups of successive episodes.

    Args:
        steps: Environment steps at the end of each of E episodes, [E].
        returns: Their returns, [E].
        count: Number of groups; E where there are fewer episodes.
    """
    ends, values = np.asarray(steps, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    groups = min(count, len(ends))
    bins = np.arange(len(ends)) * groups // max(1, len(ends))
    sizes = np.bincount(bins, minlength=groups)
    return (
        np.bincount(bins, weights=ends, minlength=groups) / sizes,
        np.bincount(bins, weights=values, minlength=groups) / sizes,
    )
