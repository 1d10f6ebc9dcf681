"""Agents and configs of earlier versions: one error that says what to use now."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import offline_meta_rl
from datamodules.online_buffer import OnlineBuffer
from datamodules.replay import Replay
from offline_meta_rl import cli
from offline_meta_rl.behaviour.shaping import Shaping
from offline_meta_rl.common.settings import arguments_of
from offline_meta_rl.losses.sac import SACSettings
from offline_meta_rl.methods.sac import SAC
from offline_meta_rl.networks.stacked import HiddenLayers

PER_TASK = "offline_meta_rl.methods.per_task_sac.PerTaskSAC"


def old_config(model: str, data: str) -> dict[str, Any]:
    """Return a config as it was written before there were groups of settings."""
    return {
        "model": {"class_path": model, "init_args": {"discount": 0.9, "hidden_size": 8}},
        "data": {
            "class_path": data,
            "init_args": {"family": "point_robot", "warmup_steps": 3, "fall_penalty": 1.0},
        },
    }


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; return the whole message."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code not in (0, None)
    code = exit_info.value.code
    return capsys.readouterr().err + (code if isinstance(code, str) else "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "PerTaskSAC"),
        ("--model=PerTaskSAC",),
        ("--model.class_path", PER_TASK),
        ("--model", "PerTaskSAC", "--model.hidden_size=8"),
    ],
)
def test_class_on_the_command_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, "fit", *arguments, "--data", "LifetimeBuffers")
    assert "PerTaskSAC in the command line is SAC with agents: per_task" in message
    assert "in the group losses" in message


def test_class_in_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(old_config("PerTaskSAC", "LifetimeBuffers")))
    message = fails(capsys, "fit", "--config", str(path))
    assert f"PerTaskSAC in {path} is SAC with agents: per_task" in message


def test_settings_in_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(old_config("SAC", "OnlineBuffer")))
    message = fails(capsys, "fit", "--config", str(path))
    for change in (
        "model.discount is model.losses.discount now",
        "data.warmup_steps is data.replay.warmup_steps now",
        "data.fall_penalty is data.shaping.fall_penalty now",
    ):
        assert change in message
    assert "model.hidden_size is model.network.width now" in message


def checkpoint(folder: Path, method: str, names: list[str]) -> Path:
    """Write what an earlier version wrote, as far as it is read before it is refused."""
    name = method.rpartition(".")[2]
    config = old_config(method, {"SAC": "OnlineBuffer"}.get(name, "LifetimeBuffers"))
    config["data"]["init_args"]["num_threads"] = 1
    config["trainer"] = {"logger": False, "max_steps": 20, "default_root_dir": str(folder)}
    if name == "PerTaskSAC":
        config["data"]["init_args"] |= {"lifetime_steps": 300}
    settings = config["model"]["init_args"] | {"observation_size": 2, "action_size": 2}
    content = {
        "method": method,
        "state_dict": dict.fromkeys(names, torch.zeros(1)),
        "hyper_parameters": settings,
        "config": yaml.safe_dump(config),
        "random_state": {},
        "global_step": 4,
        "epoch": 0,
        "pytorch-lightning_version": "2.6.0",
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    torch.save(content, folder / "old.ckpt")
    return folder / "old.ckpt"


def test_checkpoint_of_a_class_that_is_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path, PER_TASK, ["actors.weights.0"])
    with pytest.raises(ValueError, match=r"PerTaskSAC in .*old.ckpt is SAC with agents: per_task"):
        offline_meta_rl.load(path)
    message = fails(capsys, "fit", "--ckpt_path", str(path))
    assert "PerTaskSAC in the checkpoint is SAC with agents: per_task" in message
    assert "with the version of the code that wrote the checkpoint" in message


@pytest.mark.filterwarnings("ignore:.*callback states")
def test_checkpoint_of_torchrl_s_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = f"{SAC.__module__}.SAC"
    path = checkpoint(tmp_path, method, ["actor.network.0.weight", "loss.log_alpha"])
    with pytest.raises(ValueError, match=r"parameters in .* do not fit .*\.SAC as it is now"):
        offline_meta_rl.load(path)
    message = fails(capsys, "fit", "--ckpt_path", str(path))
    assert "when its networks were TorchRL's; expected stacked networks" in message
    assert "configs/behaviour" in message


def test_settings_of_a_checkpoint_have_their_new_places() -> None:
    """Old names, as far as the class is still there, are read and not refused."""
    found = arguments_of(SAC, {"discount": 0.5, "target_entropy": None, "hidden_size": 8})
    assert found == {
        "losses": SACSettings(discount=0.5),
        "network": HiddenLayers(width=8, depth=2),
    }
    found = arguments_of(OnlineBuffer, {"warmup_steps": 3, "batch_size": 4, "alive_bonus": 0.5})
    replay = Replay(batch_size=4, updates_per_step=6, warmup_steps=3)  # as OnlineBuffer has it
    assert found == {"replay": replay, "shaping": Shaping(alive_bonus=0.5)}
