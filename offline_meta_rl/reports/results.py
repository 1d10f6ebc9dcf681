"""Result files of evaluations: JSON with what is needed to know where a number comes from."""

from pathlib import Path

import numpy as np

from offline_meta_rl.common.files import write_json
from offline_meta_rl.evaluation.protocol import ResultContent, normalised_return
from offline_meta_rl.evaluation.result_files import HistoryPoint, ResultFile
from offline_meta_rl.reports.curves import learning_curve


def write_results(path: str | Path, content: ResultFile) -> None:
    """Write the result file and, where there is a history, the picture of the learning curve.

    Args:
        path: Path of the result file. The picture lies beside it: ``learning_curve.png``, preceded
            by the file's name unless that is ``results.json``.
        content: The evaluation, where it comes from, and the learning curve so far.
    """
    target = Path(path)
    write_json(target, content)
    if content["history"]:
        prefix = "" if target.name == "results.json" else f"{target.stem}_"
        picture = target.with_name(f"{prefix}learning_curve.png")
        learning_curve(content["history"], picture, standing_still=standing_still(content))


def result_metrics(result: ResultContent, prefix: str) -> dict[str, float]:
    """Return the means of an evaluation under names for loggers.

    Normalised returns are left out where the dataset has no reference returns.
    """
    metrics = {}
    both = {"before": result["before_adaptation"], "after": result["after_adaptation"]}
    for when, scores in both.items():
        metrics[f"{prefix}/{when}_return"] = scores["return"]
        metrics[f"{prefix}/{when}_normalised_return"] = scores["normalised_return"]
    for num_steps, after in list(result["after_n_steps"].items())[1:]:
        metrics[f"{prefix}/after_{num_steps}_steps_return"] = after["return"]
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def result_table(result: ResultContent) -> tuple[list[str], list[list[float]]]:
    """Return columns and one row for each task of an evaluation."""
    before, after = result["before_adaptation"]["per_task"], result["after_adaptation"]["per_task"]
    rows = [
        [
            int(task),
            before[task]["return"],
            after[task]["return"],
            before[task]["normalised_return"],
            after[task]["normalised_return"],
        ]
        for task in after
    ]
    columns = ["task", "before", "after", "before_normalised", "after_normalised"]
    return columns, rows


def history_point(result: ResultContent, step: int, wall_time: float) -> HistoryPoint:
    """Return one point of the learning curve.

    Args:
        result: The evaluation at this point.
        step: Outer steps.
        wall_time: Seconds since the start.
    """
    before, after = result["before_adaptation"], result["after_adaptation"]
    tasks = after["per_task"].items()
    return {
        "step": int(step),
        "wall_time": float(wall_time),
        "before_return": before["return"],
        "after_return": after["return"],
        "after_return_per_task": {task: scores["return"] for task, scores in tasks},
        "before_normalised_return": before["normalised_return"],
        "after_normalised_return": after["normalised_return"],
        "after_normalised_return_per_task": {
            task: scores["normalised_return"] for task, scores in tasks
        },
    }


def standing_still(result: ResultContent) -> float | None:
    """Return the mean normalised return of standing still; None where it was not measured."""
    references = {name: value["per_task"] for name, value in result["references"].items()}
    if not {"random", "best_behaviour", "standing_still"} <= set(references):
        return None
    tasks = list(references["standing_still"])
    still, random, best = (
        np.array([references[name][task] for task in tasks])
        for name in ("standing_still", "random", "best_behaviour")
    )
    return float(normalised_return(still, random, best).mean())
