"""``fit`` against a bare loop over the same step: what Lightning and the callbacks cost.

Both draw the same batches, compute the same gradients and step the same Adam, without compilation
and with one number of threads; ``fit`` adds the trainer, the progress bar, monitoring and CSV logs.
"""

import time
from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning.pytorch.loggers import CSVLogger
from torch.utils import _pytree as pytree

from callbacks.monitor import Monitor
from callbacks.progress import Progress
from datamodules import TaskBuffers
from offline_meta_rl.methods.macaw import Macaw
from tests.benchmarks.record import record
from tests.helpers import build, make_dataset

ANT = {"observation_size": 27, "action_size": 8}
SMALL = {"width": 64, "head_width": 32, "latent_size": 32}
QUICK_START = {"observation_size": 2, "action_size": 2, **SMALL}
SKIPPED = 20


class Stopwatch(lightning.Callback):
    """Times the steps after the first few."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == SKIPPED:
            self.start = time.perf_counter()
        self.end, self.steps = time.perf_counter(), trainer.global_step - SKIPPED


def fit_steps_per_second(options: dict[str, Any], path: Path, folder: Path, steps: int) -> float:
    """Train through Lightning as the command line does."""
    watch = Stopwatch()
    trainer = lightning.Trainer(
        max_steps=steps + SKIPPED,
        max_epochs=-1,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[Progress(), Monitor(), watch],
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(build(Macaw, **options), datamodule=TaskBuffers(env="point_robot", path=str(path)))
    return watch.steps / (watch.end - watch.start)


def bare_steps_per_second(options: dict[str, Any], path: Path, steps: int) -> float:
    """Train with nothing but the batch, the gradient and Adam."""
    module, data = build(Macaw, **options), TaskBuffers(env="point_robot", path=str(path))
    data.setup("fit")
    optimizer = module.configure_optimizers()
    for step in range(steps + SKIPPED):
        if step == SKIPPED:
            start = time.perf_counter()
        batch = data.batch(step)[0]
        parameters = module.meta_parameters()
        gradient, _ = module.outer_gradient(
            parameters, dict(batch["inner"]), dict(batch["outer"]), batch["weight"]
        )
        leaves = zip(pytree.tree_leaves(parameters), pytree.tree_leaves(gradient), strict=True)
        for parameter, value in leaves:
            parameter.grad = value
        optimizer.step()
        optimizer.zero_grad()
    return steps / (time.perf_counter() - start)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "steps", "least"),
    [("ant", ANT, 100, 0.95), ("quick_start", QUICK_START, 300, 0.75)],
    ids=["ant", "quick-start"],
)
def test_fit_against_bare_loop(
    name: str, options: dict[str, Any], steps: int, least: float, tmp_path: Path
) -> None:
    sizes = {key: options[key] for key in ("observation_size", "action_size")}
    path = make_dataset(
        tmp_path / "dataset", num_tasks=8, episodes_per_stage=10, horizon=100, ragged=False, **sizes
    )
    rounds = [
        (
            bare_steps_per_second(options, path, steps),
            fit_steps_per_second(options, path, tmp_path / "logs", steps),
        )
        for _ in range(3)
    ]
    bare, fit = (sorted(column)[1] for column in zip(*rounds, strict=True))
    record(f"fit_{name}", bare_steps_per_second=bare, fit_steps_per_second=fit, ratio=fit / bare)
    assert fit / bare >= least
