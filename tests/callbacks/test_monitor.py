"""What the monitor logs, and when."""

import csv
import math
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn

from callbacks.monitor import Monitor, gradient_norms, learned_values
from offline_meta_rl.common.progress import StepClock
from tests.small_module import CountingData, Small


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=folder,
        max_epochs=-1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )


def test_gradient_norms_by_part() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(1, 1, bias=False)})
    module["a"].weight.grad = torch.tensor([[3.0, 0.0]])
    module["a"].bias.grad = torch.tensor([4.0])
    module["b"].weight.grad = torch.tensor([[12.0]])
    norms = {name: float(norm) for name, norm in gradient_norms(module).items()}
    expected = {"gradient_norm/a": 5.0, "gradient_norm/b": 12.0, "gradient_norm/total": 13.0}
    assert norms == pytest.approx(expected)
    assert gradient_norms(nn.Linear(1, 1)) == {}


def test_learned_values_undo_logarithms() -> None:
    module = nn.Module()
    module.log_step_sizes = nn.Parameter(torch.tensor([[1.0, 2.0]]).log())
    module.coefficient = nn.Parameter(torch.tensor(0.3))
    module.weight = nn.Parameter(torch.ones(2))
    values = learned_values(module, ("*step_size*", "coef*"))
    expected = {
        "learned/step_sizes/0.0": 1.0,
        "learned/step_sizes/0.1": 2.0,
        "learned/coefficient": 0.3,
    }
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)


def test_logs_at_the_interval(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    module = Small()
    fit = trainer(tmp_path, logger=logger, max_steps=6, log_every_n_steps=3, callbacks=[Monitor()])
    fit.fit(module, CountingData())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "5"]
    for row in rows:
        assert float(row["speed/steps_per_second"]) > 0
        total = math.hypot(
            float(row["gradient_norm/layer"]), float(row["gradient_norm/log_step_size"])
        )
        assert float(row["gradient_norm/total"]) == pytest.approx(total, rel=1e-5)
        assert 0.4 < float(row["learned/step_size/0"]) < 0.6


def test_nothing_is_computed_without_a_logger(tmp_path: Path) -> None:
    fit = trainer(tmp_path, logger=False, max_steps=2, log_every_n_steps=1, callbacks=[Monitor()])
    fit.fit(Small(), CountingData())
    assert not any(name.startswith("gradient_norm") for name in fit.logged_metrics)


def test_wandb_metrics_are_defined_over_outer_steps(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path)
    logger._experiment = experiment = MagicMock()
    fit = trainer(tmp_path, logger=logger, max_steps=1, log_every_n_steps=9, callbacks=[Monitor()])
    fit.fit(Small(), CountingData())
    experiment.define_metric.assert_any_call(
        "eval/after_normalised_return", step_metric="trainer/global_step", summary="max"
    )


def test_step_clock_leaves_pauses_out() -> None:
    times = iter([0.0, 2.0, 10.0, 14.0, 14.0, 15.0])
    clock = StepClock(now=lambda: next(times))  # starts at 0
    clock.pause()  # at 2
    clock.resume()  # at 10
    assert clock.read(12) == pytest.approx(12 / 6)  # at 14: 6 s of training
    assert clock.seconds() == pytest.approx(1.0)  # at 15
