"""Findings of ``lightning data validate``: what, in which task, array and row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_meta_rl.data.arrays import checksum
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data_tools.command import data_command
from offline_meta_rl.data_tools.episode_checks import task_findings
from offline_meta_rl.data_tools.validate import Finding, validate
from tests.data_tools import layouts
from tests.helpers import make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of 3 tasks with 8 episodes of 20 steps each: task 1 has the rows 160 to 319."""
    return make_dataset(tmp_path / "dataset", ragged=False)


def change(folder: Path, name: str, edit: Callable[[Any], None], *, hidden: bool = True) -> None:
    """Change an array, with a checksum that fits if hidden."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    entry = manifest["arrays"][name]
    values = np.memmap(folder / entry["file"], dtype=entry["dtype"], mode="r+").reshape(
        entry["shape"]
    )
    edit(values)
    values.flush()
    if hidden:
        content = (folder / entry["file"]).read_bytes()
        entry["checksums"] = [checksum(content)]
        file.write_text(json.dumps(manifest))


def change_manifest(folder: Path, **fields: Any) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def put(index: Any, value: Any) -> Callable[[Any], None]:
    """Return an edit that sets one element."""

    def edit(values: Any) -> None:
        values[index] = value

    return edit


def test_good_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_command(["validate", str(dataset)])
    assert "nothing is wrong" in capsys.readouterr().out


CASES: dict[str, tuple[str, Any, Any, bool, Finding]] = {
    "checksum": (
        *("transitions/action", (200, 1), 0.125, False),
        Finding(0, "transitions/action", 0, "rows 0 to 479: expected checksum"),
    ),
    "nan": (
        *("transitions/reward", 200, np.nan, True),
        Finding(1, "transitions/reward", 200, "found NaN or infinity in 1 rows"),
    ),
    "infinity": (
        *("transitions/action", (470, 0), np.inf, True),
        Finding(2, "transitions/action", 470, "found NaN or infinity in 1 rows"),
    ),
    "next observation": (
        *("transitions/next_observation", (165, 0), 9.0, True),
        Finding(1, "transitions/next_observation", 165, "found another (1 such rows)"),
    ),
    "end in the middle": (
        *("transitions/terminated", 165, True, True),
        Finding(1, "transitions/terminated or truncated", 165, "one before the last step"),
    ),
    "no end": (
        *("transitions/truncated", 179, False, True),
        Finding(1, "transitions/truncated", 179, "neither on the last step"),
    ),
    "stage": (
        *("episodes/stage", 9, 7, True),
        Finding(1, "episodes/stage", 9, "expected stages 0 to 3; found 7"),
    ),
    "length": (
        *("episodes/length", 9, 30, True),
        Finding(1, "episodes/length", 9, "expected 1 to 20 steps, the horizon; found 30"),
    ),
    "start": (
        *("episodes/start", 9, 0, True),
        Finding(1, "episodes/start", 9, "expected the row after the episode before; found 0"),
    ),
    "task": (
        *("episodes/task", 9, 2, True),
        Finding(1, "episodes/task", 9, "expected the tasks one after another"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_findings(dataset: Path, case: str) -> None:
    name, index, value, hidden, expected = CASES[case]
    change(dataset, name, put(index, value), hidden=hidden)
    findings = validate(dataset)
    found = next(f for f in findings if f.message.find(expected.message) >= 0)
    assert found[:3] == expected[:3]
    with pytest.raises(SystemExit) as exit_info:
        data_command(["validate", str(dataset)])
    assert exit_info.value.code == 1


def test_ends_that_disagree_with_the_lengths_change_the_returns(dataset: Path) -> None:
    change(dataset, "transitions/terminated", put(165, True))
    rows = {f.array: f.row for f in validate(dataset)}
    assert rows == {"transitions/terminated or truncated": 165, "transitions/reward": 160}


def test_returns_to_go_are_summed_independently_of_the_reader(dataset: Path) -> None:
    opened = TaskDataset.open(dataset)
    returns = opened.returns_to_go(0.99).numpy()
    assert list(task_findings(opened, 1, returns)) == []
    returns[200] += 0.1
    (finding,) = task_findings(opened, 1, returns)
    assert (finding.task, finding.array, finding.row) == (1, "transitions/reward", 200)


def test_all_findings_are_listed(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(dataset, "transitions/next_observation", put((5, 0), 9.0))
    change(dataset, "transitions/truncated", put(339, False))
    change(dataset, "transitions/reward", put(165, np.inf))
    with pytest.raises(SystemExit):
        data_command(["validate", str(dataset), "--json"])
    findings = json.loads(capsys.readouterr().out)
    places = {(f["task"], f["array"], f["row"]) for f in findings}
    assert places == {
        (0, "transitions/next_observation", 5),
        (1, "transitions/reward", 165),
        (2, "transitions/truncated", 339),
    }


def test_file_cut_short_or_missing(dataset: Path) -> None:
    with open(dataset / "transitions" / "reward.bin", "r+b") as file:
        file.truncate(4 * 100)
    (dataset / "episodes" / "stage.bin").unlink()
    found = {(f.array, f.row, f.message.split(": ")[-1][:24]) for f in validate(dataset)}
    assert ("transitions/reward", 100, "expected 1920 bytes, fou") in found
    assert any(array == "episodes/stage" and "is missing" in rest for array, _, rest in found) or (
        "is missing" in str(validate(dataset))
    )


def test_manifest_of_another_version_or_without_a_key(dataset: Path) -> None:
    change_manifest(dataset, schema_version=3)
    (finding,) = validate(dataset)
    assert "expected at most 2, found 3" in finding.message
    manifest = json.loads((dataset / "manifest.json").read_text())
    del manifest["horizon"]
    (dataset / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    (finding,) = validate(dataset)
    assert "field 'horizon' is missing" in finding.message


def test_array_of_another_type(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["arrays"]["transitions/reward"]["dtype"] = "float64"
    change_manifest(dataset, arrays=manifest["arrays"])
    (finding,) = validate(dataset)
    assert "'transitions/reward': expected [480] float32, found [480] float64" in finding.message


def test_duplicate_and_empty_tasks(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    parameters = manifest["task_parameters"]
    change_manifest(dataset, task_parameters=[parameters[0], parameters[0], parameters[2]])
    (finding,) = validate(dataset)
    assert (finding.task, finding.array) == (1, "task_parameters")
    assert "found the parameters of task 0 again" in finding.message
    change_manifest(
        dataset,
        task_parameters=parameters,
        num_episodes=[16, 0, 8],
        num_transitions=[320, 0, 160],
    )
    messages = [(f.task, f.message) for f in validate(dataset)]
    assert (1, "expected at least one episode, found none. Remove the task.") in messages


def test_data_of_others_is_read_as_a_conversion_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts.write_plain(tmp_path / "files")
    data_command(["validate", str(tmp_path / "files")])
    assert "nothing is wrong" in capsys.readouterr().out
    columns = layouts.forward_task(1)
    columns["next_observation"][3] += 1
    layouts.write_plain_task(tmp_path / "files" / "task_1.npz", columns)
    with pytest.raises(SystemExit):
        data_command(["validate", str(tmp_path / "files"), "--json"])
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["task"] == 1
    assert finding["message"].startswith("Task 1: row 3: next_observation: expected")
