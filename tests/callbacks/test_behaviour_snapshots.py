"""Snapshots of a behaviour agent: when they are taken, what they hold, that training is unmoved."""

from pathlib import Path

import lightning
import pytest
import torch

from callbacks.behaviour_snapshots import BehaviourSnapshots
from datamodules.online_buffer import OnlineBuffer
from datamodules.replay import Replay
from offline_meta_rl.behaviour.pack import pack
from offline_meta_rl.methods.sac import SAC
from tests.helpers import build

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


def train(folder: Path, callbacks: list[lightning.Callback]) -> tuple[SAC, OnlineBuffer]:
    """Train an agent of the point robot for 24 updates."""
    lightning.seed_everything(0, verbose=False)
    replay = Replay(batch_size=16, updates_per_step=4, warmup_steps=3)
    data = OnlineBuffer(family="point_robot", replay=replay)
    model = build(SAC, observation_size=2, task_feature_size=2, action_size=2, hidden_size=16)
    trainer = lightning.Trainer(
        max_steps=24,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    trainer.fit(model, datamodule=data)
    return model, data


def test_snapshots_are_taken_and_change_nothing(tmp_path: Path) -> None:
    callback = BehaviourSnapshots(every_n_steps=12, early_steps=[4], episodes=2, num_threads=1)
    model, data = train(tmp_path / "with", [callback])
    bare, _ = train(tmp_path / "without", [])
    for name, value in model.state_dict().items():
        assert torch.equal(value, bare.state_dict()[name]), name
    folder = tmp_path / "with" / "snapshots"
    assert sorted(path.stem for path in folder.iterdir()) == ["0000004", "0000012", "0000024"]
    last = torch.load(folder / "0000024.pt", weights_only=True)
    assert last["step"] == 24
    assert last["mean"].shape == last["noisy"].shape == (40,)
    assert -40.0 < float(last["mean"].mean()) < -3.0
    assert not torch.equal(last["mean"], last["noisy"])
    for name, value in model.behaviour_actor().state_dict().items():
        assert torch.equal(value, last["state"][name])
    pack([folder / "0000004.pt", folder / "0000024.pt"], tmp_path / "packed.pt", data.family)
    packed = torch.load(tmp_path / "packed.pt", weights_only=True)
    assert [stage["step"] for stage in packed["stages"]] == [4, 24]


def test_another_model_is_refused(tmp_path: Path) -> None:
    callback = BehaviourSnapshots(every_n_steps=4)
    trainer = lightning.Trainer(logger=False, default_root_dir=tmp_path)
    with pytest.raises(TypeError, match=r"with a behaviour_actor, found LightningModule. Use SAC"):
        callback._take(trainer, lightning.LightningModule())
    model = build(SAC, observation_size=2, task_feature_size=2, action_size=2, hidden_size=16)
    with pytest.raises(TypeError, match=r"expected data of OnlineBuffer, found NoneType"):
        callback._take(trainer, model)
    several = SAC(observation_size=2, action_size=2, num_tasks=3, agents="per_task")
    with pytest.raises(TypeError, match="Expected one agent for all tasks, found agents: per_task"):
        callback._take(trainer, several)
