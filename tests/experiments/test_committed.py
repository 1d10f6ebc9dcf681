"""The numbers of committed reports are what the committed result files still give, to the digit."""

import json
from pathlib import Path

import numpy as np
import pytest

from offline_meta_rl.common.statistics import Estimate, estimate
from offline_meta_rl.experiments.curves import fine_tuning_curve, training_curve

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


@pytest.mark.parametrize("folder", ["figure3_point_robot", "figure3_cheetah_vel"])
def test_reports_of_training(folder: str) -> None:
    summary = json.loads((RESULTS / folder / "summary.json").read_text())
    ((_, arms),) = summary["families"].items()
    for arm, expected in arms.items():
        files = [RESULTS / folder / f"{arm}_{seed}.json" for seed in expected["seeds"]]
        curves = [
            training_curve(json.loads(file.read_text()), summary["metric"]).scores for file in files
        ]
        best = [curve[1:][curve[1:].mean(axis=1).argmax()] for curve in curves]
        assert estimate([curve[-1] for curve in curves]) == Estimate(**expected["final"])
        assert estimate(best) == Estimate(**expected["best"])


def test_reports_of_fine_tuning() -> None:
    summary = json.loads((RESULTS / "table1_cheetah_vel" / "summary.json").read_text())
    for arm, expected in summary["families"]["cheetah_vel"].items():
        files = [RESULTS / "table1_cheetah_vel" / f"{arm}_{s}.json" for s in expected["seeds"]]
        curves = [
            fine_tuning_curve(json.loads(file.read_text()), summary["metric"]).scores
            for file in files
        ]
        best = [curve[np.argmax(curve.mean(axis=1))] for curve in curves]
        assert estimate([curve[-1] for curve in curves]) == Estimate(**expected["final"])
        assert estimate(best) == Estimate(**expected["best"])
