"""Result files: JSON with what is needed to know where a number comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offline_meta_rl.common.files import write_json
from offline_meta_rl.reports.curves import learning_curve


def write_results(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write the result file and, where there is a history, the picture of the learning curve.

    Args:
        path: of the result file. The picture lies beside it: ``learning_curve.png``, preceded by
            the file's name unless that is ``results.json``.
        content: an evaluation (``EvaluationResult.to_dict``), ``history`` and whatever else.
    """
    target = Path(path)
    write_json(target, content)
    if content["history"]:
        prefix = "" if target.name == "results.json" else f"{target.stem}_"
        picture = target.with_name(f"{prefix}learning_curve.png")
        learning_curve(content["history"], picture, standing_still=standing_still(content))


def result_metrics(result: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the means of an evaluation (``EvaluationResult.to_dict``) under names for loggers.

    Normalised returns are left out where the dataset has no reference returns.
    """
    metrics = {
        f"{prefix}/{when}_{key}": result[f"{when}_adaptation"][key]
        for when in ("before", "after")
        for key in ("return", "normalised_return")
    }
    for num_steps, after in list(result["after_n_steps"].items())[1:]:
        metrics[f"{prefix}/after_{num_steps}_steps_return"] = after["return"]
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def result_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[float]]]:
    """Return columns and one row for each task of an evaluation."""
    before, after = (result[f"{when}_adaptation"]["per_task"] for when in ("before", "after"))
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


def history_point(result: Mapping[str, Any], step: int, wall_time: float) -> dict[str, Any]:
    """Return one point of the learning curve: outer step, seconds, means before and after.

    ``after_return_per_task`` and ``after_normalised_return_per_task`` are for statistics.
    """
    point: dict[str, Any] = {"step": int(step), "wall_time": float(wall_time)}
    per_task = result["after_adaptation"]["per_task"]
    for key in ("return", "normalised_return"):
        for when in ("before", "after"):
            point[f"{when}_{key}"] = float(result[f"{when}_adaptation"][key])
        point[f"after_{key}_per_task"] = {task: float(per_task[task][key]) for task in per_task}
    return point


def standing_still(result: Mapping[str, Any]) -> float | None:
    """Return the mean normalised return of standing still; None where it was not measured."""
    references = {name: value["per_task"] for name, value in result["references"].items()}
    if not {"random", "best_behaviour", "standing_still"} <= set(references):
        return None
    random, best = references["random"], references["best_behaviour"]
    scores = [
        (value - random[task]) / (best[task] - random[task])
        for task, value in references["standing_still"].items()
    ]
    return float(np.mean(scores))
