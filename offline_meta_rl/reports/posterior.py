"""What a context posterior knows about the tasks: a picture in two dimensions, and one number.

Several contexts of each task give several posterior means. If they lie together, and apart from
those of other tasks, the posterior separates the tasks. Shapes: T tasks, K contexts of each, Z
latent size, P numbers that describe a task.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import save_figure

Array = NDArray[np.float64]


def principal_components(points: Array, count: int) -> tuple[Array, Array]:
    """Return coordinates along the directions of largest variance, and the variances' shares.

    Args:
        points: [n, d].
        count: Number of directions; where d is smaller, the rest is 0.

    Returns:
        Coordinates [n, count], of mean 0, and shares of the whole variance [count].
    """
    centred = points - points.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates, shares = np.zeros((len(points), count)), np.zeros(count)
    found = min(count, len(sizes))
    coordinates[:, :found] = (left * sizes)[:, :found]
    whole = np.square(sizes).sum()
    if whole > 0.0:
        shares[:found] = np.square(sizes[:found]) / whole
    return coordinates, shares


def between_task_variance(means: Array) -> float:
    """Return the share of the variance of posterior means [T, K, Z] that lies between tasks.

    1 if all contexts of a task agree, about 1 / K if the context says nothing of the task.
    """
    whole = np.square(means - means.mean(axis=(0, 1))).sum()
    within = np.square(means - means.mean(axis=1, keepdims=True)).sum()
    return float(1.0 - within / whole) if whole > 0.0 else 0.0


def task_colours(parameters: Array) -> tuple[Array, str]:
    """Return one number for each task, [T], from parameters [T, P], and its name.

    It is the parameter where there is one, else its first principal component.
    """
    if parameters.shape[1] == 1:
        return parameters[:, 0], "task parameter"
    return principal_components(parameters, 1)[0][:, 0], "first component of the task's parameters"


def draw_posterior(
    means: Array, parameters: Array, held_out: NDArray[np.bool_], path: Path
) -> None:
    """Draw posterior means in their first two principal components, coloured by the task.

    Args:
        means: [T, K, Z].
        parameters: [T, P].
        held_out: Whether a task was held out of training, [T]; these are drawn as crosses.
        path: Path of the PNG; replaced when complete.
    """
    from matplotlib.figure import Figure

    num_tasks, num_contexts, size = means.shape
    points, shares = principal_components(means.reshape(-1, size), 2)
    points = points.reshape(num_tasks, num_contexts, 2)
    colours, label = task_colours(parameters)
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for chosen, marker, text in ((~held_out, "o", "train"), (held_out, "X", "held out")):
        if not chosen.any():
            continue
        shown = axes.scatter(
            points[chosen, :, 0].ravel(),
            points[chosen, :, 1].ravel(),
            c=np.repeat(colours[chosen], num_contexts),
            marker=marker,
            s=18 if marker == "o" else 60,
            edgecolors="none" if marker == "o" else "black",
            linewidths=0.6,
            label=f"{text} tasks",
            vmin=colours.min(),
            vmax=colours.max(),
        )
    figure.colorbar(shown, ax=axes, label=label)
    axes.set_xlabel(f"component 1 ({100 * shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"component 2 ({100 * shares[1]:.0f} % of the variance)")
    share = between_task_variance(means)
    axes.set_title(f"posterior means of {num_contexts} contexts a task: {share:.2f} between tasks")
    axes.legend(fontsize="small")
    save_figure(figure, path)
