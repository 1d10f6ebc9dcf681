"""The progress bar: outer steps, speed and returns, with and without a terminal."""

import io
from pathlib import Path

import lightning
import pytest
import torch
from rich.console import Console

from callbacks.progress import Progress
from tests.small_module import CountingData, Small


class Predictor(Small):
    """Predicts too."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch)


class Predicting(CountingData):
    """Has something to predict too."""

    def predict_dataloader(self) -> list[torch.Tensor]:
        return [torch.ones(2, self.counter.size)]


def fit(folder: Path, progress: Progress, **options: bool) -> None:
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=8,
        max_epochs=-1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[progress],
        **options,
    )
    trainer.fit(Small(), CountingData())


def test_lines_without_a_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    fit(tmp_path, Progress(console=console))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("step 4/8  ")
    assert "steps/s  normalised 4  train/loss " in lines[0]
    assert lines[-1].startswith("step 8/8  ")
    assert "normalised 8" in lines[-1]
    speed = float(lines[-1].split("  ")[1].removesuffix(" steps/s"))
    assert speed > 0


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    fit(tmp_path, Progress(console=console, refresh_seconds=0.0))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "8/8" in drawn
    assert "normalised 8" in drawn
    assert drawn.rstrip("\n").endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("stage", "label"), [("validate", "validating"), ("test", "testing"), ("predict", "adapting")]
)
def test_other_stages_show_the_time_since_their_start(
    tmp_path: Path, stage: str, label: str
) -> None:
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[Progress(console=console)],
        )
        run = {"validate": trainer.validate, "test": trainer.test, "predict": trainer.predict}
        run[stage](Predictor(), Predicting())
        drawn = console.file.getvalue()  # type: ignore[attr-defined]
        assert (label in drawn and "0:00:0" in drawn) is terminal


def test_metrics_can_be_chosen(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    fit(tmp_path, Progress(console=console, metrics={"train/loss": "loss"}))
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert "loss " in last
    assert "normalised" not in last
    assert "train/loss" not in last


def test_silent_when_disabled(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    progress = Progress(console=console)
    progress.disable()
    fit(tmp_path, progress)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
