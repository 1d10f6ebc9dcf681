"""Summary of a fine-tuning: curves of all tasks, start against end with intervals.

Shapes: T tasks, E episodes.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.statistics import episode_interval
from offline_meta_rl.evaluation.result_files import TaskCurve

Array = NDArray[np.float64]
Returns = Sequence[Sequence[float]]
"""Returns of E episodes of each of T tasks, [T, E]; NaN where one diverged."""

Summary = TypedDict(
    "Summary",
    {"return": float, "interval": list[float] | None, "per_task": dict[str, float]},
)
"""Mean over tasks of the mean return, its 95 % interval, and task -> mean return."""


class Point(TypedDict):
    """One evaluation of all T tasks.

    Attributes:
        episodes: Episodes collected in each task before it.
        steps: Environment steps collected before it, [T].
        returns: Returns of E episodes with mean actions, [T, E]; NaN where one diverged.
    """

    episodes: int
    steps: list[int]
    returns: list[list[float]]


def summary(returns: Returns, tasks: Sequence[int]) -> Summary:
    """Return mean, interval and means per task of returns [T, E]; NaN are diverged episodes."""
    counted = [_counted(row) for row in returns]
    # Tasks count alike, however many of their episodes diverged.
    means = [float(row.mean()) if len(row) else float("nan") for row in counted]
    return {
        "return": float(np.mean(means)),
        "interval": episode_interval(counted),
        "per_task": {str(task): mean for task, mean in zip(tasks, means, strict=True)},
    }


def improvement(before: Returns, after: Returns, tasks: Sequence[int]) -> Summary:
    """Return the summary of after - before, episode by episode from the same initial states."""
    return summary((np.asarray(after) - np.asarray(before)).tolist(), tasks)


def curves(points: Sequence[Point], tasks: Sequence[int]) -> dict[str, TaskCurve]:
    """Return each task's curve: environment ``steps``, all ``returns`` and their mean ``return``.

    Args:
        points: ``FineTuning.curve``.
        tasks: Indices of the T tasks.
    """
    return {
        str(task): {
            "steps": [int(point["steps"][index]) for point in points],
            "returns": [list(point["returns"][index]) for point in points],
            "return": [mean_return(point["returns"][index]) for point in points],
        }
        for index, task in enumerate(tasks)
    }


def milestones(of_tasks: Mapping[str, TaskCurve], environment_steps: int) -> dict[str, float]:
    """Return the mean return over tasks at the start, half way and at the end of the curves.

    With 20 000 environment steps these are the columns of MACAW's Table 1. A task counts with the
    first point that has as many steps.
    """
    wanted = sorted({0, environment_steps // 2, environment_steps})
    found = {}
    for steps in wanted:
        at = [
            next(value for x, value in zip(c["steps"], c["return"], strict=True) if x >= steps)
            for c in of_tasks.values()
        ]
        found[str(steps)] = float(np.mean(at))
    return found


def mean_return(row: Sequence[float]) -> float:
    """Return the mean of the returns that are not NaN; NaN if there are none."""
    values = _counted(row)
    return float(values.mean()) if len(values) else float("nan")


def _counted(row: Sequence[float]) -> Array:
    values = np.asarray(row, dtype=np.float64)
    return values[~np.isnan(values)]
