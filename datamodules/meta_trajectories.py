"""Stitched meta-trajectories from a fixed image dataset, or transitions between their beliefs.

Every batch is a function of (seed, number of the update): it is drawn for all processes alike and
sliced by rank, so that the number of processes does not change it, and resuming needs one counter.
Shapes: U updates per batch, B meta-trajectories or transitions, K episodes of a meta-trajectory, H
steps of the longest episode, S = K (H + 1) positions, A action size, Z belief size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from datamodules.base import DatasetModule
from datamodules.loaders import HeldOutLoader
from datamodules.preparation import check_environment, check_intervals
from datamodules.sampling.belief_cache import cached_beliefs, compute_beliefs, filter_identity
from datamodules.sampling.stitch import Rows
from datamodules.sampling.stitched import HeldOutEpisodes, StitchedEpisodes
from datamodules.sampling.transitions import BeliefTransitions
from datamodules.storage import data_device
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.networks.filter.beliefs import device_of
from offline_meta_rl.networks.filter.model import VariationalFilter

# Streams of random numbers that never meet those of ``stitched``.
POLICY, NOISE = 4, 5
SMALLEST_SPREAD = 1e-6
"""A number of a belief that hardly varies is divided by this, and stays small."""


@dataclass(frozen=True)
class BeliefBatches:
    """Batches of transitions between beliefs, which a policy learns from.

    Attributes:
        count: Meta-trajectories that are drawn once, whose beliefs are computed and kept.
        batch_size: Transitions of an update of the policy, over all processes.
        updates_per_batch: Updates of the policy in each batch.
        across_episodes: Train across the boundaries of episodes too, with the value going on into
            the next one, as the paper's text has it; else every episode ends its value.

    Raises:
        ValueError: A count below 1.
    """

    count: int = 3000
    batch_size: int = 256
    updates_per_batch: int = 1
    across_episodes: bool = False

    def __post_init__(self) -> None:
        """Check the counts."""
        check_at_least(self, 1, "count", "batch_size", "updates_per_batch")


class MetaTrajectories(DatasetModule):
    """Serves meta-trajectories drawn from M^K, or transitions between a filter's beliefs over them.

    A batch is a TensorDict [U, B] for training a filter: what ``EpisodeTable.gather`` returns, and
    ``weight`` 1 / B. Once a method has called ``serve_beliefs`` it is a TensorDict [U, B] for
    training a policy: what ``BeliefTransitions.gather`` returns, and ``weight`` 1 / B. Held-out
    data is one item: a TensorDict [] with ``fit`` [M], meta-trajectories of the training episodes,
    and ``held_out`` [M] of the held-out ones.

    Args:
        env: Short name of a task family, or a gymnasium id, which the dataset must be of.
        path: The dataset's folder, or any URL that fsspec knows; None for the default place.
        collect: Collect the dataset if it is missing.
        collection: What decides the data that are collected.
        split: Name of the split whose train tasks are stitched.
        num_episodes: K, episodes of a meta-trajectory. Evaluate no more than so many.
        exploration: Stitch episodes of different tasks; False for the paper's "No Expl": K episodes
            of one task with their own rewards.
        batch_size: Meta-trajectories of an update of the filter, over all processes.
        updates_per_batch: Updates of the filter in each batch.
        beliefs: Batches of the policy.
        held_out: What is held out.
        seed: Seed of the held-out episodes, of all batches and of the cached beliefs' noise.
        steps_per_epoch: Batches that Lightning calls an epoch.
        device: Where the data lives: "auto" (the trainer's device while it is small, else
            memory-mapped), "cpu", "cuda", or "disk" for memory-mapped.

    Attributes:
        dataset: The dataset, after ``setup``.
        train_tasks: Indices of the tasks that are stitched.
        test_tasks: Indices of the tasks that are explored.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "belief_meta_trajectories": "beliefs.count",
        "policy_batch_size": "beliefs.batch_size",
        "policy_updates_per_batch": "beliefs.updates_per_batch",
        "boundary_transitions": "beliefs.across_episodes",
        "validation_share": "held_out.share",
        "probe_meta_trajectories": "held_out.count",
        "collect_seed": "collection.seed",
        "task_seed": "collection.task_seed",
        "transitions_per_stage": "collection.transitions_per_stage",
    }

    def __init__(
        self,
        *,
        env: str,
        path: str | None = None,
        collect: bool = True,
        collection: Collection = Collection(),
        split: str = "default",
        num_episodes: int = 3,
        exploration: bool = True,
        batch_size: int = 32,
        updates_per_batch: int = 1,
        beliefs: BeliefBatches = BeliefBatches(),
        held_out: HeldOutEpisodes = HeldOutEpisodes(),
        seed: int = 0,
        steps_per_epoch: int = 1000,
        device: str = "auto",
    ) -> None:
        super().__init__(
            env=env,
            path=path,
            collect=collect,
            split=split,
            collection=collection,
            steps_per_epoch=steps_per_epoch,
        )
        self.save_hyperparameters()
        self._make_hparams_plain()
        self.num_episodes, self.exploration = num_episodes, exploration
        self.batch_size, self.updates_per_batch = batch_size, updates_per_batch
        self.beliefs, self.held_out, self.seed = beliefs, held_out, seed
        self.device = device
        check_at_least(self, 1, "num_episodes", "batch_size", "updates_per_batch")
        self._transitions: BeliefTransitions | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an observation."""
        channels, height, width = self.dataset.manifest.observation_space["shape"]
        return channels, height, width

    @property
    def horizon(self) -> int:
        """H, steps of the longest episode: a meta-trajectory has K (H + 1) positions."""
        return self._stitched.horizon

    def setup(self, stage: str | None = None) -> None:
        """Open the dataset, check that it can be stitched, and load it.

        Raises:
            FileNotFoundError: No dataset there.
            ValueError: A dataset of another environment, unknown split, fewer than two tasks or
                two episodes of a task, no success, observations that are no images.
        """
        if not self.is_open:
            dataset = TaskDataset.open(self.path)
            check_environment(dataset, self.env)
            self.train_tasks, self.test_tasks = dataset.split(self.split)
            self._stitched = StitchedEpisodes(
                dataset,
                self.train_tasks,
                num_episodes=self.num_episodes,
                exploration=self.exploration,
                held_out=self.held_out,
                seed=self.seed,
                device=data_device(dataset, self.device, self.trainer),
            )
            self.dataset = dataset
        if stage in (None, "fit"):
            check_intervals(self.trainer, self.updates_per_batch)
            check_intervals(self.trainer, self.beliefs.updates_per_batch)
            self._check_processes()

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TensorDict:
        """Return batch number ``step``, or one process's part of it, [U, B].

        ``weight`` is 1 / size of the whole batch, so that weighted losses sum up over processes.
        """
        mine = slice(rank, None, world_size)
        if self._transitions is None:
            count, size = self.updates_per_batch, self.batch_size
            numbers = range(step * count, (step + 1) * count)
            batch = TensorDict.stack([self._stitched.update(n, size, mine) for n in numbers])
        else:
            count, size = self.beliefs.updates_per_batch, self.beliefs.batch_size
            numbers = range(step * count, (step + 1) * count)
            rows = [self._policy_rows(n, len(self._transitions)) for n in numbers]
            batch = self._transitions.gather(np.stack(rows)[:, mine])
        batch["weight"] = torch.full(batch.batch_size, 1.0 / size, device=batch.device)
        return batch

    def serve_beliefs(self, model: VariationalFilter, folder: Path) -> tuple[Tensor, Tensor]:
        """Serve transitions between standardised beliefs from the next batch on.

        The beliefs depend on the filter, the dataset and these settings alone. They are computed
        once and kept; another run with the same filter reads them.

        Args:
            model: Gives the beliefs.
            folder: Where they are kept, or found.

        Returns:
            Mean and standard deviation of each number of a belief, [Z].

        Raises:
            ValueError: A belief is not finite, or the file of beliefs is damaged.
        """
        identity = {
            "filter": filter_identity(model),
            "dataset": self.dataset.checksum,
            "tasks": list(self.train_tasks),
            "held_out_share": self.held_out.share,
            "num_episodes": self.num_episodes,
            "exploration": self.exploration,
            "count": self.beliefs.count,
            "seed": self.seed,
        }
        cache = cached_beliefs(
            folder,
            identity,
            lambda: compute_beliefs(model, self._stitched, self.beliefs.count, [self.seed, NOISE]),
        )
        cache = cache.to(device_of(model))
        # Beliefs mean nothing in padding, so it has no part in their statistics.
        valid = cache["belief"][cache["mask"]]
        mean, spread = valid.mean(dim=0), valid.std(dim=0).clamp_min(SMALLEST_SPREAD)
        cache["belief"] = (cache["belief"] - mean) / spread
        self.serve_transitions(cache)
        return mean, spread

    def serve_transitions(self, cache: TensorDict) -> None:
        """Serve transitions between given beliefs from the next batch on.

        Args:
            cache: TensorDict [M, S]: belief [M, S, Z], and of the meta-trajectories they belong to
                action, reward and mask.

        Raises:
            ValueError: A field is missing, or a belief is not finite.
        """
        self._transitions = BeliefTransitions(
            cache, self.num_episodes, across=self.beliefs.across_episodes
        )

    def held_out_item(self) -> TensorDict:
        """Return ``fit`` and ``held_out`` meta-trajectories, [M] each, always the same."""
        return self._stitched.held_out_item()

    def val_dataloader(self) -> HeldOutLoader:
        """The held-out item."""
        return HeldOutLoader([self.held_out_item()])

    def _policy_rows(self, number: int, count: int) -> Rows:
        """Draw the transitions of one update of the policy; depends on its own number alone."""
        # A generator for each update: how many updates share a batch does not change any of them.
        rng = np.random.default_rng([self.seed, POLICY, number])
        return rng.integers(count, size=self.beliefs.batch_size)

    def _check_processes(self) -> None:
        world_size = 1 if self.trainer is None else self.trainer.world_size
        sizes = {"batch_size": self.batch_size, "beliefs.batch_size": self.beliefs.batch_size}
        for name, size in sizes.items():
            if size < world_size:
                raise ValueError(
                    f"{name}: expected at least one row for each of the {world_size} processes, "
                    f"found {size}. Raise --data.{name}."
                )
