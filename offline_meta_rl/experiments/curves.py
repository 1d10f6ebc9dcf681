"""The learning curve in a result file: of meta-training, or of online fine-tuning.

Both become a score for each of T tasks at each of P numbers of steps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.evaluation.protocol import normalised_return

Array = NDArray[np.float64]
FINE_TUNING_POINTS = 21


class Curve(NamedTuple):
    """Scores over steps.

    Attributes:
        steps: [P].
        scores: [P, T].
        tasks: names of the T tasks.
        axis: what is counted: ``outer steps`` or ``environment steps``.
    """

    steps: NDArray[np.int64]
    scores: Array
    tasks: tuple[str, ...]
    axis: str


def training_curve(result: Mapping[str, Any], metric: str) -> Curve:
    """Return the curve in ``results.json``.

    Raises:
        ValueError: it has no scores for each task.
    """
    history, tasks = result["history"], tuple(result["after_adaptation"]["per_task"])
    key = f"{metric}_per_task"
    if not all(key in point for point in history):
        raise ValueError(
            f"The learning curve lacks {key}: it was written by an older version. Train again."
        )
    scores = np.array([[point[key][task] for task in tasks] for point in history], dtype=float)
    steps = np.array([point["step"] for point in history])
    return Curve(steps, scores, tasks, "outer steps")


def fine_tuning_curve(result: Mapping[str, Any], metric: str) -> Curve:
    """Return the curve in ``fine_tuning.json`` at equal distances, the end included.

    Tasks have points of their own, because their episodes may end early. At a number of steps a
    task has the score of its first point with as many steps.
    """
    curves, tasks = result["curves"], tuple(map(str, result["tasks"]))
    total = int(result["settings"]["environment_steps"])
    steps = np.linspace(0, total, FINE_TUNING_POINTS).astype(np.int64)
    columns = []
    for task in tasks:
        own = np.asarray(curves[task]["steps"])
        place = np.searchsorted(own, steps, side="left").clip(max=len(own) - 1)
        columns.append(np.asarray(curves[task]["return"], dtype=np.float64)[place])
    scores = np.stack(columns, axis=1)
    if "normalised" in metric:
        random, best = (np.asarray(result["references"][n]) for n in ("random", "best_behaviour"))
        scores = normalised_return(scores, random, best)
    return Curve(steps, scores, tasks, "environment steps")
