"""Tables and picture of a results page."""

import json
from pathlib import Path

import pytest

from offline_meta_rl.reports.command import report_command
from offline_meta_rl.reports.tables import print_tables


def part(value: float) -> dict[str, object]:
    task = {"return": value, "normalised_return": value / 10}
    return {**task, "per_task": {"4": task}}


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    point = {"step": 5, "before_normalised_return": 0.1, "after_normalised_return": 0.9}
    point["after_return"] = 9.0
    reference = {"return": 10.0, "per_task": {"4": 10.0}}
    content = {
        "global_step": 5,
        "before_adaptation": part(1.0),
        "after_adaptation": part(9.0),
        "references": {"random": reference, "best_behaviour": reference},
        "steps_per_second": 20.0,
        "wall_time": 120.0,
        "history": [point, {**point, "step": 7, "after_normalised_return": 0.8}],
    }
    path = tmp_path / "ant.json"
    path.write_text(json.dumps(content))
    control = path.with_name("ant_control.json")
    control.write_text(json.dumps({**content, "after_adaptation": part(2.0)}))
    return path


def test_tables_and_picture(result_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = result_file.with_name("curves.png")
    report_command(["tables", str(result_file), "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert "| ant | 5 | 1.0 | 9.0 | 0.10 | 0.90 | 10.0 | 10.0 | 20.0 | 2 |" in printed
    assert "| ant | 9.0 | 2.0 | 0.90 | 0.20 |" in printed
    assert "| ant | 5 | 9.0 | 0.90 |" in printed
    assert "| 4 | 1.0 | 9.0 | 0.90 | 10.0 | 10.0 |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match=r"No result file nowhere\.json"):
        print_tables([Path("nowhere.json")])
