"""SIGINT and SIGTERM at any step: the resumed run equals the uninterrupted one, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.checkpoints import LastCheckpoint
from callbacks.interrupt import Interrupt
from offline_meta_rl.common.interruption import Interrupted, resume_command
from tests.small_module import CountingData, Small

STEPS = 12


class SignalAt(Callback):
    """Sends signals to this process in the middle of an outer step."""

    def __init__(self, step: int, number: int, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *args: object) -> None:
        if trainer.global_step + 1 == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class SignalBeforeTheFirstStep(Callback):
    """Sends SIGTERM while Lightning's own handler is in place, as during a first evaluation."""

    def on_train_start(self, trainer: lightning.Trainer, *args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, *callbacks: Callback, resume: Path | None = None) -> Small:
    torch.manual_seed(3)
    module = Small()
    last = LastCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=STEPS,
        max_epochs=-1,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, Interrupt(), last],
    )
    trainer.fit(module, CountingData(), ckpt_path=resume)
    return module


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return train(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, uninterrupted: Small, step: int, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"after step {step}; the state is saved"):
        train(tmp_path, SignalAt(step, number))
    assert signal.getsignal(number) == before
    checkpoint = tmp_path / "checkpoints" / "interrupted.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    resumed = train(tmp_path, resume=checkpoint)
    for (name, expected), found in zip(
        uninterrupted.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_a_signal_before_the_first_step_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="after step 1; the state is saved"):
        train(tmp_path, SignalBeforeTheFirstStep())
    assert (tmp_path / "checkpoints" / "interrupted.ckpt").exists()


def test_a_signal_in_the_last_step_comes_too_late(tmp_path: Path, uninterrupted: Small) -> None:
    module = train(tmp_path, SignalAt(STEPS, signal.SIGTERM))
    assert not (tmp_path / "checkpoints" / "interrupted.ckpt").exists()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == STEPS
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_message_is_a_command() -> None:
    command = resume_command("fit", Path("my runs/x.ckpt"))
    error = Interrupted("step 7", command, signal.SIGINT)
    assert str(error).splitlines()[1].strip() == "lightning fit --ckpt_path 'my runs/x.ckpt'"


def test_second_signal_ends_the_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.callbacks.test_interrupt import *; "
        f"train(Path({str(tmp_path)!r}), SignalAt(3, signal.SIGINT, times=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGINT
    assert "once more to stop at once" in done.stdout
    assert not (tmp_path / "checkpoints" / "interrupted.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_command_exits_with_the_signal_and_says_how_to_resume(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "offline_meta_rl", "fit"]
    command += ["--model", "tests.small_module.Small", "--data", "tests.small_module.CountingData"]
    command += ["--trainer.logger", "false", "--trainer.max_steps", "1000000"]
    command += ["--trainer.default_root_dir", str(tmp_path), "--checkpoint.every_n_train_steps=10"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    checkpoint = tmp_path / "checkpoints" / "interrupted.ckpt"
    assert f"lightning fit --ckpt_path {checkpoint}" in errors
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    done = subprocess.run(
        [*command[:4], "--ckpt_path", str(checkpoint), f"--trainer.max_steps={step + 5}"],
        cwd=Path(__file__).resolve().parents[2],
        timeout=120,
    )
    assert done.returncode == 0
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step + 5
