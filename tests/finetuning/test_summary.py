"""Intervals, curves and milestones of a fine-tuning."""

from pathlib import Path

from offline_meta_rl.finetuning.summary import curves, improvement, milestones, summary
from offline_meta_rl.reports.curves import fine_tuning_curves

POINTS = [
    {"steps": [0, 0], "returns": [[1.0, 3.0], [4.0, float("nan")]]},
    {"steps": [20, 5], "returns": [[2.0, 4.0], [6.0, 8.0]]},
    {"steps": [40, 10], "returns": [[3.0, 5.0], [7.0, 9.0]]},
]


def test_summary_leaves_out_what_diverged() -> None:
    found = summary([[1.0, 3.0, 2.0], [4.0, float("nan"), 6.0]], [7, 9])
    assert found["per_task"] == {"7": 2.0, "9": 5.0}
    assert found["return"] == 3.5
    gained = improvement([[1.0, 2.0], [0.0, float("nan")]], [[2.0, 4.0], [5.0, 5.0]], [7, 9])
    assert gained["per_task"] == {"7": 1.5, "9": 5.0}


def test_curves_and_milestones() -> None:
    of_tasks = curves(POINTS, [7, 9])
    assert of_tasks["7"]["steps"] == [0, 20, 40]
    assert of_tasks["7"]["return"] == [2.0, 3.0, 4.0]
    assert of_tasks["9"]["return"] == [4.0, 7.0, 8.0]
    assert milestones(of_tasks, 10) == {"0": 3.0, "5": 5.0, "10": 5.5}


def test_picture(tmp_path: Path) -> None:
    of_tasks = curves(POINTS, [7, 9])
    for curve in of_tasks.values():
        curve["references"] = {"random": 0.0, "best_behaviour": 9.0}
    path = tmp_path / "curves.png"
    fine_tuning_curves(of_tasks, path, warmup_steps=5)
    assert path.read_bytes().startswith(b"\x89PNG")
