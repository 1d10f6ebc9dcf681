"""``lightning finetune``: result file, interruption and resume, and what it refuses."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from tensordict import TensorDict

from datamodules.task_buffers import TaskBuffers
from offline_meta_rl import finetune
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.common.interruption import Interrupted
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.finetuning.command import fine_tune as run_fine_tuning
from offline_meta_rl.finetuning.learner import checked
from offline_meta_rl.finetuning.loop import FineTuning
from offline_meta_rl.finetuning.result import Outputs
from offline_meta_rl.finetuning.settings import FineTuningSettings
from offline_meta_rl.methods.macaw import Macaw
from offline_meta_rl.methods.meta_bc import MetaBehaviourCloning
from tests.helpers import build, task_buffers
from tests.methods import tiny

TASKS = [3, 19, 35]
SMALL: dict[str, Any] = {
    "environment_steps": 120,
    "tasks": TASKS,
    "context_size": 32,
    "warmup_episodes": 1,
    "updates": {"value": 2, "policy": 3},
    "batch_size": 16,
    "replay_size": 100,
    "evaluation_episodes": 2,
    "comparison_episodes": 4,
    "learner": {"policy_learning_rate": 0.01, "value_learning_rate": 0.01},
    "save_every": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "point_robot"
    collection = Collection(transitions_per_stage=60)
    TaskBuffers(env="point_robot", path=str(path), collection=collection).prepare_data()
    return path


def method() -> Macaw:
    torch.manual_seed(0)
    return build(Macaw, observation_size=2, action_size=2, width=8, head_width=4, latent_size=3)


def fine_tune(root: Path, dataset: Path, module: Any = None, **options: Any) -> dict[str, Any]:
    """Fine-tune; return the result."""
    data = task_buffers(dataset, inner_size=16, outer_size=16)
    data.setup()
    logger = CSVLogger(root, name="csv")
    try:
        run_fine_tuning(
            *checked(module or method(), data),
            FineTuningSettings(**{**SMALL, **options}),
            Outputs(root, "fine_tuning", [logger]),
            resume="lightning finetune --ckpt_path last.ckpt",
        )
    finally:
        logger.finalize("success")
    return result(root)


def result(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "fine_tuning.json").read_text())
    return content


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    fine_tune(root, dataset)
    return root


def test_result_holds_what_is_promised(uninterrupted: Path, dataset: Path) -> None:
    found = result(uninterrupted)
    assert found["tasks"] == TASKS
    assert set(found["curves"]) == {"3", "19", "35"}
    for task, curve in found["curves"].items():
        assert curve["steps"] == [0, 20, 40, 60, 80, 100, 120]
        assert [len(returns) for returns in curve["returns"]] == [2] * 7
        assert curve["return"][0] == pytest.approx(sum(curve["returns"][0]) / 2)
        assert curve["return"][0] != curve["return"][-1]
        for when in ("before_adaptation", "after_adaptation", "after_fine_tuning"):
            assert task in found[when]["per_task"]
    for when in ("before_adaptation", "after_adaptation", "after_fine_tuning", "improvement"):
        low, high = found[when]["interval"]
        assert low <= found[when]["return"] <= high
    gained = found["after_fine_tuning"]["return"] - found["after_adaptation"]["return"]
    assert found["improvement"]["return"] == pytest.approx(gained)
    curves = found["curves"].values()
    assert set(found["return_after_steps"]) == {"0", "60", "120"}
    assert found["return_after_steps"]["60"] == pytest.approx(
        sum(c["return"][3] for c in curves) / 3
    )
    assert found["updates"] == {"value": 10, "policy": 15}
    assert found["settings"]["seed"] == 0
    assert found["learner"] == SMALL["learner"]
    assert len(found["dataset_checksum"]) == 32
    assert found["config"]["model"]["network"]["width"] == 8
    assert found["method"] == "offline_meta_rl.methods.macaw.Macaw"
    assert {"seed", "commit", "environment"} <= set(found)
    assert (uninterrupted / "fine_tuning.png").read_bytes().startswith(b"\x89PNG")
    assert not (uninterrupted / "checkpoints" / "fine_tuning.ckpt").exists()
    lines = (uninterrupted / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "fine_tuning/return_task_19" in lines[0]
    assert {line.split(",")[lines[0].split(",").index("step")] for line in lines[1:]} >= {
        "0",
        "120",
    }


def test_offline_adaptation_is_the_methods_own(uninterrupted: Path, dataset: Path) -> None:
    """The first agents act as ``adapt_tasks`` on the same context does."""
    from offline_meta_rl.common.provenance import derived_seed
    from offline_meta_rl.evaluation.rollout import run_episodes

    data = task_buffers(dataset, inner_size=16, outer_size=16)
    data.setup()
    module = method()
    policy = module.adapt_tasks(data.context(TASKS, 32, seed=0))
    family = FAMILIES["point_robot"]
    parameters = family.task_parameters(0)[TASKS].repeat(4, axis=0)
    engine = family.make_engine(parameters, seed=derived_seed(0, 3))

    def act(observation: Any) -> Any:
        with torch.no_grad():
            return policy(torch.from_numpy(observation).unflatten(0, (3, 4))).flatten(0, 1).numpy()

    returns = run_episodes(engine, act, family.horizon).returns.reshape(3, 4).mean(axis=1)
    found = result(uninterrupted)["after_adaptation"]["per_task"]
    assert list(found.values()) == pytest.approx(returns.tolist(), rel=1e-5)


def at_episode(number: int, action: Callable[[], None]) -> Callable[[FineTuning], None]:
    """Return ``FineTuning.advance`` that does something before an episode."""
    advance = FineTuning.advance

    def cut(run: FineTuning) -> None:
        if run.episodes == number:
            action()
        advance(run)

    return cut


def power_off() -> None:
    raise KeyboardInterrupt  # no handler runs between two saved states


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (power_off, KeyboardInterrupt),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), Interrupted),
    ],
    ids=["killed", "terminated"],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    stop: Callable[[], None],
    error: type[BaseException],
    uninterrupted: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "advance", at_episode(3, stop))
        with pytest.raises(error) as caught:
            fine_tune(tmp_path, dataset)
    saved = torch.load(tmp_path / "checkpoints" / "fine_tuning.ckpt", weights_only=True)
    assert saved["run"]["episodes"] == (2 if error is KeyboardInterrupt else 4)
    if error is Interrupted:
        assert "lightning finetune --ckpt_path" in str(caught.value)
    assert not (tmp_path / "fine_tuning.json").exists()
    assert fine_tune(tmp_path, dataset) == result(uninterrupted)


def test_a_signal_before_the_first_episode_is_not_lost(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, sent = FineTuning.compare, []

    def signalled(run: FineTuning) -> list[list[float]]:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return compare(run)

    monkeypatch.setattr(FineTuning, "compare", signalled)
    with pytest.raises(Interrupted, match="after 1 episodes of each task"):
        fine_tune(tmp_path, dataset)
    assert (tmp_path / "checkpoints" / "fine_tuning.ckpt").exists()


def test_a_state_of_other_settings_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "advance", at_episode(3, power_off))
        with pytest.raises(KeyboardInterrupt):
            fine_tune(tmp_path, dataset)
    with pytest.raises(
        ValueError, match=r"other settings: seed 0 \(now 1\).*--finetune\.fresh=true"
    ):
        fine_tune(tmp_path, dataset, seed=1)
    assert fine_tune(tmp_path, dataset, fresh=True) == result(uninterrupted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": [3, 40]}, ValueError, r"Unknown tasks \[40\].* from 0 to 39"),
        ({"context_size": 10_000}, ValueError, r"10000"),
        (
            {"learner": {"rate": 1.0}},
            ValueError,
            r"Macaw has no setting rate: expected some of boot",
        ),
        ({"updates": {"actor": 1}}, ValueError, r"kinds \['value', 'policy'\]"),
        ({"split": "half"}, ValueError, r"Unknown split 'half'"),
    ],
)
def test_bad_input_is_named(
    options: dict[str, Any], error: type[Exception], message: str, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fine_tune(tmp_path, dataset, **options)
    assert not (tmp_path / "fine_tuning.json").exists()


def test_a_method_that_cannot_is_named(dataset: Path, tmp_path: Path) -> None:
    module = build(MetaBehaviourCloning, observation_size=2, action_size=2, width=8, latent_size=3)
    message = "MetaBehaviourCloning cannot be fine-tuned online: it does not"
    with pytest.raises(TypeError, match=message):
        fine_tune(tmp_path, dataset, module)
    with pytest.raises(TypeError, match=message):
        module.fine_tuner(TensorDict())


def test_several_processes_are_refused() -> None:
    for devices in (2, [0, 1]):
        with pytest.raises(ValueError, match=r"in one process, found 2.*devices=1"):
            finetune.Place(devices=devices)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint written by the command."""
    root = tmp_path_factory.mktemp("trained")
    tiny.fit(tiny.config("Macaw", dataset, max_steps=2), root)
    return root / "checkpoints" / "last.ckpt"


def command(checkpoint: Path, root: Path, *arguments: str) -> None:
    (root / "finetune.yaml").write_text(yaml.safe_dump({"finetune": SMALL}))
    finetune.run_finetune(
        [
            *("--config", str(root / "finetune.yaml"), "--ckpt_path", str(checkpoint)),
            *(f"--trainer.default_root_dir={root}", *arguments),
        ]
    )


def test_the_command_needs_the_checkpoint_alone(trained: Path, tmp_path: Path) -> None:
    command(trained, tmp_path, "--finetune.learner.policy_learning_rate=0.02")
    found = result(tmp_path)
    assert found["global_step"] == 2
    assert found["learner"] == {"policy_learning_rate": 0.02, "value_learning_rate": 0.01}
    assert found["settings"]["environment_steps"] == 120
    assert not (tmp_path / "results.json").exists()  # callbacks of the meta-training stay out


def test_the_runs_own_config_may_be_given_too(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What belongs to the meta-training is left out of it; loggers and data are read."""
    given = yaml.safe_load((trained.parents[1] / "config.yaml").read_text())
    assert {"model", "checkpoint"} <= set(given)
    given["trainer"] |= {
        "callbacks": [{"class_path": "Evaluate"}],
        "default_root_dir": str(tmp_path),
    }
    given["trainer"]["logger"] = [
        {"class_path": "CSVLogger", "init_args": {"save_dir": "${trainer.default_root_dir}"}},
    ]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    command(trained, tmp_path, f"--config={tmp_path}/run.yaml", "--seed_everything=7")
    assert result(tmp_path)["seed"] == 7
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").is_file()
    said = capsys.readouterr().err
    assert "5 tasks" not in said
    assert f"Mean return of {len(TASKS)} tasks:" in said
    assert str(tmp_path / "fine_tuning.json") in said


def test_the_shared_defaults_hold_where_nothing_else_is_said(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a program that stored no config, with the data on the command line."""
    content = torch.load(trained, weights_only=True)
    config = yaml.safe_load(content.pop("config"))
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"old.ckpt holds no config; expected a checkpoint writ"):
        finetune.run_finetune(["--ckpt_path", str(tmp_path / "old.ckpt")])
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = config["data"]["init_args"]["path"]
    data = ["--data=TaskBuffers", "--data.env=point_robot", f"--data.path={path}"]
    data += ["--data.batches.inner_size=16", "--data.batches.outer_size=16"]
    command(tmp_path / "old.ckpt", tmp_path, *data)
    assert result(tmp_path)["seed"] == 0
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").is_file()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--finetune.environment_stepz=3"], "environment_stepz"),
        (["--finetune.batch_size=many"], "batch_size"),
        (["--finetune.replay_size=10"], "batch_size must be at most replay_size, 10, found 16"),
        (["--trainer.max_steps=3"], "max_steps"),
        (["--model.width=3"], "model.width"),
        (["--trainer.devices=2"], "in one process, found 2"),
        (["--config={folder}/wrong.yaml"], "fintune"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "wrong.yaml").write_text("fintune: {seed: 1}")
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump({"finetune": SMALL}))
    given = [each.format(folder=tmp_path) for each in arguments]
    config = f"--config={tmp_path}/finetune.yaml"
    with pytest.raises(SystemExit) as caught:
        finetune.finetune_command([f"--ckpt_path={trained}", config, *given])
    code = caught.value.code
    said = capsys.readouterr().err + (code if isinstance(code, str) else "")
    assert message in said
    assert len(said.splitlines()) < 12


def test_help_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        finetune.finetune_command(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: lightning finetune")
    settings = [field.name for field in dataclasses.fields(FineTuningSettings)]
    assert [name for name in settings if f"--finetune.{name}" not in out] == []
    assert "Steps collected in each task, at least." in out
    assert "--trainer.max_steps" not in out


def test_an_interruption_names_the_whole_command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = at_episode(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "advance", stop)
        with pytest.raises(Interrupted, match="after 2 episodes") as caught:
            command(trained, tmp_path, "--finetune.learner.policy_learning_rate=0.02")
    assert f"lightning finetune --config {tmp_path}/finetune.yaml --ckpt_path" in str(caught.value)
    assert "--finetune.learner.policy_learning_rate=0.02" in str(caught.value)
    command(trained, tmp_path, "--finetune.learner.policy_learning_rate=0.02")
    assert result(tmp_path)["updates"] == {"value": 10, "policy": 15}


def test_the_command_refuses_other_data_and_no_checkpoint(
    trained: Path, dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    collection = Collection(transitions_per_stage=40)
    data = TaskBuffers(env="point_robot", path=str(other), collection=collection)
    data.prepare_data()
    with pytest.raises(ValueError, match=r"trained on data with checksum .*Pass the data it was"):
        command(trained, tmp_path, f"--data.path={other}")
    config = tmp_path / "fit.yaml"
    tiny.write(tiny.config("Macaw", dataset), tmp_path / "fit")
    config.write_text((tmp_path / "fit" / "given.yaml").read_text())
    with pytest.raises(ValueError, match="starts from a meta-trained checkpoint: expected --ckpt_"):
        finetune.run_finetune(["--config", str(config)])
