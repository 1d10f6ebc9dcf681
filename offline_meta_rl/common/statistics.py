"""Every interval of this project: over seeds and tasks, over episodes, of a probability.

With few seeds a robust mean says more, so scores of seeds and tasks get interquartile means with
bootstrap intervals, following Agarwal et al. (2021), "Deep reinforcement learning at the edge of
the statistical precipice". Scores are arrays [S, T]: S seeds of one arm, T tasks. Tasks are strata:
a bootstrap sample draws S seeds anew *for each task*, with replacement, so that every sample has
every task. The seeds are the only source of chance: with one seed there is no interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap, mannwhitneyu, sem, trim_mean
from scipy.stats import t as student

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Maps scores [..., S, T] to one number, or row of numbers, for each leading index."""

RESAMPLES = 2000
FEW_SEEDS = 3
"""With fewer seeds than this an interval is marked."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval.

    Attributes:
        value: The statistic of the scores themselves.
        low: Lower end of the interval; equal to ``value`` with one seed.
        high: Upper end of the interval.
        num_seeds: The smallest number of seeds that it rests on.
    """

    value: float
    low: float
    high: float
    num_seeds: int

    @property
    def mark(self) -> str:
        """What is shown beside an interval of too few seeds; nothing from three seeds on."""
        if self.num_seeds >= FEW_SEEDS:
            return ""
        return "*" if self.num_seeds > 1 else "**"

    def __str__(self) -> str:
        """Return ``value [low, high]``; one seed has no interval."""
        if self.num_seeds == 1:
            return f"{self.value:.2f}{self.mark}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]{self.mark}"


def check_scores(scores: ArrayLike) -> Array:
    """Return scores as an array [S, T].

    Raises:
        ValueError: Another number of dimensions, no scores, or numbers that are not finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"Expected scores of seeds and tasks [S, T], found shape {array.shape}.")
    if not np.isfinite(array).all():
        seed, task = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"Expected finite scores, found {array[seed, task]} at seed {seed}, task {task}."
        )
    return array


def interquartile_mean(scores: Array) -> Array:
    """Return the mean of the middle half of all seeds and tasks, [..., S, T] -> [...].

    A quarter of the scores, rounded down, is cut off at each end (``scipy.stats.trim_mean``).
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    return np.asarray(trim_mean(flat, 0.25, axis=-1))


def bootstrap_samples(scores: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Return samples [R, S, T] of scores [S, T]: seeds drawn anew for each task."""
    # scipy.stats.bootstrap with a sample for each task is the same scheme, and the tests compare
    # the two. It draws in another order, which would change every published interval, and it has
    # no answer for a single seed (docs/decisions.md).
    num_seeds, num_tasks = scores.shape
    chosen = rng.integers(num_seeds, size=(resamples, num_seeds, num_tasks))
    return np.asarray(scores[chosen, np.arange(num_tasks)])


def _percentiles(samples: Array) -> tuple[Array, Array]:
    """Return the 2.5 and 97.5 percentiles over the first dimension of bootstrapped statistics."""
    low, high = np.percentile(samples, (2.5, 97.5), axis=0)
    return np.asarray(low), np.asarray(high)


def estimate(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return a statistic of scores [S, T] with its stratified bootstrap interval (percentiles).

    Args:
        scores: Scores of S seeds on T tasks.
        statistic: What is estimated; see ``Statistic``.
        seed: Seed of the bootstrap.
        resamples: R, the number of bootstrap samples.
    """
    array = check_scores(scores)
    samples = bootstrap_samples(array, np.random.default_rng(seed), resamples)
    low, high = _percentiles(statistic(samples))
    return Estimate(float(statistic(array)), float(low), float(high), len(array))


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Array, Array, Array]:
    """Return the share of runs (seed, task) above each threshold, with its interval.

    Args:
        scores: Scores of S seeds on T tasks, [S, T].
        thresholds: [X].
        seed: Seed of the bootstrap.
        resamples: R, the number of bootstrap samples.

    Returns:
        Share, low and high, each [X].
    """
    array, levels = check_scores(scores), np.asarray(thresholds, dtype=np.float64)

    def shares(sample: Array) -> Array:
        flat = sample.reshape(*sample.shape[:-2], -1)
        return np.stack([(flat > level).mean(axis=-1) for level in levels], axis=-1)

    samples = bootstrap_samples(array, np.random.default_rng(seed), resamples)
    low, high = _percentiles(shares(samples))
    return shares(array), low, high


def probability_of_improvement(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Return the probability that a run of the first arm beats one of the second on a task.

    The Mann-Whitney statistic U / (S1 S2) of each task, ties counting one half, averaged over
    tasks; the interval resamples the seeds of both arms.

    Args:
        first: Scores [S1, T].
        second: Scores [S2, T] on the same tasks.
        seed: Seed of the bootstrap.
        resamples: R, the number of bootstrap samples.

    Raises:
        ValueError: Different numbers of tasks.
    """
    one, two = check_scores(first), check_scores(second)
    if one.shape[1] != two.shape[1]:
        raise ValueError(
            f"Expected scores on the same tasks, found {one.shape[1]} and {two.shape[1]} tasks."
        )
    rng = np.random.default_rng(seed)
    pairs = (bootstrap_samples(one, rng, resamples), bootstrap_samples(two, rng, resamples))
    low, high = _percentiles(_share_of_wins(*pairs))
    statistics = mannwhitneyu(one, two, axis=0, method="asymptotic").statistic
    value = float(np.mean(statistics) / (len(one) * len(two)))
    return Estimate(value, float(low), float(high), min(len(one), len(two)))


def _share_of_wins(first: Array, second: Array) -> Array:
    """Return how often first beats second, [R, S1, T] and [R, S2, T] -> [R]."""
    gap = first[:, :, None] - second[:, None]
    return np.asarray(((gap > 0) + 0.5 * (gap == 0)).mean(axis=(1, 2, 3)))


def estimated_curve(
    scores: Sequence[ArrayLike], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Array, Array, Array]:
    """Return interquartile mean, low and high of successive scores, each [P].

    Args:
        scores: Scores [S, T] at each of P points of a learning curve.
        seed: Seed of the bootstrap, the same at every point.
        resamples: R.
    """
    points = [estimate(each, seed=seed, resamples=resamples) for each in scores]
    found = np.array([(point.value, point.low, point.high) for point in points])
    return found[:, 0], found[:, 1], found[:, 2]


def episode_interval(returns: Sequence[Array], seed: int = 0) -> list[float] | None:
    """Return the 95 % bootstrap interval of the mean over tasks of each task's mean return.

    A sample draws the episodes of each task anew. The tasks stay as they are: the statement is
    about these tasks.

    Args:
        returns: Returns of each of the T tasks, E or fewer numbers.
        seed: Seed of the draws.

    Returns:
        [low, high]; None where a task has fewer than two episodes.
    """
    if min(len(values) for values in returns) < 2:
        return None

    def mean_of_means(*groups: Array, axis: int = -1) -> Array:
        return np.asarray(np.mean([group.mean(axis=axis) for group in groups], axis=0))

    found = bootstrap(
        tuple(returns),
        mean_of_means,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def share_interval(hits: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a probability.

    Args:
        hits: How often it happened, from 0 to ``trials``.
        trials: How often it was tried; without trials the interval is (0, 1).
    """
    if trials == 0:
        return 0.0, 1.0
    found = binomtest(hits, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean of independent values.

    Args:
        values: At least two, such as one number of each seed.
    """
    # Not student.interval: it has no answer for values that are all the same.
    half = float(student.ppf(0.975, len(values) - 1) * sem(values))
    mean = float(np.mean(values))
    return mean - half, mean + half
