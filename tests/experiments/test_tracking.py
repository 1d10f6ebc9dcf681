"""Weights & Biases: an offline run read back, dashboards as definitions, never a question."""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.proto import wandb_internal_pb2

from offline_meta_rl import cli
from offline_meta_rl.experiments import trackers as workspace
from offline_meta_rl.experiments.command import experiment_command
from offline_meta_rl.experiments.plan import plan
from offline_meta_rl.experiments.reading import experiment_names, load_experiment
from offline_meta_rl.experiments.trackers import workspaces
from tests.experiments.sample import write_experiment
from tests.methods import tiny

BLOCK = 2**15
TRACKER = {"WANDB_RUN_ID": "abcd1234", "WANDB_RESUME": "allow"}  # what the runner adds
wandb_workspaces = pytest.importorskip("wandb_workspaces")


def records(path: Path) -> list[Any]:
    """Return everything that an offline run has written down.

    The file has a header of 7 bytes, then blocks of 32 KiB with pieces of records: checksum, length
    and kind (1 a whole record, 2 its first, 3 a middle, 4 its last piece), then the bytes.
    """
    content, position, found, parts = path.read_bytes(), 7, [], b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left  # padding
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def values(items: Any) -> dict[str, Any]:
    """Return keys and values of a record's items; nested keys are joined by a slash."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small run of an experiment with its W&B variables; return its folder."""
    folder = tmp_path_factory.mktemp("tracking")
    settings = tiny.config("Macaw", tiny.dataset(folder / "data"), evaluate=True)
    del settings["trainer"]["logger"], settings["monitor"]
    own = folder / "configs" / "experiments" / "tracked"
    own.mkdir(parents=True)
    (own / "macaw.yaml").write_text(yaml.safe_dump(settings))
    content = {
        "title": "Tracked",
        "families": ["robot"],
        "arms": {"macaw": {"label": "MACAW", "configs": ["macaw"]}},
        "scales": {"tiny": {"seeds": [3], "steps": 4, "evaluations": 2}},
    }
    (own / "experiment.yaml").write_text(yaml.safe_dump(content))
    (run,) = plan(load_experiment(str(own / "experiment.yaml")), "tiny", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**run.environment, **TRACKER}.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_DIR", raising=False)
        cli.run(list(run.commands[0]))
        import wandb

        assert wandb.run is not None
        wandb.run.finish()
    (path,) = run.folder.glob("wandb/offline-run-*/run-abcd1234.wandb")
    deadline = time.monotonic() + 120
    while not any(record.HasField("exit") for record in records(path)):
        assert time.monotonic() < deadline  # another process writes the file
        time.sleep(0.1)
    return run.folder


def test_an_offline_run_holds_what_the_docs_promise(run_folder: Path) -> None:
    (path,) = run_folder.glob("wandb/offline-run-*/run-abcd1234.wandb")
    found = records(path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert run.run_group == "tracked/robot/macaw"
    assert set(run.tags) == {"tracked", "tiny", "robot", "macaw"}
    assert run.project == "offline_meta_rl"
    config = values(run.config.update)
    for record in found:
        if record.HasField("config"):
            config |= values(record.config.update)
    assert config["network"]["width"] == 8  # of the method
    assert config["env"] == "point_robot"  # of the data
    history = [values(r.history.item) for r in found if r.HasField("history")]
    logged = {key for point in history for key in point}
    promised = {
        *("train/policy_loss", "train/value_loss", "val/policy_loss", "gradient_norm/total"),
        *("eval/before_return", "eval/after_return", "eval/after_normalised_return"),
        *("speed/steps_per_second", "trainer/global_step", "eval/per_task/path"),
    }
    assert promised <= logged
    assert any(key.startswith("learned/policy_step_sizes") for key in logged)
    measured = [p["eval/after_return"] for p in history if "eval/after_return" in p]
    curve = json.loads((run_folder / "results.json").read_text())["history"]
    assert measured == pytest.approx([point["after_return"] for point in curve], rel=1e-5)


def test_the_table_has_a_row_for_each_task(run_folder: Path) -> None:
    (path,) = run_folder.glob("wandb/offline-run-*/run-abcd1234.wandb")
    history = [values(r.history.item) for r in records(path) if r.HasField("history")]
    tables = [p["eval/per_task/path"] for p in history if "eval/per_task/path" in p]
    assert len(tables) == 3
    stored = json.loads((path.parent / "files" / tables[-1]).read_text())
    assert stored["columns"][:3] == ["task", "before", "after"]
    per_task = json.loads((run_folder / "results.json").read_text())["after_adaptation"]["per_task"]
    assert {str(int(row[0])): row[2] for row in stored["data"]} == {
        task: pytest.approx(value["return"]) for task, value in per_task.items()
    }


@pytest.mark.parametrize("name", experiment_names())
def test_workspaces_show_arms_as_groups(name: str) -> None:
    experiment = load_experiment(name)
    made = workspaces(experiment, "cpu", "someone", "offline_meta_rl")
    assert len(made) == len(experiment.families)
    for family, each in zip(experiment.families, made, strict=True):
        view = each._to_model()  # what would be sent, validated by its schema
        sent = json.loads(view.model_dump_json(by_alias=True))
        section = sent["spec"]["section"]
        (runs,) = section["runSets"]
        assert runs["grouping"] == [{"section": "run", "name": "group"}]
        filters = runs["filters"]["filters"]
        assert [part["value"] for part in filters] == [[name], ["cpu"], [family]]
        assert {part["key"]["name"] for part in filters} == {"tags"}
        panels = [p for s in section["panelBankConfig"]["sections"] for p in s["panels"]]
        drawn = {metric for panel in panels for metric in panel["config"]["metrics"]}
        assert {"eval/after_normalised_return", "gradient_norm/total"} <= drawn
        assert {panel["config"]["xAxis"] for panel in panels} == {"trainer/global_step"}
        again = wandb_workspaces.workspaces.Workspace._from_model(view)
        assert [s.name for s in again.sections] == list(workspace.SECTIONS)


def test_uploading_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_experiment(tmp_path).folder / "experiment.yaml")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    command = ["workspace", path, "--scale", "tiny", "--entity", "someone"]
    with pytest.raises(SystemExit, match=r"needs a login, found none\. Run `wandb login`"):
        experiment_command(command)
    saved = []

    def save(self: Any) -> Any:
        saved.append(self.name)
        return self

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_workspaces.workspaces.Workspace, "save", save)
    monkeypatch.setattr(wandb_workspaces.workspaces.Workspace, "url", "https://somewhere")
    experiment_command(command)
    assert saved == ["small, robot, tiny", "small, ant, tiny"]
    assert capsys.readouterr().out.split() == ["https://somewhere"] * 2


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(
        ImportError,
        match=r'needs wandb_workspaces .* Install it with `pip install "offline_meta_rl\[workspac',
    ):
        workspaces(write_experiment(tmp_path), "tiny", "someone", "p")
