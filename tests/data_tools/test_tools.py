"""Info, plot, merge and split; the command line around them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offline_meta_rl import main as entry
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data_tools.command import data_command
from offline_meta_rl.data_tools.plot import overlap
from offline_meta_rl.data_tools.validate import validate
from tests.data_tools.damage import refused
from tests.helpers import make_dataset, writer_for


def episodes_of(dataset: TaskDataset) -> list[tuple[Any, ...]]:
    """Return every episode as comparable values: task parameters, stage, rewards."""
    manifest = dataset.manifest
    table = [dataset.episodes[key].tolist() for key in ("task", "stage", "start", "length")]
    return [
        (
            tuple(manifest.task_parameters[task]),
            manifest.stages[stage],
            tuple(dataset.transitions["reward"][start : start + length].tolist()),
        )
        for task, stage, start, length in zip(*table, strict=True)
    ]


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = TaskDataset.open(make_dataset(tmp_path / "dataset"))
    data_command(["info", str(dataset.path), "--json"])
    info = json.loads(capsys.readouterr().out)
    rows = slice(*dataset.task_rows(2))
    starts = dataset.episodes["start"][dataset.episodes["task"] == 2]
    returns = dataset.returns_to_go(1.0)[starts].double()
    task = info["tasks"][2]
    assert task["return"]["mean"] == pytest.approx(returns.mean().item(), abs=1e-5)
    assert task["return"]["max"] == pytest.approx(returns.max().item(), abs=1e-5)
    assert task["stages"]["expert"]["mean"] == pytest.approx(returns[-2:].mean().item(), abs=1e-5)
    assert (task["episodes"], task["transitions"]) == (8, rows.stop - rows.start)
    assert task["references"] == {"random": -10.0, "best_behaviour": 10.0}
    assert info["checksum"] == dataset.checksum
    assert sum(stage["transitions"] for stage in info["stages"].values()) == len(dataset)
    data_command(["info", str(dataset.path)])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("point_robot", "expert", dataset.checksum, "best behav"))


def test_plot(tmp_path: Path) -> None:
    make_dataset(tmp_path / "dataset")
    data_command(["plot", str(tmp_path / "dataset"), str(tmp_path / "picture.png")])
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (1800, 576)
        assert len(set(image.convert("L").resize((60, 20)).tobytes())) > 20
    assert list(tmp_path.glob("*.tmp")) == []


def test_overlap_tells_tasks_apart(tmp_path: Path) -> None:
    writer = writer_for(tmp_path / "dataset", horizon=500)
    random = np.random.default_rng(0)
    for task, place in enumerate((0.0, 0.0, 50.0)):
        observation = random.normal(size=(500, 4)) * [3.0, 2.0, 0.1, 0.1] + place
        end = np.arange(500) == 499
        columns = {
            "observation": observation,
            "action": np.zeros((500, 2)),
            "reward": np.zeros(500),
            "next_observation": observation,
            "terminated": end,
            "truncated": np.zeros(500, dtype=bool),
        }
        writer.write_task(task, columns, stage=[0], length=[500])
    found = overlap(TaskDataset.open(writer.commit({})))
    assert np.allclose(np.diag(found), 1.0)
    assert np.allclose(found, found.T)
    assert found[0, 1] > 0.5
    assert found[0, 2] == found[1, 2] == 0.0


def test_split_by_fraction_and_merge_again(tmp_path: Path) -> None:
    whole = TaskDataset.open(make_dataset(tmp_path / "whole", episodes_per_stage=4))
    some, rest = tmp_path / "some", tmp_path / "rest"
    data_command(["split", str(whole.path), str(some), "--rest", str(rest), "--fraction", "0.25"])
    parts = [TaskDataset.open(path) for path in (some, rest)]
    assert [part.manifest.num_episodes for part in parts] == [[4] * 3, [12] * 3]
    assert parts[0].manifest.splits == whole.manifest.splits
    data_command(["merge", str(some), str(rest), "--into", str(tmp_path / "merged")])
    merged = TaskDataset.open(tmp_path / "merged")
    assert sorted(episodes_of(merged)) == sorted(episodes_of(whole))
    assert merged.manifest.reference_returns == whole.manifest.reference_returns
    assert merged.manifest.splits == whole.manifest.splits
    assert all(validate(path) == [] for path in (some, rest, tmp_path / "merged"))


def test_split_by_tasks_and_merge_again(tmp_path: Path) -> None:
    whole = TaskDataset.open(make_dataset(tmp_path / "whole", num_tasks=4))
    some, rest = tmp_path / "some", tmp_path / "rest"
    data_command(["split", str(whole.path), str(some), "--rest", str(rest), "--tasks", "1,3"])
    chosen = TaskDataset.open(some)
    assert chosen.manifest.task_parameters == [[0.5, 1.0], [1.5, 1.0]]
    assert chosen.split("default") == ([1], [0])
    assert chosen.split("all") == ([0, 1], [0, 1])
    first, stop = whole.task_rows(3)
    rows = slice(*chosen.task_rows(1))
    assert (chosen.transitions[rows] == whole.transitions[first:stop]).all()
    data_command(["merge", str(some), str(rest), "--into", str(tmp_path / "merged")])
    merged = TaskDataset.open(tmp_path / "merged")
    assert sorted(episodes_of(merged)) == sorted(episodes_of(whole))
    assert merged.split("default") == ([1, 2, 3], [0])


def test_split_by_stages(tmp_path: Path) -> None:
    whole = TaskDataset.open(make_dataset(tmp_path / "whole"))
    data_command(["split", str(whole.path), str(tmp_path / "part"), "--stages", "expert,poor"])
    part = TaskDataset.open(tmp_path / "part")
    assert part.manifest.stages == ["poor", "expert"]
    assert part.manifest.reference_returns["stages"] == {"poor": [0.0] * 3, "expert": [15.0] * 3}
    wanted = [e for e in episodes_of(whole) if e[1] in ("poor", "expert")]
    assert episodes_of(part) == wanted


REFUSED = {
    ("split", "a", "c"): "Expected --tasks, --stages or --fraction, found none",
    ("split", "a", "c", "--tasks", "2-4"): r"Unknown tasks \[3, 4\]: expected some of 0 to 2",
    ("split", "a", "c", "--stages", "best"): r"Unknown stages \['best'\]: expected some of \['poor",
    ("split", "a", "c", "--fraction", "1"): "Fraction: expected a number between 0 and 1, found 1",
    ("merge", "a", "a", "--into", "c"): "holds the same data as",
    ("merge", "a", "b", "--into", "c"): "b: horizon: expected 20 as in .*a, found 30",
    ("convert", "a", "memory://c"): "Expected a local path to write at, found memory://c",
    ("convert", "a", "c", "--stride", "2"): "--stride and --task_pickles are for MACAW's data",
    ("convert", "a", "c", "--family", "ant_dir"): "describes itself; leave out family",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", horizon=30, seed=1)
    message = refused(*arguments)
    with pytest.raises(ValueError, match=REFUSED[arguments]):
        raise ValueError(message)
    assert not (tmp_path / "c").exists()


def test_merge_that_would_mix_train_and_test_tasks(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1, test_tasks=(2,))
    said = refused("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "c")
    assert "split 'default': expected task 1 on the same side" in said


@pytest.mark.parametrize("command", [[], ["info"], ["validate"], ["plot"], ["convert"], ["merge"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        entry.main(["data", *command, "--help"])
    assert exit_info.value.code == 0
    assert "usage: lightning data" in capsys.readouterr().out


def test_help_is_fast_and_lightnings_own_mentions_it(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys; from offline_meta_rl.data_tools.command import COMMANDS; COMMANDS.menu.text();"
        "print(sorted({'torch', 'lightning', 'numpy', 'h5py'} & set(sys.modules)))"
    )
    started = time.monotonic()
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout == "[]\n"
    assert time.monotonic() - started < 10
    with pytest.raises(SystemExit):
        entry.main(["--help"])
    assert "Look at datasets" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        entry.main(["data", "--help"])
    assert "validate" in capsys.readouterr().out


def test_values_survive_the_tools(tmp_path: Path) -> None:
    whole = TaskDataset.open(make_dataset(tmp_path / "whole"))
    data_command(["convert", str(whole.path), str(tmp_path / "copy")])
    copy = TaskDataset.open(tmp_path / "copy")
    assert copy.checksum == whole.checksum
    for key in ("observation", "action", "terminated"):
        assert torch.equal(copy.transitions[key], whole.transitions[key])
