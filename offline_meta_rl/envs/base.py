"""What a task family is, and what an engine that steps many of its environments returns.

A *family* is a set of tasks that share observation and action spaces (all the directions an ant may
be asked to walk in). It is plain data and arithmetic on arrays; it holds no simulator state. An
*engine* steps N environments of one family together. Shapes: N environments, O observation size,
A action size, P numbers that describe one task, F numbers that tell an agent which task it is in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.data.description import Description, Space, box, named_splits

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Observations = NDArray[np.float32] | NDArray[np.uint8]
"""Vectors [N, O] float32, or images [N, C, h, w] uint8."""

Actions = NDArray[np.floating]
EngineState = dict[str, torch.Tensor]
"""Everything an engine needs to continue exactly where it is, as checkpoints keep it."""


class StepResult(NamedTuple):
    """What one step of N environments returns.

    Attributes:
        observation: [N, O] float32, or images [N, C, h, w] uint8: the observation *after* the
            step, also where an episode ended.
        reward: [N] float64.
        terminated: [N] bool, the task itself ended (a fall).
        truncated: [N] bool, the horizon was reached, or the simulation diverged.
        diverged: [N] bool, the simulator reset the state by itself: drop this episode.
        reward_terms: The summands of the reward, each [N], unweighted costs as negative numbers.
    """

    observation: Observations
    reward: Array
    terminated: Bools
    truncated: Bools
    diverged: Bools
    reward_terms: dict[str, Array]


class Engine(Protocol):
    """Steps N environments together; every environment carries its own task."""

    num_envs: int

    def reset(self, mask: Bools | None = None) -> Observations:
        """Start a new episode where ``mask`` is true (everywhere if None).

        Returns:
            Observations, [N, O], or images [N, C, h, w].
        """
        ...

    def step(self, action: Actions) -> StepResult:
        """Take one action [N, A], clipped to [-1, 1], in every environment."""
        ...

    def state_dict(self) -> EngineState:
        """Everything needed to continue exactly here, as tensors."""
        ...

    def load_state_dict(self, state: EngineState) -> None:
        """Continue where ``state_dict`` was taken."""
        ...

    def close(self) -> None:
        """Release threads and simulators."""
        ...


class TaskFamily(ABC):
    """A set of tasks with shared spaces, and the named splits of their indices.

    Attributes:
        name: Short name, as used in file names (``ant_dir``).
        env_id: Gymnasium id; ``gymnasium.make(env_id, task=7)`` is one task.
        version: Raised whenever rewards or dynamics change; kept in every dataset.
        num_tasks: Number of tasks.
        horizon: Steps after which an episode is truncated.
        observation_size: O, numbers in one observation.
        observation_shape: Shape of one observation, (C, h, w) for images; () for a vector.
        observation_dtype: "float32", or "uint8" for images.
        action_size: A; all actions lie in [-1, 1].
        splits: Split name -> (train task indices, test task indices).
    """

    name: ClassVar[str]
    env_id: ClassVar[str]
    version: ClassVar[int] = 1
    num_tasks: ClassVar[int]
    horizon: ClassVar[int]
    observation_size: ClassVar[int]
    observation_shape: ClassVar[tuple[int, ...]] = ()
    observation_dtype: ClassVar[str] = "float32"
    action_size: ClassVar[int]
    splits: ClassVar[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]

    @abstractmethod
    def task_parameters(self, seed: int) -> Array:
        """Return the parameters of every task from a seed, [T, P]."""

    @abstractmethod
    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """Turn task parameters [N, P] into the numbers [N, F] a task-conditioned agent sees."""

    @abstractmethod
    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> Engine:
        """Return an engine with one environment per row of ``parameters`` [N, P]."""

    @property
    def observation_space(self) -> Space:
        """The entry of the observation space in a dataset's manifest."""
        if self.observation_dtype == "uint8":
            return box(self.observation_shape, "uint8", 0.0, 255.0)
        return box([self.observation_size], self.observation_dtype)

    @property
    def action_space(self) -> Space:
        """The entry of the action space in a dataset's manifest."""
        return box([self.action_size], low=-1.0, high=1.0)

    def describe(self, task_seed: int, stages: Sequence[str]) -> Description:
        """Return the description of the family in the manifest of its dataset.

        Args:
            task_seed: Seed of the task parameters.
            stages: Names of the behaviour stages, poor to expert.
        """
        return Description(
            environment={"id": self.env_id, "version": self.version, "kwargs": {}},
            family=self.name,
            observation_space=self.observation_space,
            action_space=self.action_space,
            horizon=self.horizon,
            task_seed=task_seed,
            task_parameters=self.task_parameters(task_seed).tolist(),
            splits=named_splits(self.splits),
            stages=list(stages),
        )

    def sizes(self) -> DataSizes:
        """Return the sizes of observations, actions and task features."""
        return DataSizes(
            observation_size=self.observation_size,
            action_size=self.action_size,
            observation_shape=self.observation_shape or None,
            task_feature_size=self.task_features(self.task_parameters(0)).shape[1],
            num_tasks=self.num_tasks,
        )

    def parameters_of(self, task: int, seed: int) -> Array:
        """Return the parameters [P] of one task.

        Raises:
            ValueError: If there is no such task.
        """
        if not 0 <= task < self.num_tasks:
            raise ValueError(
                f"Unknown task {task} of {self.name}: expected 0 to {self.num_tasks - 1}. "
                "Pass task= one of these."
            )
        return self.task_parameters(seed)[task]


def held_out_split(
    num_tasks: int, test: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (train, test) where train is every task that is not in ``test``."""
    return tuple(task for task in range(num_tasks) if task not in test), test


def every_kth_split(num_tasks: int, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (train, test) where train is every k-th task and test all others."""
    train = tuple(range(0, num_tasks, k))
    return train, tuple(task for task in range(num_tasks) if task not in train)


def generator_from(seed: int) -> torch.Generator:
    """Return a CPU generator; torch's, because its state is a tensor and goes into checkpoints."""
    return torch.Generator().manual_seed(seed)
