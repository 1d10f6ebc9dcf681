"""Whether the agent of each task learned over its lifetime, by a fixed criterion."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE = 0.1
CRITERION = (
    "mean return of the last 10 % of episodes above that of the first 10 % by more than half of "
    "the range from random actions to the best behaviour that ships"
)


def task_report(
    returns: NDArray[np.float64], random: float, shipped: float | None
) -> dict[str, Any]:
    """Return how one agent fared.

    Args:
        returns: of its episodes, in order of time, [E].
        random: mean return of random actions in its task.
        shipped: mean return of the best behaviour that ships; None where none does.

    Returns:
        ``episodes``, ``first``, ``last`` (mean returns of the first and last 10 %), ``random``,
        ``shipped``, ``learned``: None where it cannot be told.
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
) -> dict[str, Any]:
    """Return the reports of all tasks, and which agents failed or cannot be judged.

    Args:
        tasks: their indices in the family.
        returns: of each task's episodes, in order of time.
        random: mean return of random actions in each task.
        shipped: of the best behaviour that ships; None where none does.
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
