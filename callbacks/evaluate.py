"""Measure held-out returns while training and testing, and keep them in ``results.json``.

Under ``default_root_dir``: ``results.json`` (returns before and after adaptation, raw, normalised
and per task; protocol, references, configuration, provenance, learning curve so far) and
``learning_curve.png``. The curve is kept in checkpoints, so it survives a resume.
"""

import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypedDict, cast

import lightning
from lightning.pytorch.loggers import WandbLogger

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.data.contracts import attributes_of
from offline_meta_rl.evaluation.measure import (
    contexts_of,
    describe_run,
    evaluated_method,
    evaluation_data,
    film_first_task,
    measure,
)
from offline_meta_rl.evaluation.protocol import Protocol, ResultContent
from offline_meta_rl.evaluation.result_files import HistoryPoint, ResultFile
from offline_meta_rl.reports.results import (
    history_point,
    result_metrics,
    result_table,
    write_results,
)


class EvaluateState(TypedDict):
    """What checkpoints keep of the callback: the learning curve, and seconds so far."""

    history: list[HistoryPoint]
    wall_time: float
    evaluation_time: float


class Evaluate(lightning.Callback):
    """Evaluate at the start of training, at every validation, at the end, and when testing.

    Logs ``<name>/before_return``, ``after_return``, ``before_normalised_return`` and
    ``after_normalised_return``; a checkpoint callback can monitor them. The first process does the
    work; the others wait for it.

    Args:
        protocol: How a return is measured: tasks, contexts, adaptation steps, episodes.
        name: Prefix of what is logged; set it, and ``results_file``, where there are two of these.
        at_start: Evaluate before the first outer step too.
        num_threads: Threads of the simulator; None for one per core.
        video: At the end, film the first task before and after adaptation, side by side.
        results_file: Name of the result file under ``default_root_dir``; the picture of the
            learning curve is named after it unless it is ``results.json``.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        field.name: f"protocol.{field.name}" for field in fields(Protocol)
    }

    def __init__(
        self,
        *,
        protocol: Protocol = Protocol(),
        name: str = "eval",
        at_start: bool = True,
        num_threads: int | None = None,
        video: bool = False,
        results_file: str = "results.json",
    ) -> None:
        self.protocol = protocol
        self.name, self.results_file = name, results_file
        self.at_start, self.num_threads, self.video = at_start, num_threads, video
        self.history: list[HistoryPoint] = []
        self._wall_time = self._evaluation_time = 0.0
        self._train_start: float | None = None

    @property
    def state_key(self) -> str:
        """Tells the states of two of these apart in a checkpoint."""
        return f"Evaluate[{self.results_file}]"

    def state_dict(self) -> dict[str, Any]:
        """The learning curve and the clocks, as plain types."""
        return {
            "history": [dict(point) for point in self.history],
            "wall_time": self._seconds_trained(),
            "evaluation_time": self._evaluation_time,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the learning curve and the clocks."""
        state = cast(EvaluateState, state_dict)
        self.history = deepcopy(state["history"])
        self._wall_time = state["wall_time"]
        self._evaluation_time = state["evaluation_time"]

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check the datamodule, the split, the tasks and the contexts before anything runs.

        Raises:
            TypeError: A datamodule that has no task dataset, or a method that does not adapt.
            ValueError: Unknown split or task, too few transitions for a context.
        """
        if stage == "predict":
            return
        evaluated_method(pl_module)
        # Drawing the contexts once finds an unknown task or too few transitions now.
        contexts_of(evaluation_data(trainer), self.protocol)

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock; evaluate before the first step.

        A resumed run evaluates if its checkpoint was written just before an evaluation was due.
        """
        self._train_start = time.perf_counter()
        # The checkpoint of a step is written before the evaluation that is due at it, so a resumed
        # run may have one left to do.
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        interval = trainer.val_check_batch or 1
        due = batches % interval == 0 if batches else self.at_start
        known = any(point["step"] == trainer.global_step for point in self.history)
        if due and not known and not attributes_of(trainer).fast_dev_run:
            self._to_loggers(trainer, self._evaluate(trainer, pl_module))

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate, log and write the result file."""
        if not trainer.sanity_checking:
            self._log(pl_module, self._evaluate(trainer, pl_module))

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate the last step if no validation did; an interrupted run is left as it is."""
        if trainer.should_stop:
            return
        if not self.history or self.history[-1]["step"] != trainer.global_step:
            self._to_loggers(trainer, self._evaluate(trainer, pl_module))
        self._film(trainer, pl_module)

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate, log and write the result file; the learning curve is the checkpoint's."""
        self._log(pl_module, self._evaluate(trainer, pl_module))
        self._film(trainer, pl_module)

    def _evaluate(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> ResultContent:
        """Measure in the first process, write the files there, and tell the others."""
        start = time.perf_counter()
        fitting = trainer.state.fn == "fit"
        step = trainer.global_step if fitting else self._restore(trainer)
        content: ResultContent | None = None
        if trainer.is_global_zero:
            result = measure(
                evaluated_method(pl_module),
                evaluation_data(trainer),
                self.protocol,
                num_threads=self.num_threads,
            )
            content = result.to_dict()
        # All processes need the returns: a checkpoint callback monitors them on each.
        latest = cast(ResultContent, trainer.strategy.broadcast(content))
        if fitting:
            self._evaluation_time += time.perf_counter() - start
            point = history_point(latest, step, self._seconds_trained())
            # An evaluation that is repeated after a resume replaces the one before.
            self.history = [*(old for old in self.history if old["step"] < step), point]
        if trainer.is_global_zero:
            self._write(trainer, pl_module, latest, step)
        return latest

    def _restore(self, trainer: lightning.Trainer) -> int:
        """Take over curve and clocks of the checkpoint that is tested; return its outer steps."""
        if not trainer.ckpt_path:
            return trainer.global_step
        checkpoint = Checkpoint.read(trainer.ckpt_path)
        state = checkpoint.callback_state(self.state_key)
        if state is not None:
            self.load_state_dict(state)
        return checkpoint.global_step

    def _log(self, pl_module: lightning.LightningModule, result: ResultContent) -> None:
        for key, value in result_metrics(result, self.name).items():
            shown = key.endswith("/after_return")
            pl_module.log(key, value, prog_bar=shown, sync_dist=True, batch_size=1)
        self._log_table(pl_module.trainer, result)

    def _to_loggers(self, trainer: lightning.Trainer, result: ResultContent) -> None:
        """Log where the module's own ``log`` is not allowed or comes too late."""
        for logger in trainer.loggers:
            logger.log_metrics(result_metrics(result, self.name), step=trainer.global_step)
        self._log_table(trainer, result)

    def _log_table(self, trainer: lightning.Trainer, result: ResultContent) -> None:
        columns, rows = result_table(result)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.log_table(f"{self.name}/per_task", columns=columns, data=rows)

    def _seconds_trained(self) -> float:
        running = 0.0 if self._train_start is None else time.perf_counter() - self._train_start
        return self._wall_time + running

    def _write(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        result: ResultContent,
        step: int,
    ) -> None:
        seconds = self._seconds_trained()
        # Otherwise an evaluation every few steps would look like slow training.
        training_seconds = seconds - self._evaluation_time
        content: ResultFile = {
            **result,
            **describe_run(evaluated_method(module), evaluation_data(trainer), step),
            "wall_time": seconds,
            "evaluation_time": self._evaluation_time,
            "steps_per_second": step / training_seconds if training_seconds > 0 else None,
            "history": self.history,
        }
        write_results(Path(trainer.default_root_dir) / self.results_file, content)

    def _film(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.video and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / f"{self.name}_video"
            film_first_task(
                evaluated_method(pl_module), evaluation_data(trainer), self.protocol, path
            )
