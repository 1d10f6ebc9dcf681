"""What a dataset says of its tasks: environment, spaces, splits, stages, reference returns.

The manifest holds a description beside the counts and files of a dataset; a source of data yet to
be written brings one along. Shapes: T tasks, P numbers that describe one task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Required, TypedDict

import numpy as np
from numpy.typing import NDArray

TRANSITION_KEYS = (
    "observation",
    "action",
    "reward",
    "next_observation",
    "terminated",
    "truncated",
)
FINAL_KEY = "final_observation"
"""Of episodes of image datasets, which store each image once: no ``next_observation``."""


class Space(TypedDict):
    """An observation or action space; ``low`` and ``high`` are None for an unbounded side."""

    shape: list[int]
    dtype: str
    low: float | None
    high: float | None


class Environment(TypedDict, total=False):
    """What ``family_of`` makes the task family from.

    Keys: ``id``, a gymnasium id or a built-in family's short name; ``version`` of its rewards and
    dynamics; ``kwargs`` of ``gymnasium.make``; for ids from outside also ``module``, imported first
    to register the id, and ``num_tasks``.
    """

    id: Required[str]
    version: int | None
    kwargs: dict[str, object]
    module: str
    num_tasks: int


class Split(TypedDict):
    """Task indices to train on and to hold out."""

    train: list[int]
    test: list[int]


Splits = dict[str, Split]
References = dict[str, "list[float] | References"]
"""Policy -> mean return of each task, [T]; ``stages`` -> {stage of the behaviour: [T]}."""

GivenReturns = Mapping[str, "Sequence[float] | NDArray[np.floating] | GivenReturns"]
"""``References`` as callers may give them: lists or arrays."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a dataset of T tasks holds, apart from the transitions.

    Attributes:
        environment: ``id``, ``version`` and ``kwargs`` of the gymnasium environment.
        family: Short name of the task family.
        observation_space: ``shape``, ``dtype``, ``low`` and ``high`` (None for unbounded).
        action_space: The same for actions.
        horizon: Steps after which an episode is truncated.
        task_seed: Seed that the task parameters come from.
        task_parameters: Numbers that describe each task, [T, P].
        splits: Split name -> {"train": task indices, "test": task indices}.
        stages: Names of the behaviour stages, poor to expert.
        reference_returns: "random", "best_behaviour", "standing_still" -> mean return of each task
            [T]; "stages" -> {stage name: [T]}. May be empty: then nothing can be normalised.
    """

    environment: Environment
    family: str
    observation_space: Space
    action_space: Space
    horizon: int
    task_seed: int
    task_parameters: list[list[float]]
    splits: Splits
    stages: list[str]
    reference_returns: References = field(default_factory=dict)

    def without_data(self) -> "Description":
        """Return the description alone, where this is a manifest."""
        names = [field.name for field in fields(Description)]
        return Description(**{name: getattr(self, name) for name in names})

    @property
    def num_tasks(self) -> int:
        """Number of tasks T."""
        return len(self.task_parameters)

    @property
    def has_images(self) -> bool:
        """Whether observations are images, which are stored once."""
        return are_images(self.observation_space)

    @property
    def observation_size(self) -> int:
        """Numbers in one observation, O."""
        return math.prod(self.observation_space["shape"])

    @property
    def action_size(self) -> int:
        """Numbers in one action, A."""
        return math.prod(self.action_space["shape"])

    @property
    def transition_keys(self) -> tuple[str, ...]:
        """Names of the arrays of transitions."""
        without = "next_observation" if self.has_images else None
        return tuple(key for key in TRANSITION_KEYS if key != without)

    @property
    def row_layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Array of transitions -> shape and dtype of one row."""
        observation = (tuple(self.observation_space["shape"]), self.observation_space["dtype"])
        action = (tuple(self.action_space["shape"]), self.action_space["dtype"])
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            "observation": observation,
            "action": action,
            "reward": ((), "float32"),
            "next_observation": observation,
            "terminated": ((), "bool"),
            "truncated": ((), "bool"),
        }
        return {key: layout[key] for key in self.transition_keys}


def box(
    shape: Sequence[int],
    dtype: str = "float32",
    low: float | None = None,
    high: float | None = None,
) -> Space:
    """Return the manifest's entry of a space; None for an unbounded side."""
    return Space(shape=list(shape), dtype=dtype, low=low, high=high)


def are_images(observation_space: Space) -> bool:
    """Return whether a space is one of images: uint8, [channels, height, width]."""
    return observation_space["dtype"] == "uint8" and len(observation_space["shape"]) == 3


def named_splits(splits: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> Splits:
    """Return the manifest's entry of splits that are given as (train, test) pairs."""
    return {
        name: Split(train=[int(task) for task in train], test=[int(task) for task in test])
        for name, (train, test) in splits.items()
    }


def policy_returns(references: References) -> dict[str, list[float]]:
    """Return the reference returns of whole policies, without those of stages: name -> [T]."""
    return {name: values for name, values in references.items() if isinstance(values, list)}


def stage_returns(references: References) -> dict[str, list[float]]:
    """Return the reference returns of the behaviour's stages: name -> [T]; empty without."""
    stages = references.get("stages", {})
    return policy_returns(stages) if isinstance(stages, dict) else {}


def plain_returns(returns: GivenReturns) -> References:
    """Turn reference returns into lists.

    Args:
        returns: Name -> mean return of each task [T], or -> {name: [T]}.

    Raises:
        ValueError: One is not finite or not a vector.
    """
    result: References = {}
    for name, values in returns.items():
        if isinstance(values, Mapping):
            result[name] = plain_returns(values)
            continue
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(
                f"reference_returns: {name!r}: expected one finite number for each task, found "
                f"{array.tolist()}. Measure it on every task."
            )
        result[name] = array.tolist()
    return result
