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
        episode: Index of every segment's episode, [B, K].
        segment_task: Task i_j that the episode was collected in, [B, K].
        task: Target task i*, [B].
        keep: The segment is of the target task, so it keeps its rewards; all others are 0, [B, K].
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
        observation: Row of the observation, [..., H + 1]; any row where there is none.
        final: The observation is the one after the last step, which has no row, [..., H + 1].
        action: Row of action and reward, [..., H + 1]; any row where there is none.
        acted: There is an action: not at the first observation, not in padding, [..., H + 1].
        mask: There is an observation: False in the padding of shorter episodes, [..., H + 1].
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
        rng: Source of randomness.
        episodes_by_task: Task -> indices of its episodes, at least one.
        count: B, meta-trajectories to draw.
        num_episodes: K, episodes of each.
        single_task: No synthetic exploration, the paper's "No Expl": all K episodes are of the
            target task and keep their rewards.

    Returns:
        The segments, [B, K].
    """
    tasks = np.array(list(episodes_by_task), dtype=np.int64)
    size = np.array([len(episodes) for episodes in episodes_by_task.values()], dtype=np.int64)
    every = np.concatenate(list(episodes_by_task.values())).astype(np.int64)
    number = rng.integers(len(tasks), size=(count, num_episodes))
    place = rng.random((count, num_episodes))
    # Section 3.5 draws i* after, and independently of, i_1..i_K: what the arm does says nothing
    # about the target.
    target = rng.integers(len(tasks), size=count)
    if single_task:
        number = np.repeat(target[:, None], num_episodes, axis=1)
    first = np.cumsum(size) - size
    episode = every[first[number] + (place * size[number]).astype(np.int64)]
    return Segments(episode, tasks[number], tasks[target], number == target[:, None])


def align(start: Rows, length: Rows, horizon: int) -> Alignment:
    """Return where the positions of episodes lie, [..., H + 1] each.

    Args:
        start: First row of each episode, [...].
        length: Steps of each episode, [...], from 1 to ``horizon``.
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
        reward: Rewards of all rows, [N], episodes one after another.
        start: First row of each episode, [E].
        length: Steps of each episode, [E].

    Returns:
        1 to ``length``; ``length + 1`` for an episode without reward.
    """
    # An episode without a reward finds that of a later one, or the appended row; both are behind
    # its end.
    rewarded = np.append(np.flatnonzero(reward), len(reward))
    row = rewarded[np.searchsorted(rewarded, start)]
    return np.where(row < start + length, row - start + 1, length + 1)
