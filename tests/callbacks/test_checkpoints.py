"""Best and last checkpoints of methods that step their optimizer themselves."""

from pathlib import Path

import lightning
import pytest
import torch

from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from tests.small_module import CountingData, Small


class Rated(Small):
    """Its monitored value rises until step 4, then falls."""

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("eval/after_normalised_return", -abs(self.global_step - 4.0))


class Unrated(Small):
    """Logs nothing to monitor."""

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass


def train(module: Small, folder: Path, steps: int, **last: int) -> dict[str, int]:
    """Return the step of every checkpoint."""
    best = BestCheckpoint(
        folder, filename="best", monitor="eval/after_normalised_return", mode="max"
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[best, LastCheckpoint(folder, filename="{step}", save_last=True, **last)],
    )
    trainer.fit(module, CountingData())
    return {
        path.stem: torch.load(path, weights_only=True)["global_step"]
        for path in folder.glob("*.ckpt")
    }


def test_best_is_kept_and_last_is_the_final_step(tmp_path: Path) -> None:
    steps = train(Rated(), tmp_path, 7, every_n_train_steps=3, save_top_k=0)
    assert steps == {"best": 4, "last": 7}


def test_every_interval_can_be_kept(tmp_path: Path) -> None:
    steps = train(Rated(), tmp_path, 7, every_n_train_steps=3, save_top_k=-1)
    assert steps == {"best": 4, "last": 7, "step=3": 3, "step=6": 6, "step=7": 7}


def test_a_run_without_the_monitored_value_has_no_best(tmp_path: Path) -> None:
    assert train(Unrated(), tmp_path, 4, every_n_train_steps=3, save_top_k=0) == {"last": 4}


def test_the_state_saved_is_the_one_after_the_step(tmp_path: Path) -> None:
    module = Rated()
    train(module, tmp_path, 6, every_n_train_steps=6, save_top_k=0)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in module.state_dict().items():
        assert torch.equal(value, saved[name]), name


def test_what_ends_during_the_last_evaluation_can_be_resumed(tmp_path: Path) -> None:
    class Ended(Rated):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            if self.global_step == 6:
                raise RuntimeError("lost machine")

    with pytest.raises(RuntimeError, match="lost machine"):
        train(Ended(), tmp_path, 6, every_n_train_steps=3, save_top_k=0)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_failing_save_is_not_hidden(tmp_path: Path) -> None:
    class Broken(Rated):
        def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
            raise FloatingPointError("layer.weight holds NaN at outer step 2")

    with pytest.raises(FloatingPointError, match="holds NaN at outer step 2"):
        train(Broken(), tmp_path, 4, every_n_train_steps=2, save_top_k=0)
    assert not list(tmp_path.iterdir())
