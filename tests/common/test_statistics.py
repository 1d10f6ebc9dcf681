"""Statistics against slow references written from their definitions, and scipy's bootstrap."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from offline_meta_rl.common import statistics
from offline_meta_rl.common.statistics import Estimate

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(5, 6)) + np.arange(6)


def slow_iqm(scores: NDArray[np.float64]) -> float:
    """Sort everything, drop a quarter at each end, average the rest."""
    values = sorted(float(value) for value in scores.reshape(-1))
    cut = len(values) // 4
    kept = values[cut : len(values) - cut]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (5, 6), (3, 7)])
def test_interquartile_mean_is_the_mean_of_the_middle_half(shape: tuple[int, int]) -> None:
    scores = RNG.normal(size=shape)
    assert statistics.interquartile_mean(scores) == pytest.approx(slow_iqm(scores), abs=1e-12)


def test_interquartile_mean_by_hand() -> None:
    assert statistics.interquartile_mean(np.array([[0.0, 1.0, 2.0, 100.0]])) == 1.5


def test_samples_keep_every_task_and_draw_seeds_of_that_task() -> None:
    samples = statistics.bootstrap_samples(SCORES, np.random.default_rng(1), 300)
    assert samples.shape == (300, 5, 6)
    for task in range(6):
        assert set(samples[:, :, task].reshape(-1)) == set(SCORES[:, task])
    first, second = (np.argsort(np.argsort(samples[:, 0, t])) for t in (0, 1))
    assert not np.array_equal(first, second)  # tasks are drawn independently


def test_interval_equals_a_loop_over_samples() -> None:
    found = statistics.estimate(SCORES, seed=3, resamples=200)
    chosen = np.random.default_rng(3).integers(5, size=(200, 5, 6))
    values = []
    for sample in chosen:
        drawn = [[SCORES[sample[s, t], t] for t in range(6)] for s in range(5)]
        values.append(slow_iqm(np.array(drawn)))
    values.sort()
    for share, end in ((0.025, found.low), (0.975, found.high)):
        position = share * (len(values) - 1)
        below = int(position)
        expected = values[below] + (position - below) * (values[below + 1] - values[below])
        assert end == pytest.approx(expected, abs=1e-12)
    assert found.value == pytest.approx(slow_iqm(SCORES), abs=1e-12)


def test_interval_agrees_with_scipys_bootstrap() -> None:
    def mean_of_tasks(*columns: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.mean([column.mean(axis=axis) for column in columns], axis=0)

    theirs = stats.bootstrap(
        tuple(SCORES.T), mean_of_tasks, n_resamples=20000, method="percentile", rng=0
    ).confidence_interval
    ours = statistics.estimate(SCORES, lambda x: x.mean(axis=(-2, -1)), resamples=20000)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        found = statistics.estimate(
            rng.normal(size=(10, 5)), lambda x: x.mean(axis=(-2, -1)), seed=trial, resamples=300
        )
        hits += found.low <= 0.0 <= found.high
    assert 0.85 <= hits / 200 <= 0.99


def test_profile_counts_runs_above_each_threshold() -> None:
    levels = [-10.0, 2.0, 2.5, 99.0]
    share, low, high = statistics.performance_profile(SCORES, levels, resamples=200)
    expected = [sum(v > level for v in SCORES.reshape(-1)) / 30 for level in levels]
    assert share == pytest.approx(expected)
    assert share[0] == 1.0
    assert share[-1] == 0.0
    assert (low <= share).all()
    assert (share <= high).all()
    assert (low < high)[1:3].all()


def test_probability_of_improvement_counts_pairs() -> None:
    other = np.round(RNG.normal(size=(4, 6)) + np.arange(6), 0)
    ours = np.round(SCORES, 0)  # whole numbers: there are ties
    wins = 0.0
    for task in range(6):
        pairs = itertools.product(ours[:, task], other[:, task])
        wins += sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / 20
    found = statistics.probability_of_improvement(ours, other, resamples=200)
    assert found.value == pytest.approx(wins / 6)
    assert found.low <= found.value <= found.high
    turned = statistics.probability_of_improvement(other, ours, resamples=200)
    assert turned.value == pytest.approx(1 - found.value)
    assert found.num_seeds == 4
    far = statistics.probability_of_improvement(ours + 100, other)
    assert (far.value, far.low, far.high) == (1.0, 1.0, 1.0)


def test_same_seed_same_interval() -> None:
    assert statistics.estimate(SCORES) == statistics.estimate(SCORES)
    assert statistics.estimate(SCORES, seed=1) != statistics.estimate(SCORES)


def test_curve_is_one_estimate_for_each_point() -> None:
    value, low, high = statistics.estimated_curve([SCORES, SCORES + 1], resamples=100)
    assert value[1] - value[0] == pytest.approx(1.0)
    assert (high - low)[1] == pytest.approx((high - low)[0])


def test_intervals_over_episodes_are_those_of_a_normal_mean() -> None:
    rng = np.random.default_rng(0)
    returns = [rng.normal(mean, 2.0, 400) for mean in (-50.0, 10.0)]
    low, high = statistics.episode_interval(returns) or [0.0, 0.0]
    mean = np.mean([values.mean() for values in returns])
    error = 1.96 * np.sqrt(sum(values.var() / 400 for values in returns)) / 2
    assert low == pytest.approx(mean - error, abs=0.15 * error)
    assert high == pytest.approx(mean + error, abs=0.15 * error)
    assert statistics.episode_interval([np.ones(1), np.ones(3)]) is None


def test_intervals_of_a_probability() -> None:
    # Wilson's formula, from the quadratic that defines it: (p - s)^2 = z^2 p (1 - p) / n.
    for hits, trials in ((0, 10), (3, 17), (250, 500), (500, 500)):
        for bound in statistics.share_interval(hits, trials):
            left = (bound - hits / trials) ** 2
            assert left == pytest.approx(1.9599640**2 * bound * (1 - bound) / trials, abs=1e-8)
    assert statistics.share_interval(0, 0) == (0.0, 1.0)


def test_intervals_of_a_mean_are_students() -> None:
    values = [0.6, 0.5, 0.1]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert statistics.mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert statistics.mean_interval([0.5, 0.5]) == (0.5, 0.5)


def test_few_seeds_are_marked() -> None:
    assert str(statistics.estimate(SCORES[:1])).endswith("**")
    assert "[" not in str(statistics.estimate(SCORES[:1]))
    assert str(statistics.estimate(SCORES[:2])).endswith("]*")
    assert str(Estimate(0.5, 0.25, 0.75, 3)) == "0.50 [0.25, 0.75]"


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seeds and tasks \[S, T\], found shape \(3,\)"):
        statistics.estimate(np.zeros(3))
    with pytest.raises(ValueError, match="found nan at seed 1, task 0"):
        statistics.estimate([[0.0], [np.nan]])
    with pytest.raises(ValueError, match="same tasks, found 6 and 5"):
        statistics.probability_of_improvement(SCORES, SCORES[:, :5])
