"""Synthetic exploration: episodes of different tasks stitched into meta-trajectories.

The distribution M^K of the Reflective Explorer (Rafailov et al., 2021, section 3.5), and where the
steps of the drawn episodes lie. Numpy arithmetic on indices; no data is touched. Shapes: B
meta-trajectories, K episodes of each, H steps of the longest episode.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Segments(NamedTuple):
    """What B meta-trajectories consist of.

    Attributes:
        episode: index of every segment's episode, [B, K].
        segment_task: task i_j that the episode was collected in, [B, K].
        task: target task i*, [B].
        keep: the segment is of the target task, so it keeps its rewards; all others are 0, [B, K].
    """

    episode: Rows
    segment_task: Rows
    task: Rows
    keep: Bools

    def select(self, chosen: slice) -> "Segments":
        """Return some of the meta-trajectories."""
        return Segments(
            self.episode[chosen], self.segment_task[chosen], self.task[chosen], self.keep[chosen]
        )


class Alignment(NamedTuple):
    """Where the H + 1 positions of episodes lie: the first observation, then one for every step.

    An observation stands beside the action that led to it and the reward that arrived with it.

    Attributes:
        observation: row of the observation, [..., H + 1]; any row where there is none.
        final: the observation is the one after the last step, which has no row, [..., H + 1].
        action: row of action and reward, [..., H + 1]; any row where there is none.
        acted: there is an action: not at the first observation, not in padding, [..., H + 1].
        mask: there is an observation: False in the padding of shorter episodes, [..., H + 1].
    """

    observation: Rows
    final: Bools
    action: Rows
    acted: Bools
    mask: Bools


def draw_segments(
    rng: np.random.Generator,
    episodes_by_task: Mapping[int, Rows],
    count: int,
    num_episodes: int,
    *,
    single_task: bool = False,
) -> Segments:
    """Draw meta-trajectories from M^K.

    Tasks i_1..i_K are drawn uniformly with replacement, an episode uniformly from each one's data,
    and the target task i* uniformly and independently of them. A segment keeps its rewards if
    i_j = i*. That rests on sparse rewards: an episode of one task would have earned 0 in another.

    Args:
        rng: source of randomness.
        episodes_by_task: task -> indices of its episodes, at least one.
        count: B.
        num_episodes: K.
        single_task: no synthetic exploration, the paper's "No Expl": all K episodes are of the
            target task and keep their rewards.

    Returns:
        The segments.
    """
    tasks = np.array(list(episodes_by_task), dtype=np.int64)
    size = np.array([len(episodes) for episodes in episodes_by_task.values()], dtype=np.int64)
    every = np.concatenate(list(episodes_by_task.values())).astype(np.int64)
    number = rng.integers(len(tasks), size=(count, num_episodes))
    place = rng.random((count, num_episodes))
    target = rng.integers(len(tasks), size=count)
    if single_task:
        number = np.repeat(target[:, None], num_episodes, axis=1)
    first = np.cumsum(size) - size
    episode = every[first[number] + (place * size[number]).astype(np.int64)]
    return Segments(episode, tasks[number], tasks[target], number == target[:, None])


def align(start: Rows, length: Rows, horizon: int) -> Alignment:
    """Return where the positions of episodes lie.

    Args:
        start: first row of each episode, [...].
        length: its steps, [...], from 1 to ``horizon``.
        horizon: H.
    """
    step = np.arange(horizon + 1)
    start, length = start[..., None], length[..., None]
    last = length - 1
    mask = step <= length
    return Alignment(
        observation=start + np.minimum(step, last),
        final=step == length,
        action=start + np.clip(step - 1, 0, last),
        acted=(step > 0) & mask,
        mask=mask,
    )


def first_reward(reward: NDArray[np.floating], start: Rows, length: Rows) -> Rows:
    """Return the position of each episode at which its first reward arrives, [E].

    Args:
        reward: of all rows, [N], episodes one after another.
        start: first row of each episode, [E].
        length: its steps, [E].

    Returns:
        1 to ``length``; ``length + 1`` for an episode without reward.
    """
    rewarded = np.append(np.flatnonzero(reward), len(reward))
    row = rewarded[np.searchsorted(rewarded, start)]
    return np.where(row < start + length, row - start + 1, length + 1)
