"""The command line: what it accepts, what wins over what, what it says when it refuses."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from callbacks.store_config import relative_to_root
from offline_meta_rl import launch
from offline_meta_rl import main as entry
from offline_meta_rl.common.commands import DEBUG_VARIABLE

TESTS = Path(__file__).resolve().parent
SMALL = """
model:
  class_path: user_module.Small
data:
  class_path: user_module.CountingData
  init_args: {size: "${model.init_args.size}"}
trainer: {max_steps: 6, val_check_interval: 4, logger: false, default_root_dir: run}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's own module and config, as a console script sees it."""
    shutil.copy(TESTS / "small_module.py", tmp_path / "user_module.py")
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("user_module", None)


def lightning(*arguments: str) -> None:
    entry.main(arguments)


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        lightning(*arguments, "--print_config")
    assert exit_info.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; return the whole message."""
    with pytest.raises(SystemExit) as exit_info:
        lightning(*arguments)
    code = exit_info.value.code
    assert code not in (0, None)
    return capsys.readouterr().err + (code if isinstance(code, str) else "")


def test_bare_class_names_and_shared_defaults(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = printed_config(
        capsys,
        *("fit", "--model", "Macaw", "--model.observation_size=2", "--model.action_size=2"),
        *("--data", "TaskBuffers", "--data.env", "point_robot"),
        *("--trainer.callbacks+=Evaluate", "--trainer.default_root_dir", "elsewhere"),
    )
    parts = (config["model"], config["data"], config["trainer"]["callbacks"][0])
    names = [part["class_path"].rpartition(".")[2] for part in parts]
    assert names == ["Macaw", "TaskBuffers", "Evaluate"]
    assert config["trainer"]["inference_mode"] is False
    assert config["trainer"]["check_val_every_n_epoch"] is None
    names = [logger["class_path"].rpartition(".")[2] for logger in config["trainer"]["logger"]]
    assert names == ["CSVLogger", "WandbLogger"]
    assert config["trainer"]["logger"][0]["init_args"]["save_dir"] == "elsewhere"
    assert config["checkpoint"]["dirpath"] == "elsewhere/checkpoints"


def test_a_users_module_is_importable_and_trains(folder: Path) -> None:
    lightning("fit", "--config", "small.yaml")
    files = {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    assert files == {"best.ckpt", "last.ckpt"}
    assert (folder / "run" / "config.yaml").is_file()
    last = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert last["global_step"] == 6  # the final step, though no multiple of an interval
    assert best["global_step"] == 4


def test_misspelt_keys_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", "--config", "small.yaml", "--trainer.max_stepz=3")
    assert "max_stepz" in message
    assert len(message.splitlines()) < 5
    (folder / "wrong.yaml").write_text(SMALL.replace("class_path: user_module.Small", "klass: 1"))
    assert "klass" in fails(capsys, "fit", "--config", "wrong.yaml")


def test_errors_about_the_input_are_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("fit", "--model", "Macaw", "--model.observation_size=2", "--model.action_size=2")
    own = (
        *arguments,
        "--data",
        "TaskBuffers",
        "--data.env",
        "point_robot",
        "--data.batches.stride=1",
    )
    missing = (*own, "--data.path", "nowhere", "--data.collect=false", "--trainer.logger=false")
    message = fails(capsys, *missing)
    assert message.splitlines()[-2].startswith("error: No dataset at nowhere")
    assert "Traceback" not in message
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(FileNotFoundError, match="No dataset at nowhere"):
        lightning(*missing)


def test_errors_of_a_users_code_keep_their_traceback(folder: Path) -> None:
    with pytest.raises(ValueError, match="size: expected at least 1, found -1"):
        lightning("fit", "--config", "small.yaml", "--data.size=-1")


def test_a_checkpoint_is_enough(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Command line, then config, then checkpoint, then defaults."""
    lightning("fit", "--config", "small.yaml", "--model.size=5", "--trainer.max_steps=2")
    checkpoint = str(folder / "run" / "checkpoints" / "last.ckpt")
    stored = yaml.safe_load(torch.load(checkpoint, weights_only=True)["config"])
    assert stored["checkpoint"]["dirpath"] == "${trainer.default_root_dir}/checkpoints"

    config = printed_config(capsys, "test", "--ckpt_path", checkpoint)
    assert config["model"]["init_args"]["size"] == 5
    assert config["trainer"]["max_steps"] == 2
    assert config["trainer"]["inference_mode"] is False

    (folder / "other.yaml").write_text("{model: {init_args: {rate: 0.5}}, trainer: {max_steps: 9}}")
    both = ("test", "--config", "other.yaml", "--ckpt_path", checkpoint)
    config = printed_config(capsys, *both)
    assert config["model"]["init_args"] == {"size": 5, "rate": 0.5}
    assert config["trainer"]["max_steps"] == 9
    config = printed_config(capsys, *both, "--trainer.max_steps=11", "--model.rate=0.25")
    assert config["model"]["init_args"] == {"size": 5, "rate": 0.25}
    assert config["trainer"]["max_steps"] == 11
    assert config["checkpoint"]["dirpath"] == "run/checkpoints"
    config = printed_config(capsys, *both, "--trainer.default_root_dir=moved")
    assert config["checkpoint"]["dirpath"] == "moved/checkpoints"

    lightning("test", "--ckpt_path", checkpoint)
    assert "5.0" in capsys.readouterr().out


def test_a_checkpoint_alone_resumes(folder: Path) -> None:
    lightning("fit", "--config", "small.yaml")
    straight = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    lightning("fit", "--config", "small.yaml", "--trainer.max_steps=3")
    checkpoint = str(folder / "run" / "checkpoints" / "last.ckpt")
    lightning("fit", "--ckpt_path", checkpoint, "--trainer.max_steps=6")
    resumed = torch.load(checkpoint, weights_only=True)
    assert resumed["global_step"] == 6
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_refused_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No checkpoint at nowhere.ckpt" in fails(capsys, "test", "--ckpt_path=nowhere.ckpt")
    torch.save({"state_dict": {}}, "foreign.ckpt")
    message = fails(capsys, "test", "--ckpt_path", "foreign.ckpt")
    assert "foreign.ckpt holds no config" in message
    (folder / "cut.ckpt").write_bytes((folder / "foreign.ckpt").read_bytes()[:100])
    message = fails(capsys, "test", "--ckpt_path", "cut.ckpt")
    assert "cut.ckpt is not a readable checkpoint" in message


def test_shared_callbacks_survive_a_list(folder: Path) -> None:
    arguments = ["--trainer.callbacks=ModelSummary", "--checkpoint.save_top_k=-1"]
    every = "--checkpoint.every_n_train_steps=2"
    lightning("fit", "--config", "small.yaml", *arguments, every)
    files = {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    assert files == {"best.ckpt", "last.ckpt", "step_2.ckpt", "step_4.ckpt", "step_6.ckpt"}


def test_shared_callbacks_can_be_left_out(folder: Path) -> None:
    off = ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    lightning("fit", "--config", "small.yaml", *off)
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_any_lightning_logger(folder: Path, logger: str) -> None:
    (folder / "logger.yaml").write_text(
        f"trainer: {{logger: {{class_path: {logger}, init_args: {{name: logs, "
        "save_dir: '${trainer.default_root_dir}'}}, log_every_n_steps: 1}"
    )
    lightning("fit", "--config", "small.yaml", "--config", "logger.yaml")
    written = list((folder / "run" / "logs" / "version_0").iterdir())
    wanted = "events.out" if logger == "TensorBoardLogger" else "metrics.csv"
    assert any(path.name.startswith(wanted) for path in written)


def test_wandb_is_offline_unless_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def mode() -> str | None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        launch.keep_wandb_offline()
        found = os.environ.get("WANDB_MODE")
        monkeypatch.setenv("WANDB_MODE", "offline")
        return found

    assert mode() == "offline"
    netrc.write_text("machine api.wandb.ai login user password 0123456789")
    assert mode() is None
    netrc.write_text("machine elsewhere login user password 0123456789")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert mode() is None


def test_relative_to_root() -> None:
    config = {"a": ["run/x", "run", "runner"], "b": 3}
    root = "${trainer.default_root_dir}"
    assert relative_to_root(config, "run") == {"a": [f"{root}/x", root, "runner"], "b": 3}


def test_option() -> None:
    assert launch.option(["fit", "--ckpt_path", "a", "--ckpt_path=b"], "--ckpt_path") == "b"
    assert launch.option(["fit", "--ckpt_path"], "--ckpt_path") is None


def test_no_extra_is_needed_to_import_everything() -> None:
    code = (
        "import sys\n"
        "for name in ('imageio', 'PIL.ImageDraw', 'h5py', 'minari', 'pytest', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "from offline_meta_rl.launch import import_classes\n"
        "from offline_meta_rl.envs import FAMILIES\n"
        "import_classes()\n"
        "FAMILIES['ant_dir'].base_model()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
