"""A picture of a dataset: returns, learning curves of the behaviour, where the tasks lead."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import save_figure
from offline_meta_rl.data.stored import StoredDataset
from offline_meta_rl.data_tools.statistics import EpisodeStatistics, episode_statistics

if TYPE_CHECKING:  # matplotlib is imported when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLE = 4000  # observations of each task
PIXELS = 16  # images are averaged down to so many a side
CELLS = 24  # on each side of the grid that visits are counted on
BINS = 40


def plot(dataset: StoredDataset, path: str | Path) -> None:
    """Draw return histograms, behaviour learning curves and the overlap of visited states.

    Args:
        dataset: The dataset.
        path: Path of the PNG; replaced when complete.
    """
    from matplotlib.figure import Figure

    episodes = episode_statistics(dataset)
    figure = Figure(figsize=(15.0, 4.8), layout="constrained")
    figure.suptitle(
        f"{dataset.manifest.family}: {len(episodes.task)} episodes, {len(dataset)} rows"
    )
    histogram, curves, visits = figure.subplots(1, 3)
    _draw_histogram(figure, histogram, episodes, dataset.manifest.num_tasks)
    _draw_curves(curves, episodes, dataset.manifest.stages)
    for axis in (histogram.yaxis, curves.xaxis, visits.xaxis, visits.yaxis):
        axis.get_major_locator().set_params(integer=True)
    image = visits.imshow(overlap(dataset), vmin=0.0, vmax=1.0, cmap="viridis")
    visits.set(title="overlap of visited states", xlabel="task", ylabel="task")
    figure.colorbar(image, ax=visits, shrink=0.8)
    save_figure(figure, path)


def overlap(dataset: StoredDataset, seed: int = 0) -> NDArray[np.float64]:
    """Return how much two tasks visit the same states, [T, T]: 0 nowhere, 1 equally often.

    Observations (images averaged down to 16 pixels a side) are projected on the two directions in
    which they differ most, all tasks together and each number in units of its spread. The overlap
    of two tasks is the sum over the cells of a grid of the smaller of their shares of visits.
    """
    random = np.random.default_rng(seed)
    samples = []
    observation = dataset.values("transitions/observation")
    for task in range(dataset.manifest.num_tasks):
        first, stop = dataset.task_rows(task)
        size = min(SAMPLE, stop - first)
        rows = first + np.sort(random.choice(stop - first, size, replace=False))
        dataset.touch(["observation"], rows)
        sample = observation[rows]
        if dataset.manifest.has_images:
            sample = _averaged(sample)
        samples.append(sample.reshape(size, -1).astype(np.float64))
    every = np.concatenate(samples)
    centre, spread = every.mean(0), every.std(0)
    # A number that never changes separates no tasks; it must not divide by zero.
    spread[spread == 0.0] = 1.0
    _, directions = np.linalg.eigh(
        np.cov(((every - centre) / spread).T, ddof=0).reshape(every.shape[1], every.shape[1])
    )
    points = [(part - centre) / spread @ directions[:, -2:] for part in samples]
    # A few far observations would leave most of the grid empty.
    low, high = (np.quantile(np.concatenate(points), q, axis=0) for q in (0.005, 0.995))
    cell = np.where(high > low, (high - low) / CELLS, 1.0)
    shares = []
    for part in points:
        index = np.clip(((part - low) / cell).astype(np.int64), 0, CELLS - 1)
        flat = np.ravel_multi_index(tuple(index.T), (CELLS,) * index.shape[1])
        shares.append(np.bincount(flat, minlength=CELLS**2) / len(part))
    share = np.stack(shares)
    return np.stack([np.minimum(share, row).sum(axis=1) for row in share])


def _averaged(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Average images [N, C, h, w] over squares of pixels, to at most ``PIXELS`` of them a side."""
    _, _, height, width = images.shape
    side = math.ceil(max(height, width) / PIXELS)
    rows, columns = max(1, height // side), max(1, width // side)
    cropped = images[:, :, : rows * side, : columns * side]
    squares = cropped.reshape(*images.shape[:2], rows, -1, columns, cropped.shape[3] // columns)
    mean: NDArray[np.float64] = squares.mean(axis=(3, 5))
    return mean


def _draw_histogram(
    figure: "Figure", axes: "Axes", episodes: EpisodeStatistics, num_tasks: int
) -> None:
    low, high = float(episodes.returns.min()), float(episodes.returns.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = np.stack(
        [np.histogram(episodes.returns[episodes.task == t], edges)[0] for t in range(num_tasks)]
    )
    image = axes.imshow(
        np.ma.masked_equal(counts, 0),
        aspect="auto",
        origin="lower",
        extent=(edges[0], edges[-1], -0.5, num_tasks - 0.5),
        cmap="magma_r",
    )
    axes.set(title="returns per task", xlabel="return of an episode", ylabel="task")
    figure.colorbar(image, ax=axes, shrink=0.8, label="episodes")


def _draw_curves(axes: "Axes", episodes: EpisodeStatistics, stages: list[str]) -> None:
    number = np.concatenate([np.arange(n) for n in np.bincount(episodes.task) if n])
    for index, name in enumerate(stages):
        chosen = episodes.stage == index
        axes.scatter(number[chosen], episodes.returns[chosen], s=5, alpha=0.5, label=name)
    counts = np.bincount(number)
    mean = np.bincount(number, weights=episodes.returns) / counts
    width = max(1, len(mean) // 50)
    kernel = np.ones(width)
    # Weighed by how many tasks have such an episode; the ends average over fewer.
    smooth = np.convolve(mean * counts, kernel, "same") / np.convolve(counts, kernel, "same")
    shared = np.flatnonzero(2 * counts >= counts[0])  # where most tasks have an episode
    axes.plot(shared, smooth[shared], color="black", linewidth=1.5, label="mean over tasks")
    axes.set(title="behaviour", xlabel="episode, in order of collection", ylabel="return")
    axes.legend(fontsize="small", markerscale=2)
