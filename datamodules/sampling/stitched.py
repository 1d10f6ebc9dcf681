"""Meta-trajectories drawn from a dataset: for a filter's updates, for beliefs, and held out.

Every draw is a function of the seed and its own number. Shapes: B meta-trajectories, K episodes of
each, E episodes of the dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict

from datamodules.sampling.episodes import EpisodeTable
from datamodules.sampling.stitch import Rows, Segments, draw_segments
from datamodules.sampling.stitch_checks import check_stitching
from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.data.dataset import TaskDataset

# Streams of random numbers that never meet; 4 and 5 are the policy's, in ``meta_trajectories``.
SPLIT, UPDATES, CACHE, PROBE = range(4)


@dataclass(frozen=True)
class HeldOutEpisodes:
    """Meta-trajectories that nothing is trained on.

    Attributes:
        share: Share of each task's episodes that is held out, above 0 and below 1; at least one.
        count: Meta-trajectories of held-out episodes, and as many of the others, for held-out
            losses and for the probe.

    Raises:
        ValueError: A value out of its range.
    """

    share: float = 0.1
    count: int = 400

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_at_least(self, 1, "count")
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share: expected a share between 0 and 1, found {self.share}.")


class StitchedEpisodes:
    """Draws meta-trajectories from M^K (section 3.5 of The Reflective Explorer).

    Args:
        dataset: A dataset of images.
        tasks: Tasks whose episodes are stitched.
        num_episodes: K.
        exploration: Stitch episodes of different tasks; else all K are of one task.
        held_out: What is held out.
        seed: Seed of every random draw.
        device: Where the data goes; None leaves it memory-mapped.

    Raises:
        ValueError: Fewer than two tasks or two episodes of a task, no success, or observations that
            are no images.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        tasks: list[int],
        *,
        num_episodes: int,
        exploration: bool,
        held_out: HeldOutEpisodes,
        seed: int,
        device: torch.device | None,
    ) -> None:
        self.num_episodes, self.exploration, self.seed = num_episodes, exploration, seed
        self.held_out = held_out
        first_reward = check_stitching(dataset, tasks)
        self._fit, self._held_out = self._split(dataset, tasks)
        self._table = EpisodeTable(dataset, first_reward, device)
        self.horizon = self._table.horizon

    def update(self, number: int, count: int, mine: slice = slice(None)) -> TensorDict:
        """Return the meta-trajectories [B] of one update of a filter.

        Args:
            number: Number of the update, from 0.
            count: Meta-trajectories of all processes.
            mine: This process's part of them.
        """
        return self._table.gather(self._draw(self._fit, count, UPDATES, number).select(mine))

    def for_beliefs(self, count: int, size: int) -> Iterator[TensorDict]:
        """Yield the meta-trajectories whose beliefs are cached, ``size`` at a time, [B]."""
        # Drawn as one, so that the beliefs do not depend on how many are gathered at a time.
        segments = self._draw(self._fit, count, CACHE)
        for first in range(0, count, size):
            yield self._table.gather(segments.select(slice(first, first + size)))

    def held_out_item(self) -> TensorDict:
        """Return ``fit``, of training episodes, and ``held_out``; TensorDict [B] each."""
        parts = {"fit": self._fit, "held_out": self._held_out}
        drawn = {
            name: self._table.gather(self._draw(episodes, self.held_out.count, PROBE, number))
            for number, (name, episodes) in enumerate(parts.items())
        }
        return TensorDict(drawn, batch_size=[])

    def _draw(self, episodes: dict[int, Rows], count: int, *stream: int) -> Segments:
        rng = np.random.default_rng([self.seed, *stream])
        single = not self.exploration
        return draw_segments(rng, episodes, count, self.num_episodes, single_task=single)

    def _split(
        self, dataset: TaskDataset, tasks: list[int]
    ) -> tuple[dict[int, Rows], dict[int, Rows]]:
        """Return the episodes to train on and those held out, of every task."""
        fit, held_out = {}, {}
        task_of = dataset.episodes["task"].numpy()
        for task in tasks:
            own = np.flatnonzero(task_of == task)
            if len(own) < 2:
                raise ValueError(
                    f"Task {task} of {dataset.path}: expected at least 2 episodes, one of them to "
                    f"be held out, found {len(own)}. Collect more."
                )
            # Whole episodes are held out: images of one episode are too much alike to split.
            chosen = np.random.default_rng([self.seed, SPLIT, task]).permutation(own)
            count = min(max(round(self.held_out.share * len(own)), 1), len(own) - 1)
            held_out[task], fit[task] = np.sort(chosen[:count]), np.sort(chosen[count:])
        return fit, held_out
