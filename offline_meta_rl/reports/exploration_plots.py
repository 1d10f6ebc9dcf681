"""Pictures of exploration: the paper's figure, the probe over training, reconstructions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import save_figure
from offline_meta_rl.evaluation.diagnosis import Diagnosis
from offline_meta_rl.evaluation.exploration import ExplorationPoint

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


class ProbePoint(TypedDict):
    """The task probe at one moment of a filter's training.

    Attributes:
        step: Updates of the filter.
        probe: Label -> accuracy.
    """

    step: int
    probe: dict[str, float]


def success_figure(
    curves: Mapping[str, Sequence[ExplorationPoint]], path: str | Path, *, chance: float | None
) -> None:
    """Draw success against the number of exploration episodes done (the paper's Figure 2, right).

    Args:
        curves: Label -> points by the number of exploration episodes done.
        path: Path of the PNG; replaced when complete.
        chance: Success of guessing, drawn as a line; None for no line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (label, points) in enumerate(curves.items()):
        done = np.array([point["exploration_episodes"] for point in points], dtype=float)
        share = np.array([point["success"]["share"] for point in points], dtype=float)
        low, high = np.array([point["success"]["interval"] for point in points]).T
        errors = np.maximum([share - low, high - share], 0.0)
        shift = 0.02 * (number - (len(curves) - 1) / 2)  # so that bars do not hide each other
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            done + shift, share, yerr=errors, label=label, color=colour, marker="o", capsize=3
        )
    if chance is not None:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1.0, label="guessing")
    axes.set(xlabel="exploration episodes done", ylabel="success rate", ylim=(-0.03, 1.05))
    axes.set_xticks(sorted({point["exploration_episodes"] for p in curves.values() for point in p}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="best")
    save_figure(figure, path)


def probe_figure(history: Sequence[ProbePoint], path: str | Path, *, chance: float) -> None:
    """Draw how well the task can be read from the belief, over training.

    Args:
        history: Points of one run; the last one says which labels are drawn.
        path: Path of the PNG; replaced when complete.
        chance: Accuracy of guessing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [point["step"] for point in history]
    for number, label in enumerate(history[-1]["probe"]):
        values = [point["probe"].get(label, np.nan) for point in history]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(steps, values, color=colour, marker=".", label=label)
    axes.axhline(chance, color="black", linestyle=":", linewidth=1.0, label="guessing")
    axes.set(xlabel="updates", ylabel="accuracy of the task probe", ylim=(-0.03, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="best")
    save_figure(figure, path)


def reconstruction_grid(
    images: NDArray[np.uint8], reconstructions: NDArray[np.uint8], *, magnify: int = 4
) -> NDArray[np.uint8]:
    """Return images above their reconstructions, row by row.

    Args:
        images: [R, P, C, h, w], R meta-trajectories at P positions.
        reconstructions: Their reconstructions, likewise.
        magnify: Whole number by which every pixel grows.

    Returns:
        One picture [height, width, 3], rows separated by white lines.
    """
    pairs = np.stack([images, reconstructions], axis=1)  # [R, 2, P, C, h, w]
    channels = pairs[..., :3, :, :] if pairs.shape[3] >= 3 else pairs[..., :1, :, :].repeat(3, 3)
    framed = np.pad(
        channels.repeat(magnify, -2).repeat(magnify, -1),
        [(0, 0)] * 4 + [(1, 1), (1, 1)],
        constant_values=255,
    )
    rows, kinds, positions, _, height, width = framed.shape
    picture = framed.transpose(0, 1, 4, 2, 5, 3)
    return picture.reshape(rows * kinds * height, positions * width, 3)


def write_png(picture: NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture [height, width, 3] as PNG."""
    from matplotlib.image import imsave

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    imsave(target, np.ascontiguousarray(picture))


def diagnosis_figure(
    diagnoses: Mapping[str, Diagnosis], path: str | Path, *, chance: float
) -> None:
    """Draw what beliefs say about the task before any reward, and after opening a wrong drawer.

    Args:
        diagnoses: Label -> what ``diagnose`` returns.
        path: Path of the PNG; replaced when complete.
        chance: Probability of guessing the task.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.8])
    for number, (label, diagnosis) in enumerate(diagnoses.items()):
        colour = COLOURS[number % len(COLOURS)]
        left.bar(number, diagnosis["before_any_reward"]["accuracy"], color=colour, width=0.6)
        after = diagnosis["after_wrong_drawer"]
        if after is not None:
            right.plot(after["curve"], color=colour, label=label)
    left.set_xticks(range(len(diagnoses)), list(diagnoses))
    left.set(ylabel="accuracy of the task probe", title="before any reward", ylim=(0, 1.05))
    right.set(
        xlabel="step of the meta-episode",
        ylabel="belief's probability of the true task",
        title="a wrong drawer opened in the first episode",
        ylim=(-0.03, 1.05),
    )
    for axes in (left, right):
        axes.axhline(chance, color="black", linestyle=":", linewidth=1.0)
        axes.grid(alpha=0.3)
    if right.lines[1:]:
        right.legend(fontsize="small", loc="best")
    save_figure(figure, path)
