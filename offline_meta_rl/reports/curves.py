"""Pictures of results; matplotlib is imported when one is drawn."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def learning_curve(
    history: Sequence[Mapping[str, Any]], path: str | Path, *, standing_still: float | None = None
) -> None:
    """Draw held-out returns before and after adaptation against outer steps.

    Args:
        history: points with step, before_return, after_return, before_normalised_return,
            after_normalised_return.
        path: of the PNG; replaced when complete.
        standing_still: normalised return of standing still, drawn as a line; None for no line.
    """
    from matplotlib.figure import Figure

    steps = [point["step"] for point in history]
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, label in zip(
        panels, ("return", "normalised_return"), ("return", "normalised return"), strict=True
    ):
        for prefix, colour, text in (
            ("before", "tab:grey", "before adaptation"),
            ("after", "tab:blue", "after adaptation"),
        ):
            values = [point[f"{prefix}_{name}"] for point in history]
            axes.plot(steps, values, color=colour, marker=".", label=text)
        axes.set_xlabel("outer steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[1].axhline(1.0, color="black", linestyle=":", label="best behaviour")
    panels[1].axhline(0.0, color="black", linestyle="--", label="random actions")
    if standing_still is not None:
        panels[1].axhline(standing_still, color="tab:brown", linestyle="-.", label="standing still")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    save_figure(figure, path)


def lifetime_curves(curves: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw every task's returns over its agent's lifetime, one small panel for each task.

    Args:
        curves: for each task ``title``, ``steps`` and ``returns`` of its episodes [E], and
            ``references``, name -> return or None: drawn as lines where known.
        path: of the PNG; replaced when complete.
    """
    from matplotlib.figure import Figure

    columns = min(len(curves), 8)
    rows = -(-len(curves) // columns)
    size = (max(4.0, 1.7 * columns), 0.8 + 1.5 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    styles = [("black", "--"), ("black", ":")]
    for axes, curve in zip(panels, curves, strict=False):
        axes.plot(*binned(curve["steps"], curve["returns"]), color="tab:blue", linewidth=1.0)
        for (name, value), (colour, line) in zip(curve["references"].items(), styles, strict=False):
            if value is not None:
                axes.axhline(value, color=colour, linestyle=line, linewidth=0.8, label=name)
        axes.set_title(curve["title"], fontsize="x-small")
        axes.tick_params(labelsize="xx-small")
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="x-small")
    figure.supxlabel("environment steps", fontsize="small")
    figure.supylabel("return of an episode", fontsize="small")
    save_figure(figure, path)


def fine_tuning_curves(
    curves: Mapping[str, Mapping[str, Any]], path: str | Path, *, warmup_steps: float | None = None
) -> None:
    """Draw the return of every task against environment steps, and their mean.

    Args:
        curves: task -> ``steps``, ``return`` and ``references``, name -> return, of which random
            actions and the best behaviour are drawn, as means over tasks.
        path: of the PNG; replaced when complete.
        warmup_steps: before these nothing was updated; None draws no line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for task, curve in curves.items():
        axes.plot(*binned(curve["steps"], curve["return"]), linewidth=0.9, label=f"task {task}")
    mean = [
        np.mean([curve[key] for curve in curves.values()], axis=0) for key in ("steps", "return")
    ]
    axes.plot(*binned(*mean), color="black", linewidth=2.0, label="mean")
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


def binned(
    steps: Sequence[float] | NDArray[Any],
    returns: Sequence[float] | NDArray[np.float64],
    count: int = 50,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means of steps and returns over ``count`` groups of successive episodes."""
    groups = min(count, len(steps))
    bins = np.arange(len(steps)) * groups // max(1, len(steps))
    sizes = np.bincount(bins, minlength=groups)
    return (
        np.bincount(bins, weights=steps, minlength=groups) / sizes,
        np.bincount(bins, weights=returns, minlength=groups) / sizes,
    )


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure under a temporary name, then give it its own."""
    target = Path(path)
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    figure.savefig(partial, dpi=120)
    os.replace(partial, target)
