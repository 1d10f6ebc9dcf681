"""What the datamodules of a fixed dataset share: they find it, or collect it, and number batches.

A batch is a function of (seed, number of the batch): it is drawn for all processes alike and sliced
by rank, so that the number of processes does not change it, and resuming needs one counter.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
from lightning.fabric.utilities.data import AttributeDict
from tensordict import TensorDict

from datamodules.loaders import HeldOutLoader, State, TaskLoader
from datamodules.preparation import data_sizes, dataset_path, prepare_dataset
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.common.settings import to_plain
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.dataset import TaskDataset

if TYPE_CHECKING:
    from offline_meta_rl.envs.base import TaskFamily  # imports the simulators


class DatasetModule(lightning.LightningDataModule, ABC):
    """Serves batches of one dataset, which is collected first where it is missing.

    Args:
        env: Short name of a task family, or a gymnasium id, which the dataset must be of.
        path: The dataset's folder, or any URL that fsspec knows (s3://, https://, ...), which is
            copied once; None for the default place.
        collect: Collect the dataset if it is missing.
        split: Name of the split into train and test tasks.
        collection: What is collected then.
        steps_per_epoch: Batches Lightning calls an epoch, at least 1.
        prefetch: Batches made ahead by a thread.

    Attributes:
        dataset: The dataset, once ``setup`` has opened it.
        train_tasks: Indices of the tasks trained on, likewise.
        test_tasks: Indices of the held-out tasks, likewise.
        batches_served: Number of the next batch.
    """

    dataset: TaskDataset
    train_tasks: list[int]
    test_tasks: list[int]

    def __init__(
        self,
        *,
        env: str,
        path: str | None,
        collect: bool,
        split: str,
        collection: Collection,
        steps_per_epoch: int,
        prefetch: int = 0,
    ) -> None:
        super().__init__()
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch: expected at least 1, found {steps_per_epoch}.")
        self.env, self.collect, self.split, self.collection = env, collect, split, collection
        self.steps_per_epoch, self.prefetch = steps_per_epoch, prefetch
        self.batches_served = 0
        self._given_path = path
        self._loader: TaskLoader | None = None

    @property
    def hparams_initial(self) -> AttributeDict:
        """The constructor's arguments as loggers get them, plain."""
        return AttributeDict(to_plain(dict(super().hparams_initial)))

    def _make_hparams_plain(self) -> None:
        """Flatten what ``save_hyperparameters`` kept: checkpoints are read without running code."""
        self.hparams.update(to_plain(dict(self.hparams)))

    @property
    def is_open(self) -> bool:
        """Whether ``setup`` has opened the dataset; Lightning calls it before every stage."""
        # Opening costs seconds and memory, so it is done once.
        return "dataset" in vars(self)

    @property
    def path(self) -> Path:
        """The dataset's folder."""
        return dataset_path(self.env, self._given_path, self.collection)

    @property
    def family(self) -> "TaskFamily":
        """The task family of the dataset; asking for it imports the simulators."""
        from offline_meta_rl.envs import family_of

        return family_of(self.dataset.manifest.environment)

    def sizes(self) -> DataSizes:
        """Return the sizes of the data, there or still to be collected."""
        return data_sizes(self.env, self.path)

    def prepare_data(self) -> None:
        """Collect the dataset if it is missing; other processes wait meanwhile.

        Raises:
            FileNotFoundError: It does not exist, and ``collect`` is off.
        """
        prepare_dataset(self.env, self.path, self.collection, collecting=self.collect)

    @abstractmethod
    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> TensorDict:
        """Return batch number ``step``, [U, T] or [U, B], or one process's part of it."""

    def train_dataloader(self) -> TaskLoader:
        """Batches, endlessly different."""
        self._loader = TaskLoader(self, self.prefetch)
        return self._loader

    @abstractmethod
    def val_dataloader(self) -> HeldOutLoader:
        """Held-out data, always the same."""

    def test_dataloader(self) -> HeldOutLoader:
        """The item of ``val_dataloader``."""
        return self.val_dataloader()

    def state_dict(self) -> State:
        """The number of batches served."""
        return {"batches_served": self.batches_served}

    def load_state_dict(self, state_dict: State) -> None:
        """Continue with the next batch."""
        self.batches_served = state_dict["batches_served"] or 0

    def teardown(self, stage: str | None = None) -> None:
        """End the thread that makes batches ahead."""
        if self._loader is not None:
            self._loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the thread that makes batches ahead."""
        self.teardown()
