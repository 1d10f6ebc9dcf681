"""The table and pictures of several arms and seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from offline_meta_rl.common.statistics import share_interval
from offline_meta_rl.evaluation.exploration import share_of
from offline_meta_rl.evaluation.probe import PLACES
from offline_meta_rl.reports.command import report_command
from offline_meta_rl.reports.exploration import Result, mean_points, mean_share, table


def result(*successes: float, nearest: float = 0.5) -> Result:
    points: Any = [
        {
            "exploration_episodes": done,
            "success": share_of(np.arange(100) < 100 * success),
            "opened_any": share_of(np.ones(100, dtype=bool)),
            "nearest_of_opened": share_of(np.arange(100) < 100 * nearest),
        }
        for done, success in enumerate(successes)
    ]
    curve = [0.5, 0.5, 1.0]
    diagnosis: Any = {
        "before_any_reward": {"accuracy": 0.5},
        "after_wrong_drawer": {"curve": curve} if nearest else None,
    }
    protocol: Any = {"tasks": [0, 1]}
    return {
        "points": points,
        "diagnosis": diagnosis,
        "protocol": protocol,
        "processor_time": 90.0,
    }


def test_seeds_that_differ_have_student_s_interval() -> None:
    values = [0.6, 0.5, 0.4]
    found = mean_points([result(0.5, value) for value in values])
    assert found[1]["success"]["share"] == pytest.approx(0.5)
    expected = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(values))
    np.testing.assert_allclose(found[1]["success"]["interval"], expected)


def test_seeds_that_agree_have_the_interval_of_all_their_meta_episodes() -> None:
    found = mean_points([result(0.5), result(0.5)])
    assert found[0]["success"]["interval"] == list(share_interval(100, 200))


def test_one_seed_keeps_its_own_interval_and_none_says_nothing() -> None:
    one = share_of(np.arange(10) < 3)
    nothing = share_of(np.zeros(0, dtype=bool))
    assert mean_share([one, nothing]) == one
    assert mean_share([nothing])["share"] is None


def test_table() -> None:
    arms = {"Ours": [result(0.5, 1.0)] * 2, "No CQL": [result(0.0, 0.0, nearest=0.0)]}
    lines = table(arms).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == (
        "| Ours | 2 | 0.500 [0.431, 0.569] | 1.000 [0.981, 1.000] | 1.000 | 0.500 | 1.5 |"
    )
    assert lines[3].startswith("| No CQL | 1 | 0.000 [0.000, 0.037] |")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        (tmp_path / f"{number}.json").write_text(json.dumps(result(0.5, 0.9)))
    (tmp_path / "other.json").write_text(json.dumps(result(0.5, 0.5, nearest=0.0)))
    pictures = [f"--picture={tmp_path}/a.png", f"--diagnosis={tmp_path}/b.png"]
    arms = [f"--arm=Ours={tmp_path}/0.json,{tmp_path}/1.json", f"--arm=Else={tmp_path}/other.json"]
    report_command(["exploration", *arms, *pictures])
    assert "| Ours | 2 |" in capsys.readouterr().out
    for name in ("a", "b"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="--arm: expected NAME=FILE,FILE,"):
        report_command(["exploration", "--arm", "nothing"])


def test_probes_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, accuracy in enumerate((0.9, 1.0, 0.5)):
        places = [f"episode_{episode}/{place}" for episode in range(2) for place in PLACES]
        probe = dict.fromkeys(places, accuracy) | {f"{p}_achievable": 0.75 for p in places}
        (tmp_path / f"{number}.json").write_text(json.dumps({"probe": probe}))
    arms = [f"--arm=with={tmp_path}/0.json,{tmp_path}/1.json", f"--arm=without={tmp_path}/2.json"]
    report_command(["probe", *arms])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| episode | place | with | without | achievable |"
    assert len(lines) == 2 + 6
    assert lines[-1] == "| 2 | `last` | 0.95 | 0.50 | 0.75 |"
