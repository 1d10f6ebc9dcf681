"""Pictures of results; matplotlib is imported when one is drawn."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
    target = Path(path)
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    figure.savefig(partial, dpi=120)
    os.replace(partial, target)
