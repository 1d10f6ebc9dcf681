"""How a return is measured, and the result of a measurement; plain data and arithmetic.

Shapes: T evaluated tasks, E episodes of each.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.settings import check_at_least
from offline_meta_rl.data.contracts import BufferSlice
from offline_meta_rl.data.description import Splits

Array = NDArray[np.float64]

CONTEXT_SOURCES = ("own", "other")


@dataclass(frozen=True)
class Protocol:
    """How a return is measured.

    Attributes:
        split: Name of the task split in the dataset; None for the one the method is trained on.
        tasks: ``test`` or ``train`` tasks of the split, or task indices.
        context_source: ``own``, or ``other``: each task adapts on the context of the next evaluated
            task, the control that shows whether the context matters.
        context_size: Transitions of context for each task, drawn without replacement.
        context_slice: Part of the dataset that contexts come from: first, middle or last rows of
            each task, or a list of behaviour stages; None for that of inner batches.
        adaptation_steps: Numbers of inner steps; the first one is "after adaptation".
        episodes: Episodes for each task and number of inner steps.
        stochastic: Sample actions instead of taking the mean action.
        seed: Seed of contexts, initial states and action noise.

    Raises:
        ValueError: Names the field, what it may be and what it is.
    """

    split: str | None = None
    tasks: str | list[int] = "test"
    context_source: Literal["own", "other"] = "own"
    context_size: int = 256
    context_slice: BufferSlice | list[str] | None = None
    adaptation_steps: Sequence[int] = (1,)
    episodes: int = 10
    stochastic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values that need no dataset to be found wrong."""
        if self.context_source not in CONTEXT_SOURCES:
            raise ValueError(
                f"context_source must be one of {CONTEXT_SOURCES}, found {self.context_source!r}."
            )
        check_at_least(self, 1, "context_size", "episodes")
        steps = list(self.adaptation_steps)
        if not steps or min(steps) < 1 or len(set(steps)) < len(steps):
            raise ValueError(
                f"adaptation_steps must be different numbers of at least 1, found {steps}. "
                "0 is always evaluated, as before_adaptation."
            )

    def of_split(self, default: str) -> "Protocol":
        """Return this protocol with a split, ``default`` where it names none."""
        return replace(self, split=self.split or default)

    def task_indices(self, splits: Splits, num_tasks: int) -> list[int]:
        """Return the evaluated tasks.

        Args:
            splits: Split name -> {"train": indices, "test": indices}.
            num_tasks: Number of tasks of the dataset.

        Raises:
            ValueError: Unknown split, set of tasks or task.
        """
        name = self.split or "default"
        if name not in splits:
            raise ValueError(f"Unknown split {name!r}: expected one of {sorted(splits)}.")
        split = splits[name]
        if isinstance(self.tasks, str):
            if self.tasks not in ("train", "test"):
                raise ValueError(
                    f"tasks must be 'train', 'test' or a list of indices, found {self.tasks!r}."
                )
            return list(split["train"] if self.tasks == "train" else split["test"])
        unknown = [task for task in self.tasks if not 0 <= task < num_tasks]
        if unknown or not self.tasks:
            raise ValueError(
                f"Unknown tasks {unknown}: expected a list of indices from 0 to {num_tasks - 1}."
            )
        return list(self.tasks)

    def to_dict(self) -> dict[str, object]:
        """Return plain types, for result files."""
        tasks = self.tasks if isinstance(self.tasks, str) else [int(task) for task in self.tasks]
        steps = [int(num_steps) for num_steps in self.adaptation_steps]
        return asdict(self) | {"tasks": tasks, "adaptation_steps": steps}


TaskReturns = TypedDict(
    "TaskReturns",
    {
        "return": float,
        "normalised_return": float,
        "return_std": float,
        "diverged_episodes": int,
    },
)
"""What one task's episodes returned; the standard deviation is over episodes."""

Summary = TypedDict(
    "Summary",
    {"return": float, "normalised_return": float, "per_task": dict[str, TaskReturns]},
)
"""Means over tasks, and the same for each task by its index."""

Reference = TypedDict("Reference", {"return": float, "per_task": dict[str, float]})
"""Mean return of a reference policy, over tasks and for each."""


class ResultContent(TypedDict):
    """The measured part of ``results.json``; what a run adds is written beside it."""

    before_adaptation: Summary
    after_adaptation: Summary
    after_n_steps: dict[str, Summary]
    references: dict[str, Reference]
    protocol: dict[str, object]


@dataclass(frozen=True)
class EvaluationResult:
    """Undiscounted returns of every episode, and what they are compared with.

    Attributes:
        tasks: Indices of the T evaluated tasks.
        returns: Number of inner steps -> returns [T, E].
        diverged: Number of inner steps -> episodes [T, E] in which the simulator diverged; they do
            not count, unless all of a task's episodes diverged.
        references: Name -> mean return [T] of a reference policy; ``random`` and
            ``best_behaviour`` are 0 and 1 of the normalised return, which is NaN without them.
        protocol: How the returns were measured.
    """

    tasks: list[int]
    returns: dict[int, Array]
    diverged: dict[int, NDArray[np.bool_]]
    references: dict[str, Array]
    protocol: Protocol

    def task_returns(self, num_steps: int) -> Array:
        """Return the mean return of each task after ``num_steps`` inner steps, [T]."""
        counted = ~self.diverged[num_steps]
        # A task without a single usable episode still needs a number; its diverged ones are shown
        # beside it.
        counted[~counted.any(axis=1)] = True
        return np.asarray(np.mean(self.returns[num_steps], axis=1, where=counted))

    def normalised_returns(self, num_steps: int) -> Array:
        """Return the normalised return of each task after ``num_steps`` inner steps, [T].

        NaN where the dataset has no reference returns.
        """
        returns = self.task_returns(num_steps)
        if not {"random", "best_behaviour"} <= set(self.references):
            return np.full(len(returns), np.nan)
        return normalised_return(
            returns, self.references["random"], self.references["best_behaviour"]
        )

    def summary(self, num_steps: int) -> Summary:
        """Return means over tasks, and the same for each task, as plain types."""
        raw, normalised = self.task_returns(num_steps), self.normalised_returns(num_steps)
        spread = self.returns[num_steps].std(axis=1)
        failed = self.diverged[num_steps].sum(axis=1)
        per_task: dict[str, TaskReturns] = {
            str(task): {
                "return": float(raw[index]),
                "normalised_return": float(normalised[index]),
                "return_std": float(spread[index]),
                "diverged_episodes": int(failed[index]),
            }
            for index, task in enumerate(self.tasks)
        }
        return {
            "return": float(raw.mean()),
            "normalised_return": float(normalised.mean()),
            "per_task": per_task,
        }

    def to_dict(self) -> ResultContent:
        """Return the whole result as plain types, in the layout of ``results.json``."""
        steps = list(self.protocol.adaptation_steps)
        after = {str(num_steps): self.summary(num_steps) for num_steps in steps}
        references: dict[str, Reference] = {
            name: {
                "return": float(values.mean()),
                "per_task": {
                    str(task): float(value) for task, value in zip(self.tasks, values, strict=True)
                },
            }
            for name, values in self.references.items()
        }
        return {
            "before_adaptation": self.summary(0),
            "after_adaptation": after[str(steps[0])],
            "after_n_steps": after,
            "references": references,
            "protocol": self.protocol.to_dict(),
        }


def normalised_return(returns: Array, random: Array, best_behaviour: Array) -> Array:
    """Return (R - random) / (best_behaviour - random): 0 is random actions, 1 the best behaviour.

    Args:
        returns: Mean return R of each task, [T].
        random: Mean return of uniform random actions on each task, [T].
        best_behaviour: Mean return of the best behaviour policy on each task, [T].

    Raises:
        ValueError: Where the best behaviour is not better than random actions.
    """
    gap = np.asarray(best_behaviour, dtype=np.float64) - random
    if not (gap > 0).all():
        worst = int(np.argmin(np.where(np.isnan(gap), -np.inf, gap)))
        raise ValueError(
            f"The normalised return needs best_behaviour above random; position {worst} of the "
            f"evaluated tasks has best_behaviour {best_behaviour[worst]} and random "
            f"{random[worst]}. Collect better behaviour data or correct reference_returns in the "
            "dataset's manifest."
        )
    return np.asarray((returns - random) / gap)
