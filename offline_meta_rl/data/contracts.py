"""What a method may ask of its data; ``TaskBuffers`` is the model to look at.

A datamodule of your own needs no base class: it must have the members named here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from offline_meta_rl.data.manifest import Manifest

if TYPE_CHECKING:  # PyTorch takes more than a second to import
    from tensordict import TensorDict

    from offline_meta_rl.data.dataset import TaskDataset


@dataclass(frozen=True)
class DataSizes:
    """The sizes that networks are built for; None where the data has no such thing.

    The command line hands each to the argument of the same name in the method's constructor.

    Attributes:
        observation_size: O, numbers in one observation.
        action_size: A.
        observation_shape: (C, h, w) of images.
        task_feature_size: F, numbers that tell a behaviour agent its task.
        num_tasks: Tasks of train and test splits together.
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


@dataclass(frozen=True)
class BufferSlice:
    """Part of a task's transitions, in the order in which they were collected.

    Attributes:
        stage: ``first``, ``middle`` or ``last`` rows of each task.
        size: Number of rows.
        centre: Of ``middle`` rows, as a share of the task's rows.

    Raises:
        ValueError: An unknown stage.
    """

    stage: Literal["first", "middle", "last"]
    size: int
    centre: float = 0.5

    def __post_init__(self) -> None:
        """Check the stage; the size is checked against the data."""
        if self.stage not in ("first", "middle", "last"):
            raise ValueError(
                f"Slice: expected stage first, middle or last, found {self.stage!r}. For stages of "
                "the behaviour policy pass a list of their names."
            )


DataSlice = BufferSlice | Sequence[str]
"""A part of each task's data: some of its rows, or the behaviour stages of these names."""


@runtime_checkable
class HasSizes(Protocol):
    """Data that says its sizes before it is there: a dataset may still have to be collected."""

    def sizes(self) -> DataSizes:
        """Return the sizes of the data."""


@runtime_checkable
class TaskData(Protocol):
    """A datamodule that serves a dataset of many tasks, after ``setup``."""

    @property
    def dataset(self) -> "TaskDataset":
        """What is served."""

    @property
    def train_tasks(self) -> Sequence[int]:
        """Indices of the tasks trained on."""

    @property
    def test_tasks(self) -> Sequence[int]:
        """Indices of the held-out tasks."""


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
        slice: DataSlice | None = None,
    ) -> "TensorDict":
        """Draw a context for each task, uniformly without replacement.

        A task's context depends on the seed and the task alone, not on the other tasks.

        Args:
            tasks: Indices of T tasks.
            size: B, transitions of each task.
            seed: Seed of the draw.
            fields: What to return; None for the datamodule's own fields.
            slice: Part of the data to draw from; None for that of inner batches.

        Returns:
            The contexts, [T, B].
        """


class TrainerAttributes(Protocol):
    """Lightning's connectors set these on every ``Trainer``; they are part of its documentation.

    Attributes:
        datamodule: What the trainer was given as data; None without.
        log_every_n_steps: Steps between two rows of a logger; 0 for none.
        fast_dev_run: Number of steps of a trial run, True for one; False otherwise.
    """

    datamodule: object
    log_every_n_steps: int
    fast_dev_run: int | bool


def attributes_of(trainer: object) -> TrainerAttributes:
    """Return a ``Trainer`` as what it is."""
    return cast(TrainerAttributes, trainer)
