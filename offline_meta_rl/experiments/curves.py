"""The learning curve in a result file: of meta-training, or of online fine-tuning.

Both become a score for each of T tasks at each of P numbers of steps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.evaluation.protocol import normalised_return
from offline_meta_rl.evaluation.result_files import FineTuningFile, HistoryPoint, ResultFile
from offline_meta_rl.experiments.specification import Metric

Array = NDArray[np.float64]
FINE_TUNING_POINTS = 21


class Curve(NamedTuple):
    """Scores over steps.

    Attributes:
        steps: [P].
        scores: [P, T].
        tasks: Names of the T tasks.
        axis: What is counted: ``outer steps`` or ``environment steps``.
    """

    steps: NDArray[np.int64]
    scores: Array
    tasks: tuple[str, ...]
    axis: str


def training_curve(result: ResultFile, metric: Metric) -> Curve:
    """Return the curve in ``results.json``.

    Args:
        result: Content of the file.
        metric: What is compared.

    Raises:
        ValueError: It has no scores for each task.
    """
    history, tasks = result["history"], tuple(result["after_adaptation"]["per_task"])
    found = [_scores_of(point, metric) for point in history]
    scores = np.array([[each[task] for task in tasks] for each in found], dtype=float)
    steps = np.array([point["step"] for point in history])
    return Curve(steps, scores, tasks, "outer steps")


def _scores_of(point: HistoryPoint, metric: Metric) -> dict[str, float]:
    """Return each task's score at a point; files of older versions have only means."""
    try:
        if metric == "after_return":
            return point["after_return_per_task"]
        return point["after_normalised_return_per_task"]
    except KeyError as error:
        raise ValueError(
            f"The learning curve lacks {error.args[0]}: it was written by an older version. Train "
            "again."
        ) from error


def fine_tuning_curve(result: FineTuningFile, metric: Metric) -> Curve:
    """Return the curve in ``fine_tuning.json`` at equal distances, the end included.

    Tasks have points of their own, because their episodes may end early. At a number of steps a
    task has the score of its first point with as many steps.

    Args:
        result: Content of the file.
        metric: What is compared.
    """
    curves, tasks = result["curves"], tuple(map(str, result["tasks"]))
    steps = np.linspace(0, environment_steps(result), FINE_TUNING_POINTS).astype(np.int64)
    columns = []
    for task in tasks:
        own = np.asarray(curves[task]["steps"])
        place = np.searchsorted(own, steps, side="left").clip(max=len(own) - 1)
        columns.append(np.asarray(curves[task]["return"], dtype=np.float64)[place])
    scores = np.stack(columns, axis=1)
    if metric == "after_normalised_return":
        random, best = (np.asarray(result["references"][n]) for n in ("random", "best_behaviour"))
        scores = normalised_return(scores, random, best)
    return Curve(steps, scores, tasks, "environment steps")


def environment_steps(result: FineTuningFile) -> int:
    """Return the environment steps that a fine-tuning was allowed in each task.

    Raises:
        ValueError: The file does not say.
    """
    found = result["settings"].get("environment_steps")
    if not isinstance(found, int):
        raise ValueError(
            f"fine_tuning.json: expected settings.environment_steps, found {found!r}. Run the "
            "fine-tuning again."
        )
    return found
