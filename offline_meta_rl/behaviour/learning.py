"""Whether the agent of each task learned over its lifetime, by a fixed criterion."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

SHARE = 0.1
CRITERION = (
    "mean return of the last 10 % of episodes above that of the first 10 % by more than half of "
    "the range from random actions to the best behaviour that ships"
)


class TaskReport(TypedDict):
    """How one agent fared.

    Attributes:
        episodes: How many.
        first: Mean return of the first 10 % of them; None without an episode.
        last: Mean return of the last 10 %.
        random: Mean return of random actions in the task.
        shipped: Mean return of the best behaviour that ships; None where none does.
        learned: By ``CRITERION``; None where it cannot be told.
    """

    episodes: int
    first: float | None
    last: float | None
    random: float
    shipped: float | None
    learned: bool | None


class LifetimeReport(TypedDict):
    """How all agents fared.

    Attributes:
        criterion: In words.
        failed: Tasks whose agent did not learn.
        unknown: Tasks of which it cannot be told.
        tasks: Task -> its report.
    """

    criterion: str
    failed: list[int]
    unknown: list[int]
    tasks: dict[int, TaskReport]


def task_report(returns: NDArray[np.float64], random: float, shipped: float | None) -> TaskReport:
    """Return how one agent fared.

    Args:
        returns: Of its episodes, in order of time, [E].
        random: Mean return of random actions in its task.
        shipped: Mean return of the best behaviour that ships; None where none does.
    """
    count = max(1, round(SHARE * len(returns)))
    known = len(returns) > 0
    first = float(returns[:count].mean()) if known else None
    last = float(returns[-count:].mean()) if known else None
    learned = None
    if first is not None and last is not None and shipped is not None:
        learned = last - first > 0.5 * (shipped - random)
    return {
        "episodes": len(returns),
        "first": first,
        "last": last,
        "random": random,
        "shipped": shipped,
        "learned": learned,
    }


def lifetime_report(
    tasks: Sequence[int],
    returns: Sequence[NDArray[np.float64]],
    random: Sequence[float],
    shipped: Sequence[float] | None,
) -> LifetimeReport:
    """Return the reports of all tasks, and which agents failed or cannot be judged.

    Args:
        tasks: Their indices in the family.
        returns: Of each task's episodes, in order of time.
        random: Mean return of random actions in each task.
        shipped: Of the best behaviour that ships; None where none does.
    """
    best = [None] * len(tasks) if shipped is None else list(shipped)
    reports = {
        task: task_report(*numbers)
        for task, numbers in zip(tasks, zip(returns, random, best, strict=True), strict=True)
    }
    return {
        "criterion": CRITERION,
        "failed": [task for task, report in reports.items() if report["learned"] is False],
        "unknown": [task for task, report in reports.items() if report["learned"] is None],
        "tasks": reports,
    }
