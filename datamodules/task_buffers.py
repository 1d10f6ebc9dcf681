"""Batches of tasks with an inner and an outer batch of transitions each, from a fixed dataset.

Shapes: U updates per batch, T tasks, B transitions, O/A observation/action size.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from tensordict import TensorDict

from datamodules.base import DatasetModule
from datamodules.loaders import HeldOutLoader
from datamodules.preparation import check_environment, check_intervals, check_vectors
from datamodules.sampling.chunks import make_chunks
from datamodules.sampling.fields import FieldTable
from datamodules.sampling.pool import ChunkPool
from datamodules.sampling.rows import Rows, make_buffer
from datamodules.sampling.tasks import Batches, BatchRows, TaskSampler
from datamodules.storage import Storage, data_device
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.data.contracts import DataSlice
from offline_meta_rl.data.dataset import TaskDataset


class TaskBuffers(DatasetModule):
    """Serves the inner and outer batches of meta-training, and the contexts of held-out tasks.

    A batch is a TensorDict [U, T] with ``task``, ``weight``, ``inner`` [U, T, B], ``outer`` alike.

    Held-out tasks come as one TensorDict [T] with ``task``, ``weight``, ``context`` [T, B] and, for
    validating and testing, ``query`` [T, B], drawn like an inner and a disjoint outer batch.

    Args:
        env: Short name of a task family, or a gymnasium id, which the dataset must be of.
        path: The dataset's folder, or any URL that fsspec knows (s3://, https://, ...), which is
            copied once; None for the default place.
        collect: Collect the dataset if it is missing.
        split: Name of the split into train and test tasks.
        fields: What a batch holds: stored keys, ``return_to_go``, ``terminal_observation``,
            ``terminal_discount``, ``task``.
        discount: Discount per step of the returns to go, 0 to 1.
        seed: Seed of the batches.
        batches: How many tasks and transitions an outer step sees, and which.
        storage: Where the data live, and how what does not fit in memory is read.
        collection: What is collected.
        steps_per_epoch: Batches Lightning calls an epoch.

    Raises:
        ValueError: Settings that do not go together.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "tasks_per_batch": "batches.tasks",
        "inner_batch_size": "batches.inner_size",
        "outer_batch_size": "batches.outer_size",
        "disjoint": "batches.disjoint",
        "contiguous": "batches.contiguous",
        "stride": "batches.stride",
        "inner_slice": "batches.inner_slice",
        "outer_slice": "batches.outer_slice",
        "updates_per_batch": "batches.updates",
        "device": "storage.device",
        "sampling": "storage.sampling",
        "chunk_size": "storage.chunk_size",
        "chunks_per_task": "storage.chunks_per_task",
        "prefetch": "storage.prefetch",
        "task_seed": "collection.task_seed",
        "collect_seed": "collection.seed",
        "transitions_per_stage": "collection.transitions_per_stage",
        "untrained_episodes": "collection.untrained_episodes",
    }

    def __init__(
        self,
        *,
        env: str,
        path: str | None = None,
        collect: bool = True,
        split: str = "default",
        fields: Sequence[str] = ("observation", "action", "return_to_go"),
        discount: float = 0.99,
        seed: int = 0,
        batches: Batches = Batches(),
        storage: Storage = Storage(),
        collection: Collection = Collection(),
        steps_per_epoch: int = 1000,
    ) -> None:
        super().__init__(
            env=env,
            path=path,
            collect=collect,
            split=split,
            collection=collection,
            steps_per_epoch=steps_per_epoch,
            prefetch=storage.batches_ahead,
        )
        self.save_hyperparameters()
        self._make_hparams_plain()
        self.fields, self.discount, self.seed = tuple(fields), discount, seed
        self.batches, self.storage = batches, storage
        if batches.contiguous and storage.sampling == "chunks":
            raise ValueError(
                "contiguous: expected false with sampling chunks, which draws single rows, found "
                "true. Set --data.batches.contiguous false, or --data.storage.sampling rows."
            )

    def setup(self, stage: str | None = None) -> None:
        """Open the dataset, check it against the settings, and load the fields.

        Raises:
            FileNotFoundError: No dataset there.
            ValueError: A dataset of another environment or of images, unknown split, too few tasks
                or rows.
        """
        if not self.is_open:
            self._open()
        if stage in (None, "fit"):
            self._sampler.check()
            chunks = dict.fromkeys(self._sampler.chunks or ())
            # One pool where inner and outer batches share their rows, so that no chunk is held
            # twice.
            self._pools = [ChunkPool(self._table, each, self.train_tasks) for each in chunks]
            check_intervals(self.trainer, self.batches.updates)

    def _open(self) -> None:
        """Open the dataset; all is checked before it counts as open."""
        dataset = TaskDataset.open(self.path)
        check_environment(dataset, self.env)
        check_vectors(dataset)
        self.train_tasks, self.test_tasks = dataset.split(self.split)
        wanted = "disk" if self.storage.sampling == "chunks" else self.storage.device
        place = data_device(dataset, wanted, self.trainer)
        self._table = FieldTable(dataset, self.fields, self.discount, place)
        self._sampler = self._make_sampler(dataset)
        self.dataset = dataset

    def _make_sampler(self, dataset: TaskDataset) -> TaskSampler:
        """Return how batches are drawn; whether they can be is checked before training."""
        batches, storage = self.batches, self.storage
        inner = outer = make_buffer(dataset, batches.inner_slice, batches.stride)
        if batches.outer_slice != batches.inner_slice:
            outer = make_buffer(dataset, batches.outer_slice, batches.stride)
        chunks = None
        if storage.sampling == "chunks":
            count = max(1, len(self.train_tasks))
            chunks = make_chunks(
                inner,
                outer,
                size=storage.chunk_size,
                per_task=storage.chunks_per_task,
                batch_sizes=(batches.inner_size, batches.outer_size),
                share=(batches.tasks or count) / count,
                seed=self.seed,
            )
        return TaskSampler(dataset, self.train_tasks, inner, outer, self.seed, batches, chunks)

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TensorDict:
        """Return batch number ``step``, or one process's tasks of it, [U, T].

        ``weight`` is 1 / tasks of the whole batch, so that weighted losses sum up over processes.
        """
        rows = self._sampler.batch(step)
        mine = rows.shard(rank, world_size)
        # ``weight`` is 1 / tasks of all processes, not of this one's share.
        return self._assemble(mine.tasks, rows.tasks.shape[1], **self._gather(step, mine))

    def context(
        self,
        tasks: Sequence[int],
        size: int,
        *,
        seed: int,
        fields: Sequence[str] | None = None,
        slice: DataSlice | None = None,
    ) -> TensorDict:
        """Draw a context for each task, uniformly without replacement.

        A task's context depends on the seed and the task alone, not on the other tasks.

        Args:
            tasks: Indices of T tasks.
            size: Transitions B of each.
            seed: Seed of the draw.
            fields: What to return; None for the datamodule's own fields.
            slice: Part of the data to draw from; None for that of inner batches.

        Returns:
            The contexts, [T, B].

        Raises:
            ValueError: Unknown task, stage or field, or too few transitions.
        """
        stride = self.batches.stride
        buffer = None if slice is None else make_buffer(self.dataset, slice, stride)
        table = self._table
        if fields is not None and tuple(fields) != table.fields:
            # Rare and small, so these fields are read from the disk rather than kept on the device.
            table = FieldTable(self.dataset, fields, self.discount, None)
        return table.gather(self._sampler.context(tasks, size, seed, buffer))

    def val_dataloader(self) -> HeldOutLoader:
        """One item: every test task with ``context`` and ``query``, always the same."""
        return HeldOutLoader(self._held_out(query=True))

    def predict_dataloader(self) -> HeldOutLoader:
        """One item: every test task with ``context``."""
        return HeldOutLoader(self._held_out(query=False))

    def _gather(self, step: int, rows: BatchRows) -> dict[str, TensorDict]:
        """Return the inner and outer batches of the rows drawn for batch number ``step``."""
        first = step * self.batches.updates
        if not self._pools:
            parts = [self._table.gather(part) for part in (rows.inner, rows.outer)]
        elif len(self._pools) == 1:
            parts = self._pools[0].gather(first, rows.tasks, rows.inner, rows.outer)
        else:
            inner, outer = self._pools
            parts = inner.gather(first, rows.tasks, rows.inner)
            parts += outer.gather(first, rows.tasks, rows.outer)
        return dict(zip(("inner", "outer"), parts, strict=True))

    def _held_out(self, *, query: bool) -> list[TensorDict]:
        """Return one item with every test task, none if there are none."""
        if not self.test_tasks:
            return []
        sampler = self._sampler
        context = sampler.context(self.test_tasks, self.batches.inner_size, self.seed)
        parts = {"context": self._table.gather(context)}
        if query:
            parts["query"] = self._table.gather(sampler.query(self.test_tasks, context))
        return [self._assemble(np.asarray(self.test_tasks), len(self.test_tasks), **parts)]

    def _assemble(self, tasks: Rows, num_tasks: int, **parts: TensorDict) -> TensorDict:
        """Return task, weight and the gathered parts as one TensorDict of the tasks' shape."""
        weight = torch.full(tasks.shape, 1.0 / num_tasks, device=self._table.device)
        task = torch.from_numpy(np.ascontiguousarray(tasks)).to(weight.device)
        return TensorDict({"task": task, "weight": weight, **parts}, batch_size=tasks.shape)
