"""Stitched meta-trajectories: the distribution M^K, exactly where it can be counted."""

import itertools

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from datamodules.sampling.stitch import Segments, align, draw_segments, first_reward

EPISODES = {2: np.arange(0, 4), 5: np.arange(4, 5), 7: np.arange(5, 12)}  # task -> episodes
DRAWS = 20_000


def draw(num_tasks: int, num_episodes: int, *, single_task: bool = False) -> Segments:
    episodes = dict(itertools.islice(EPISODES.items(), num_tasks))
    rng = np.random.default_rng(num_tasks * 10 + num_episodes)
    return draw_segments(rng, episodes, DRAWS, num_episodes, single_task=single_task)


sizes = pytest.mark.parametrize(("num_tasks", "num_episodes"), [(2, 1), (2, 2), (2, 3), (3, 2)])


@sizes
def test_no_segment_matches_as_often_as_it_should(num_tasks: int, num_episodes: int) -> None:
    missed = ~draw(num_tasks, num_episodes).keep.any(axis=1)
    probability = (1 - 1 / num_tasks) ** num_episodes
    spread = np.sqrt(probability * (1 - probability) / DRAWS)
    assert abs(missed.mean() - probability) < 4 * spread


@sizes
def test_target_is_independent_of_every_segment(num_tasks: int, num_episodes: int) -> None:
    segments = draw(num_tasks, num_episodes)
    assert uniform(segments.task)
    for column in segments.segment_task.T:
        assert uniform(column)
        assert not dependent(column, segments.task)
    joint = segments.segment_task @ (100 ** np.arange(num_episodes))  # all segments at once
    assert len(np.unique(joint)) == num_tasks**num_episodes
    assert uniform(joint)
    assert not dependent(joint, segments.task)
    assert not dependent(segments.episode[:, 0], segments.task)


def test_segments_are_independent_of_each_other() -> None:
    segments = draw(3, 3)
    for first, second in itertools.combinations(range(3), 2):
        assert not dependent(segments.segment_task[:, first], segments.segment_task[:, second])
        assert not dependent(segments.keep[:, first] * 1, segments.segment_task[:, second])


def test_dependence_is_seen_where_there_is_some() -> None:
    alone = draw(2, 2, single_task=True)
    assert dependent(alone.segment_task[:, 0], alone.task)
    biased = np.where(np.random.default_rng(0).random(DRAWS) < 0.04, 2, alone.task)
    assert not uniform(biased)


@pytest.mark.parametrize("single_task", [False, True])
def test_episodes_are_uniform_in_their_task(single_task: bool) -> None:
    segments = draw(3, 2, single_task=single_task)
    assert segments.episode.dtype == segments.segment_task.dtype == np.int64
    for task, episodes in EPISODES.items():
        chosen = segments.episode[segments.segment_task == task]
        assert set(chosen) == set(episodes)
        assert len(episodes) == 1 or uniform(chosen)


def test_only_segments_of_the_target_keep_their_rewards() -> None:
    segments = draw(3, 4)
    assert np.array_equal(segments.keep, segments.segment_task == segments.task[:, None])


def test_single_task_keeps_everything() -> None:
    segments = draw(3, 4, single_task=True)
    assert segments.keep.all()
    assert (segments.segment_task == segments.task[:, None]).all()
    assert uniform(segments.task)


def test_some_of_the_meta_trajectories() -> None:
    segments = draw(2, 2)
    for part, whole in zip(segments.select(slice(1, None, 3)), segments, strict=True):
        assert np.array_equal(part, whole[1::3])


def test_alignment_against_a_loop() -> None:
    start, length, horizon = np.array([[0, 3], [3, 7]]), np.array([[3, 1], [4, 2]]), 4
    found = align(start, length, horizon)
    for place in np.ndindex(start.shape):
        for step in range(horizon + 1):
            first, steps = int(start[place]), int(length[place])
            where = (*place, step)
            assert found.mask[where] == (step <= steps)
            assert found.final[where] == (step == steps)
            assert found.acted[where] == (1 <= step <= steps)
            if step < steps:
                assert found.observation[where] == first + step
            if 1 <= step <= steps:
                assert found.action[where] == first + step - 1
            rows = range(first, first + steps)
            assert found.observation[where] in rows
            assert found.action[where] in rows


def test_first_reward_of_each_episode() -> None:
    reward = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0, 0.0])
    start, length = np.array([0, 4, 6, 7]), np.array([4, 2, 1, 3])
    assert first_reward(reward, start, length).tolist() == [3, 3, 1, 4]


def uniform(values: np.ndarray) -> bool:
    """Whether counts of the values found agree with a uniform distribution (fixed seeds)."""
    return bool(chisquare(np.unique(values, return_counts=True)[1]).pvalue > 1e-3)


def dependent(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether a contingency table speaks against independence (fixed seeds)."""
    index = [np.unique(values, return_inverse=True)[1] for values in (first, second)]
    table = np.zeros([int(number.max()) + 1 for number in index])
    np.add.at(table, tuple(index), 1)
    return bool(chi2_contingency(table).pvalue < 1e-3)
