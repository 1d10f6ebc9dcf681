"""Batches of tasks with an inner and an outer batch of transitions each, from a fixed dataset.

Every batch is a function of (seed, number of the batch): it is drawn for all processes alike and
sliced by rank, so that the number of processes does not change it, and resuming needs one counter.
Shapes: U updates per batch, T tasks, B transitions, O/A observation/action size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from tensordict import TensorDict

from datamodules.loaders import HeldOutLoader, TaskLoader
from datamodules.preparation import (
    check_environment,
    check_intervals,
    check_settings,
    check_vectors,
    data_device,
    data_sizes,
    dataset_path,
    make_sampler,
    plain_slice,
    prepare_dataset,
)
from datamodules.sampling.fields import FieldTable
from datamodules.sampling.pool import ChunkPool
from datamodules.sampling.rows import BufferSlice, Rows, SliceSpec, make_buffer
from datamodules.sampling.tasks import BatchRows
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.dataset import TaskDataset


class TaskBuffers(lightning.LightningDataModule):
    """Serves the inner and outer batches of meta-training, and the contexts of held-out tasks.

    A batch is a TensorDict [U, T] with ``task``, ``weight``, ``inner`` [U, T, B], ``outer`` alike.

    Held-out tasks come as one TensorDict [T] with ``task``, ``weight``, ``context`` [T, B] and, for
    validating and testing, ``query`` [T, B], drawn like an inner and a disjoint outer batch.

    Args:
        env: short name of a task family, or a gymnasium id, which the dataset must be of.
        path: the dataset's folder, or any URL that fsspec knows (s3://, https://, ...), which is
            copied once; None for the default place.
        collect: collect the dataset if it is missing.
        split: name of the split into train and test tasks.
        tasks_per_batch: tasks of an outer step, over all processes; None for all train tasks.
        inner_batch_size: transitions to adapt on.
        outer_batch_size: transitions to measure the adapted parameters on.
        disjoint: no transition is in the inner and the outer batch of one task.
        contiguous: the inner batch is a window of neighbouring rows with a random start.
        stride: keep every k-th row of each task.
        inner_slice: part of the data for inner batches and contexts: first, middle or last rows, or
            a list of behaviour stages; None for all.
        outer_slice: the same for outer batches.
        fields: what a batch holds: stored keys, ``return_to_go``, ``terminal_observation``,
            ``terminal_discount``, ``task``.
        discount: per step, of returns to go.
        seed: of the batches.
        task_seed: of the task parameters, when collecting.
        steps_per_epoch: batches Lightning calls an epoch.
        updates_per_batch: outer steps in each batch, U.
        device: where the data lives: "auto" (the trainer's device while it is small, else
            memory-mapped), "cpu", "cuda", or "disk" for memory-mapped.
        sampling: what train batches are drawn from: all "rows", or, for data that does not fit in
            memory, a moving window of "chunks" of each task, read ahead by a thread.
        chunk_size: neighbouring rows that are read together.
        chunks_per_task: chunks of each task in memory. One batch holds rows of so many chunks.
        prefetch: batches made ahead by a thread; None for 4 with chunks, none with rows.
        collect_seed: of the collection.
        transitions_per_stage: of the collection; None for its default.
        untrained_episodes: of the collection: episodes of a policy that was never trained, as a
            stage ``untrained`` before all others.
    """

    dataset: TaskDataset

    def __init__(
        self,
        *,
        env: str,
        path: str | None = None,
        collect: bool = True,
        split: str = "default",
        tasks_per_batch: int | None = 5,
        inner_batch_size: int = 256,
        outer_batch_size: int = 256,
        disjoint: bool = True,
        contiguous: bool = False,
        stride: int = 1,
        inner_slice: BufferSlice | list[str] | None = None,
        outer_slice: BufferSlice | list[str] | None = None,
        fields: Sequence[str] = ("observation", "action", "return_to_go"),
        discount: float = 0.99,
        seed: int = 0,
        task_seed: int = 0,
        steps_per_epoch: int = 1000,
        updates_per_batch: int = 1,
        device: str = "auto",
        sampling: Literal["rows", "chunks"] = "rows",
        chunk_size: int = 1024,
        chunks_per_task: int = 16,
        prefetch: int | None = None,
        collect_seed: int = 0,
        transitions_per_stage: int | None = None,
        untrained_episodes: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["inner_slice", "outer_slice", "fields"])
        # Plain types only, because checkpoints keep these.
        self.hparams.update(
            inner_slice=plain_slice(inner_slice),
            outer_slice=plain_slice(outer_slice),
            fields=list(fields),
        )
        check_settings(self.hparams)
        self.batches_served = 0
        self._loader: TaskLoader | None = None

    @property
    def path(self) -> Path:
        """The dataset's folder."""
        return dataset_path(self.hparams)

    @property
    def prefetch(self) -> int:
        """Batches made ahead."""
        settings: Any = self.hparams
        usual = 4 if settings.sampling == "chunks" else 0
        return usual if settings.prefetch is None else int(settings.prefetch)

    @property
    def family(self) -> Any:
        """The task family of the dataset; asking for it imports the simulators."""
        from offline_meta_rl.envs import family_of

        return family_of(self.dataset.manifest.environment)

    def sizes(self) -> DataSizes:
        """Return the sizes of the data, there or still to be collected."""
        return data_sizes(self.path, self.hparams)

    def prepare_data(self) -> None:
        """Collect the dataset if it is missing; other processes wait meanwhile."""
        prepare_dataset(self.path, self.hparams)

    def setup(self, stage: str | None = None) -> None:
        """Open the dataset, check it against the settings, and load the fields.

        Raises:
            FileNotFoundError: no dataset there.
            ValueError: a dataset of another environment or of images, unknown split, too few tasks
                or rows.
        """
        settings: Any = self.hparams
        if not hasattr(self, "dataset"):
            dataset = TaskDataset.open(self.path)
            check_environment(dataset, settings.env)
            check_vectors(dataset)
            self.train_tasks, self.test_tasks = dataset.split(settings.split)
            wanted = "disk" if settings.sampling == "chunks" else settings.device
            place = data_device(dataset, wanted, self.trainer)
            self._table = FieldTable(dataset, settings.fields, settings.discount, place)
            self._sampler = make_sampler(dataset, self.train_tasks, settings)
            self.dataset = dataset
        if stage in (None, "fit"):
            self._sampler.check()
            chunks = dict.fromkeys(self._sampler.chunks or ())
            self._pools = [ChunkPool(self._table, each, self.train_tasks) for each in chunks]
            check_intervals(self.trainer, settings.updates_per_batch)

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TensorDict:
        """Return batch number ``step``, or one process's tasks of it, [U, T].

        ``weight`` is 1 / tasks of the whole batch, so that weighted losses sum up over processes.
        """
        rows = self._sampler.batch(step)
        mine = rows.shard(rank, world_size)
        return self._assemble(mine.tasks, rows.tasks.shape[1], **self._gather(step, mine))

    def context(
        self,
        tasks: Sequence[int],
        size: int,
        *,
        seed: int,
        fields: Sequence[str] | None = None,
        slice: SliceSpec = None,
    ) -> TensorDict:
        """Draw a context for each task, uniformly without replacement.

        A task's context depends on the seed and the task alone, not on the other tasks.

        Args:
            tasks: indices of T tasks.
            size: transitions B of each.
            seed: of the draw.
            fields: what to return; None for the datamodule's own fields.
            slice: part of the data to draw from; None for that of inner batches.

        Returns:
            The contexts, [T, B].

        Raises:
            ValueError: unknown task, stage or field, or too few transitions.
        """
        settings: Any = self.hparams
        buffer = None if slice is None else make_buffer(self.dataset, slice, settings.stride)
        table = self._table
        if fields is not None and tuple(fields) != table.fields:
            table = FieldTable(self.dataset, fields, settings.discount, None)
        return table.gather(self._sampler.context(tasks, size, seed, buffer))

    def train_dataloader(self) -> TaskLoader:
        """Batches of train tasks, endlessly different."""
        self._loader = TaskLoader(self, self.prefetch)
        return self._loader

    def val_dataloader(self) -> HeldOutLoader:
        """One item: every test task with ``context`` and ``query``, always the same."""
        return HeldOutLoader(self._held_out(query=True))

    def test_dataloader(self) -> HeldOutLoader:
        """The item of ``val_dataloader``."""
        return self.val_dataloader()

    def predict_dataloader(self) -> HeldOutLoader:
        """One item: every test task with ``context``."""
        return HeldOutLoader(self._held_out(query=False))

    def state_dict(self) -> dict[str, Any]:
        """The number of batches served."""
        return {"batches_served": self.batches_served}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the next batch."""
        self.batches_served = int(state_dict["batches_served"])

    def teardown(self, stage: str | None = None) -> None:
        """End the thread that makes batches ahead."""
        if self._loader is not None:
            self._loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the thread that makes batches ahead."""
        self.teardown()

    def _gather(self, step: int, rows: BatchRows) -> dict[str, TensorDict]:
        """Return the inner and outer batches of the rows drawn for batch number ``step``."""
        first = step * int(self.hparams["updates_per_batch"])
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
        settings: Any = self.hparams
        if not self.test_tasks:
            return []
        sampler = self._sampler
        context = sampler.context(self.test_tasks, settings.inner_batch_size, settings.seed)
        parts = {"context": self._table.gather(context)}
        if query:
            parts["query"] = self._table.gather(sampler.query(self.test_tasks, context))
        return [self._assemble(np.asarray(self.test_tasks), len(self.test_tasks), **parts)]

    def _assemble(self, tasks: Rows, num_tasks: int, **parts: TensorDict) -> TensorDict:
        """Return task, weight and the gathered parts as one TensorDict of the tasks' shape."""
        weight = torch.full(tasks.shape, 1.0 / num_tasks, device=self._table.device)
        task = torch.from_numpy(np.ascontiguousarray(tasks)).to(weight.device)
        return TensorDict({"task": task, "weight": weight, **parts}, batch_size=tasks.shape)
