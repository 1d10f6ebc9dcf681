"""What a method may ask of its data; ``TaskBuffers`` is the model to look at.

A datamodule of your own needs no base class: it must have the members named here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from tensordict import TensorDict

from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.manifest import Manifest


@dataclass(frozen=True)
class DataSizes:
    """The sizes that networks are built for; None where the data has no such thing.

    The command line hands each to the argument of the same name in the method's constructor.

    Attributes:
        observation_size: O, numbers in one observation.
        action_size: A.
        observation_shape: (C, h, w) of images.
        task_feature_size: F, numbers that tell a behaviour agent its task.
        num_tasks: tasks of train and test splits together.
    """

    observation_size: int
    action_size: int
    observation_shape: tuple[int, ...] | None = None
    task_feature_size: int | None = None
    num_tasks: int | None = None

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "DataSizes":
        """Return the sizes of a dataset."""
        shape = tuple(manifest.observation_space["shape"]) if manifest.has_images else None
        return cls(
            observation_size=manifest.observation_size,
            action_size=manifest.action_size,
            observation_shape=shape,
            num_tasks=manifest.num_tasks,
        )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all sizes."""
        return tuple(field.name for field in fields(cls))


@runtime_checkable
class HasSizes(Protocol):
    """Data that says its sizes before it is there: a dataset may still have to be collected."""

    def sizes(self) -> DataSizes:
        """Return the sizes of the data."""


@runtime_checkable
class TaskData(Protocol):
    """A datamodule that serves a dataset of many tasks, after ``setup``.

    Attributes:
        dataset: what is served.
        train_tasks: indices of the tasks trained on.
        test_tasks: indices of the held-out tasks.
    """

    dataset: TaskDataset
    train_tasks: Sequence[int]
    test_tasks: Sequence[int]


@runtime_checkable
class HasContexts(TaskData, Protocol):
    """A datamodule that also draws the contexts that a method adapts on."""

    def context(
        self,
        tasks: Sequence[int],
        size: int,
        *,
        seed: int,
        fields: Sequence[str] | None = None,
        slice: object = None,
    ) -> TensorDict:
        """Draw ``size`` transitions for each of T tasks, [T, B]."""
