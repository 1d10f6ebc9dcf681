"""The Evaluate callback: result file, reproduction by ``test``, learning curve over resumes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from callbacks.checkpoints import LastCheckpoint
from callbacks.evaluate import Evaluate
from datamodules.task_buffers import TaskBuffers
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.evaluation.protocol import Protocol
from offline_meta_rl.methods.macaw import Macaw
from tests.helpers import build, task_buffers


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of point robots."""
    path = tmp_path_factory.mktemp("data") / "point_robot"
    collection = Collection(transitions_per_stage=60)
    TaskBuffers(env="point_robot", path=str(path), collection=collection).prepare_data()
    return path


def make_method() -> Macaw:
    torch.manual_seed(0)
    return build(
        Macaw, observation_size=2, action_size=2, width=8, latent_size=4, inner_policy_step=0.1
    )


def make_data(dataset: Path, **options: Any) -> TaskBuffers:
    return task_buffers(dataset, inner_size=16, outer_size=16, **options)


def make_trainer(root: Path, *callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 6,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "inference_mode": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "logger": CSVLogger(root),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(default_root_dir=root, callbacks=[*callbacks], **(defaults | options))


def make_evaluate(**options: Any) -> Evaluate:
    protocol = {"episodes": 2, "context_size": 64, "tasks": [3, 19, 35]}
    names = {field.name for field in dataclasses.fields(Protocol)}
    protocol |= {name: options.pop(name) for name in names & options.keys()}
    return Evaluate(protocol=Protocol(**protocol), **options)


def fit(
    root: Path,
    dataset: Path,
    *callbacks: lightning.Callback,
    ckpt: Path | None = None,
    **options: Any,
) -> lightning.Trainer:
    trainer = make_trainer(root, *callbacks, **options)
    trainer.fit(make_method(), make_data(dataset), ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(root / "run.ckpt")
    return trainer


def results(root: Path, name: str = "results.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / name).read_text())
    return content


def test_fit_writes_what_is_promised(dataset: Path, tmp_path: Path) -> None:
    trainer = fit(tmp_path, dataset, make_evaluate(adaptation_steps=(1, 2)))
    result = results(tmp_path)
    assert [point["step"] for point in result["history"]] == [0, 3, 6]
    assert result["global_step"] == 6
    for when in ("before", "after"):
        measured = result[f"{when}_adaptation"]
        assert set(measured["per_task"]) == {"3", "19", "35"}
        for key in ("return", "normalised_return"):
            assert result["history"][-1][f"{when}_{key}"] == measured[key]
            logged = trainer.callback_metrics[f"eval/{when}_{key}"]
            assert float(logged) == pytest.approx(measured[key], rel=1e-5)
    assert "eval/after_2_steps_return" in trainer.callback_metrics
    assert set(result["after_n_steps"]) == {"1", "2"}
    assert {"random", "best_behaviour"} <= set(result["references"])
    assert result["method"] == "offline_meta_rl.methods.macaw.Macaw"
    assert result["config"]["model"]["network"]["width"] == 8
    assert result["config"]["data"]["env"] == "point_robot"
    assert result["environment"]["id"] == "offline_meta_rl/PointRobot-v0"
    assert len(result["dataset_checksum"]) == 32
    assert result["protocol"]["split"] == "default"
    assert 0 < result["evaluation_time"] < result["wall_time"]
    assert result["steps_per_second"] > 0
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_test_gives_the_same_numbers(dataset: Path, tmp_path: Path) -> None:
    fit(tmp_path / "fit", dataset, make_evaluate())
    torch.manual_seed(99)
    untrained = build(Macaw, observation_size=2, action_size=2, width=8, latent_size=4)
    make_trainer(tmp_path / "test", make_evaluate(), logger=False).test(
        untrained,
        make_data(dataset, seed=5),
        ckpt_path=tmp_path / "fit" / "run.ckpt",
        weights_only=True,
        verbose=False,
    )
    trained, tested = results(tmp_path / "fit"), results(tmp_path / "test")
    for key in ("before_adaptation", "after_adaptation", "protocol", "references", "history"):
        assert tested[key] == trained[key], key
    assert tested["global_step"] == 6
    assert tested["steps_per_second"] == pytest.approx(trained["steps_per_second"], rel=0.5)


def test_the_learning_curve_survives_a_resume(dataset: Path, tmp_path: Path) -> None:
    fit(tmp_path, dataset, make_evaluate())
    first = results(tmp_path)
    fit(tmp_path, dataset, make_evaluate(), ckpt=tmp_path / "run.ckpt", max_steps=9)
    second = results(tmp_path)
    assert second["history"][:3] == first["history"]
    assert [point["step"] for point in second["history"]] == [0, 3, 6, 9]
    assert second["wall_time"] > first["wall_time"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_checkpoint_from_before_an_evaluation_loses_no_point(
    dataset: Path, tmp_path: Path
) -> None:
    # Lightning writes it after the third step, before the validation of that step.
    saver = LastCheckpoint(
        tmp_path / "saved", filename="{step}", every_n_train_steps=3, save_top_k=-1
    )
    fit(tmp_path, dataset, make_evaluate(), saver, enable_checkpointing=True)
    first = results(tmp_path)
    (tmp_path / "results.json").unlink()
    fit(tmp_path, dataset, make_evaluate(), ckpt=tmp_path / "saved" / "step=3.ckpt")
    second = results(tmp_path)
    assert [point["step"] for point in second["history"]] == [0, 3, 6]
    for before, after in zip(first["history"], second["history"], strict=True):
        assert before["after_return"] == after["after_return"]


def test_the_last_step_is_evaluated_and_random_numbers_are_left_alone(
    dataset: Path, tmp_path: Path
) -> None:
    fit(tmp_path / "with", dataset, make_evaluate(), max_steps=4)
    assert [p["step"] for p in results(tmp_path / "with")["history"]] == [0, 3, 4]
    fit(tmp_path / "without", dataset, max_steps=4)
    states = [
        torch.load(tmp_path / name / "run.ckpt", weights_only=True) for name in ("with", "without")
    ]
    assert torch.equal(states[0]["random_state"]["cpu"], states[1]["random_state"]["cpu"])
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


def test_a_control_beside_it(dataset: Path, tmp_path: Path) -> None:
    control = make_evaluate(
        name="control", context_source="other", results_file="control.json", at_start=False
    )
    trainer = fit(tmp_path, dataset, make_evaluate(), control, max_steps=3)
    own, other = results(tmp_path), results(tmp_path, "control.json")
    assert own["before_adaptation"] == other["before_adaptation"]
    assert own["after_adaptation"] != other["after_adaptation"]
    assert [point["step"] for point in other["history"]] == [3]
    assert {"eval/after_return", "control/after_return"} <= set(trainer.callback_metrics)
    assert (tmp_path / "control_learning_curve.png").is_file()
    states = torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]
    assert {"Evaluate[results.json]", "Evaluate[control.json]"} <= set(states)


class RecordingWandb(WandbLogger):
    """Keeps the tables instead of starting a run."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}

    @property
    def save_dir(self) -> None:
        return None

    @property
    def name(self) -> str:
        return "recording"

    @property
    def version(self) -> str:
        return "0"

    def log_table(self, key: str, columns: Any = None, data: Any = None, **_: Any) -> None:
        self.tables[key] = (columns, data)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Leave them."""

    def log_hyperparams(self, params: Any) -> None:
        """Leave them."""

    def finalize(self, status: str) -> None:
        """Nothing to close."""


def test_weights_and_biases_gets_a_table_of_tasks(dataset: Path, tmp_path: Path) -> None:
    logger = RecordingWandb()
    fit(tmp_path, dataset, make_evaluate(), max_steps=3, logger=logger)
    columns, rows = logger.tables["eval/per_task"]
    assert columns[:3] == ["task", "before", "after"]
    after = results(tmp_path)["after_adaptation"]["per_task"]
    assert {row[0]: row[2] for row in rows} == {int(t): v["return"] for t, v in after.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "half"}, r"Unknown split 'half': expected one of \['default'\]"),
        ({"tasks": [3, 40]}, r"Unknown tasks \[40\].* from 0 to 39"),
        ({"context_size": 10_000}, r"10000"),
    ],
)
def test_bad_protocols_stop_before_training(
    options: dict[str, Any], message: str, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, dataset, make_evaluate(**options))
    assert not (tmp_path / "results.json").exists()


def test_a_datamodule_without_tasks(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(TypeError, match="needs a datamodule with dataset, family and context"):
        make_evaluate().setup(trainer, make_method(), "fit")
