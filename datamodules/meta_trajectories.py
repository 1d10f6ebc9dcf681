"""Stitched meta-trajectories from a fixed image dataset, then transitions between their beliefs.

Shapes: U updates per batch, B meta-trajectories, K episodes of each, H steps of the longest,
S = K (H + 1) positions, A action size, Z belief size.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict

from datamodules.base import DatasetModule
from datamodules.loaders import HeldOutLoader, State
from datamodules.preparation import check_environment, check_intervals
from datamodules.sampling.episodes import EpisodeTable
from datamodules.sampling.stitch import Rows, Segments, draw_segments
from datamodules.sampling.stitch_checks import check_stitching
from datamodules.sampling.transitions import BeliefTransitions
from datamodules.storage import data_device
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.data.dataset import TaskDataset

# Streams of random numbers that never meet.
SPLIT, UPDATES, CACHE, PROBE, POLICY = range(5)
AT_LEAST_ONE = (
    "num_episodes",
    "batch_size",
    "updates_per_batch",
    "belief_meta_trajectories",
    "policy_batch_size",
    "policy_updates_per_batch",
    "probe_meta_trajectories",
)


class MetaTrajectories(DatasetModule):
    """Serves meta-trajectories drawn from M^K, and later transitions between their beliefs.

    Until ``serve_beliefs`` is called a batch is a TensorDict [U, B] for the filter: what
    ``EpisodeTable.gather`` returns, and ``weight`` 1 / B. Afterwards it is a TensorDict [U', B']:
    what ``BeliefTransitions.gather`` returns, and ``weight`` 1 / B'. Held-out data is one item: a
    TensorDict [] with ``fit`` [M], meta-trajectories of the training episodes, and ``held_out`` [M]
    of the held-out ones: for held-out losses and the task-decoding probe.

    Args:
        env: short name of a task family, or a gymnasium id, which the dataset must be of.
        path: the dataset's folder, or any URL that fsspec knows; None for the default place.
        collect: collect the dataset if it is missing.
        split: name of the split whose train tasks are stitched.
        num_episodes: K, episodes of a meta-trajectory. Evaluate no more than so many.
        batch_size: meta-trajectories B of an update of the filter, over all processes.
        updates_per_batch: updates of the filter in each batch, U.
        exploration: stitch episodes of different tasks; False for the paper's "No Expl": K episodes
            of one task with their own rewards.
        belief_meta_trajectories: how many are drawn once, to cache their beliefs.
        policy_batch_size: transitions between beliefs B' of an update of the policy.
        policy_updates_per_batch: updates of the policy in each batch, U'.
        boundary_transitions: train also across the boundaries of episodes, with the value going on
            into the next one, as the paper's text has it; else every episode ends its value.
        validation_share: share of each task's episodes that is held out, at least one.
        probe_meta_trajectories: of each part of the held-out item, M.
        seed: of the held-out episodes and of all batches.
        steps_per_epoch: batches Lightning calls an epoch.
        device: where the data lives: "auto" (the trainer's device while it is small, else
            memory-mapped), "cpu", "cuda", or "disk" for memory-mapped.
        collection: what is collected.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "task_seed": "collection.task_seed",
        "collect_seed": "collection.seed",
        "transitions_per_stage": "collection.transitions_per_stage",
    }

    if TYPE_CHECKING:
        hparams: Any  # Lightning's type has no attributes

    def __init__(
        self,
        *,
        env: str,
        path: str | None = None,
        collect: bool = True,
        split: str = "default",
        num_episodes: int = 3,
        batch_size: int = 32,
        updates_per_batch: int = 1,
        exploration: bool = True,
        belief_meta_trajectories: int = 3000,
        policy_batch_size: int = 256,
        policy_updates_per_batch: int = 1,
        boundary_transitions: bool = False,
        validation_share: float = 0.1,
        probe_meta_trajectories: int = 400,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        device: str = "auto",
        collection: Collection = Collection(),
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
        for name in AT_LEAST_ONE:
            if self.hparams[name] < 1:
                raise ValueError(f"{name}: expected at least 1, found {self.hparams[name]}.")
        if not 0.0 < validation_share < 1.0:
            raise ValueError(
                f"validation_share: expected a share between 0 and 1, found {validation_share}."
            )
        self.filter_batches: int | None = None
        self._beliefs: BeliefTransitions | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an observation."""
        channels, height, width = self.dataset.manifest.observation_space["shape"]
        return channels, height, width

    @property
    def horizon(self) -> int:
        """H, steps of the longest episode: a meta-trajectory has K (H + 1) positions."""
        return self._table.horizon

    def setup(self, stage: str | None = None) -> None:
        """Open the dataset, check that it can be stitched, and load it.

        Raises:
            FileNotFoundError: no dataset there.
            ValueError: a dataset of another environment, unknown split, fewer than two tasks or
                two episodes of a task, no success, observations that are no images.
        """
        settings = self.hparams
        if not self.is_open:
            dataset = TaskDataset.open(self.path)
            check_environment(dataset, settings.env)
            self.train_tasks, self.test_tasks = dataset.split(settings.split)
            first_reward = check_stitching(dataset, self.train_tasks)
            self._fit, self._held_out = self._split_episodes(dataset)
            place = data_device(dataset, settings.device, self.trainer)
            self._table = EpisodeTable(dataset, first_reward, place)
            self.dataset = dataset
        if stage in (None, "fit"):
            check_intervals(self.trainer, settings.updates_per_batch)
            check_intervals(self.trainer, settings.policy_updates_per_batch)
            self._check_processes()

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TensorDict:
        """Return batch number ``step``, or one process's part of it.

        ``weight`` is 1 / size of the whole batch, so that weighted losses sum up over processes.
        """
        settings = self.hparams
        if self._beliefs is not None and self.filter_batches is not None:
            count, size = settings.policy_updates_per_batch, settings.policy_batch_size
            first = (step - self.filter_batches) * count
            numbers = [self._transitions(number) for number in range(first, first + count)]
            batch = self._beliefs.gather(np.stack(numbers)[:, rank::world_size])
        else:
            count, size = settings.updates_per_batch, settings.batch_size
            first = step * count
            drawn = [self._update(number) for number in range(first, first + count)]
            updates = [
                self._table.gather(part.select(slice(rank, None, world_size))) for part in drawn
            ]
            batch = torch.stack(updates)
        batch["weight"] = torch.full(batch.batch_size, 1.0 / size, device=batch.device)
        return batch

    def belief_batches(self, size: int) -> Iterator[TensorDict]:
        """Yield the meta-trajectories whose beliefs are to be cached, ``size`` at a time.

        They are always the same for one seed, and the same in all processes.
        """
        count: int = self.hparams.belief_meta_trajectories
        segments = self._draw(self._fit, count, CACHE)
        for first in range(0, count, size):
            yield self._table.gather(segments.select(slice(first, first + size)))

    def serve_beliefs(self, cache: TensorDict) -> None:
        """Serve transitions between these beliefs from the next batch on.

        The beliefs are not part of a checkpoint: after resuming they have to be served again.

        Args:
            cache: TensorDict [M, S]: belief [M, S, Z], and of the meta-trajectories they belong to
                action, reward and mask.

        Raises:
            ValueError: a field is missing, or a belief is not finite.
        """
        self._beliefs = BeliefTransitions(
            cache, self.hparams.num_episodes, across=self.hparams.boundary_transitions
        )
        if self.filter_batches is None:
            self.filter_batches = self.batches_served

    def val_dataloader(self) -> HeldOutLoader:
        """One item with ``fit`` and ``held_out``, always the same."""
        count: int = self.hparams.probe_meta_trajectories
        parts = {"fit": self._fit, "held_out": self._held_out}
        drawn = {
            name: self._table.gather(self._draw(episodes, count, PROBE, number))
            for number, (name, episodes) in enumerate(parts.items())
        }
        return HeldOutLoader([TensorDict(drawn, batch_size=[])])

    def state_dict(self) -> State:
        """The number of batches served, and of those for the filter once it has been trained."""
        return {"batches_served": self.batches_served, "filter_batches": self.filter_batches}

    def load_state_dict(self, state_dict: State) -> None:
        """Continue with the next batch."""
        super().load_state_dict(state_dict)
        self.filter_batches = state_dict["filter_batches"]

    def _update(self, number: int) -> Segments:
        """Draw for one update of the filter; depends on its own number alone."""
        return self._draw(self._fit, self.hparams.batch_size, UPDATES, number)

    def _transitions(self, number: int) -> Rows:
        """Draw for one update of the policy; depends on its own number alone."""
        assert self._beliefs is not None
        rng = np.random.default_rng([self.hparams.seed, POLICY, number])
        return rng.integers(len(self._beliefs), size=self.hparams.policy_batch_size)

    def _draw(self, episodes: dict[int, Rows], count: int, *stream: int) -> Segments:
        settings = self.hparams
        rng = np.random.default_rng([settings.seed, *stream])
        single = not settings.exploration
        return draw_segments(rng, episodes, count, settings.num_episodes, single_task=single)

    def _split_episodes(self, dataset: TaskDataset) -> tuple[dict[int, Rows], dict[int, Rows]]:
        """Return the episodes to train on and those held out, of every train task."""
        fit, held_out = {}, {}
        task_of = dataset.episodes["task"].numpy()
        for task in self.train_tasks:
            own = np.flatnonzero(task_of == task)
            if len(own) < 2:
                raise ValueError(
                    f"Task {task} of {dataset.path}: expected at least 2 episodes, one of them to "
                    f"be held out, found {len(own)}. Collect more."
                )
            rng = np.random.default_rng([self.hparams.seed, SPLIT, task])
            count = round(self.hparams.validation_share * len(own))
            chosen = rng.permutation(own)
            count = min(max(count, 1), len(own) - 1)
            held_out[task], fit[task] = np.sort(chosen[:count]), np.sort(chosen[count:])
        return fit, held_out

    def _check_processes(self) -> None:
        world_size = 1 if self.trainer is None else self.trainer.world_size
        for name in ("batch_size", "policy_batch_size"):
            if self.hparams[name] < world_size:
                raise ValueError(
                    f"{name}: expected at least one row for each of the {world_size} processes, "
                    f"found {self.hparams[name]}. Raise --data.init_args.{name}."
                )
