"""Result files: JSON with what is needed to know where a number comes from."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offline_meta_rl.plots import learning_curve


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is replaced only when complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")
    os.replace(partial, target)


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


def plain(value: Any) -> Any:
    """Turn nested containers, arrays and scalars into JSON types; NaN and inf become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def code_commit() -> str | None:
    """Return the commit of the checkout that this code runs from; None if it is not one."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        tracked = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "results.py"],
            capture_output=True,
            timeout=10,
        )
        if tracked.returncode != 0:
            return None
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def global_seed() -> int | None:
    """Return the seed that Lightning's ``seed_everything`` recorded; None without one."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed else None


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
