"""Measure held-out returns while training and testing, and keep them in ``results.json``.

Under ``default_root_dir``: ``results.json`` (returns before and after adaptation, raw, normalised
and per task; protocol, references, configuration, provenance, learning curve so far) and
``learning_curve.png``. The curve is kept in checkpoints, so it survives a resume.
"""

import time
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.pytorch.loggers import WandbLogger

from offline_meta_rl.common.checkpoints import Checkpoint
from offline_meta_rl.evaluation.measure import (
    check_datamodule,
    contexts_of,
    datamodule_of,
    describe_run,
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


class Evaluate(lightning.Callback):
    """Evaluate at the start of training, at every validation, at the end, and when testing.

    Logs ``<name>/before_return``, ``after_return``, ``before_normalised_return`` and
    ``after_normalised_return``; a checkpoint callback can monitor them. The first process does the
    work; the others wait for it.

    Args:
        name: prefix of what is logged; set it, and ``results_file``, where there are two of these.
        split: name of the task split; None for the datamodule's own.
        tasks: ``test`` or ``train`` tasks of the split, or task indices.
        context_source: ``own``, or ``other``, the control: adapt on another task's context.
        context_size: transitions of context for each task.
        context_slice: part of the dataset that context comes from, in the datamodule's own terms.
        adaptation_steps: numbers of inner steps; the first one is "after adaptation".
        episodes: episodes for each task, before and after adaptation.
        stochastic: sample actions instead of taking the mean action.
        seed: of contexts, initial states and action noise.
        at_start: evaluate before the first outer step too.
        num_threads: threads of the simulator; None for one per core.
        video: at the end, film the first task before and after adaptation, side by side.
        results_file: name of the result file under ``default_root_dir``; the picture of the
            learning curve is named after it unless it is ``results.json``.
    """

    def __init__(
        self,
        *,
        name: str = "eval",
        split: str | None = None,
        tasks: str | list[int] = "test",
        context_source: Literal["own", "other"] = "own",
        context_size: int = 256,
        context_slice: dict[str, Any] | list[str] | None = None,
        adaptation_steps: tuple[int, ...] = (1,),
        episodes: int = 10,
        stochastic: bool = False,
        seed: int = 0,
        at_start: bool = True,
        num_threads: int | None = None,
        video: bool = False,
        results_file: str = "results.json",
    ) -> None:
        self.name, self.results_file, self.split = name, results_file, split
        self.at_start, self.num_threads, self.video = at_start, num_threads, video
        self.protocol = Protocol(
            split=split or "default",
            tasks=tasks,
            context_source=context_source,
            context_size=context_size,
            context_slice=context_slice,
            adaptation_steps=tuple(adaptation_steps),
            episodes=episodes,
            stochastic=stochastic,
            seed=seed,
        )
        self.history: list[HistoryPoint] = []
        self._wall_time = self._evaluation_time = 0.0
        self._train_start: float | None = None
        self._latest: ResultContent

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
        self.history = deepcopy(state_dict["history"])
        self._wall_time = state_dict["wall_time"]
        self._evaluation_time = state_dict["evaluation_time"]

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check the datamodule, the split, the tasks and the contexts before anything runs.

        Raises:
            TypeError: a datamodule that has no task dataset.
            ValueError: unknown split or task, too few transitions for a context.
        """
        if stage == "predict":
            return
        datamodule = datamodule_of(trainer)
        check_datamodule(datamodule)
        if self.split is None:
            fields = {**vars(self.protocol), "split": datamodule.hparams.get("split", "default")}
            self.protocol = Protocol(**fields)
        contexts_of(datamodule, self.protocol)

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock; evaluate before the first step.

        A resumed run evaluates if its checkpoint was written just before an evaluation was due.
        """
        self._train_start = time.perf_counter()
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        interval = trainer.val_check_batch or 1
        due = batches % interval == 0 if batches else self.at_start
        known = any(point["step"] == trainer.global_step for point in self.history)
        if due and not known and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._evaluate(trainer, pl_module)
            self._to_loggers(trainer)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate, log and write the result file."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module)
            self._log(pl_module)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate the last step if no validation did; an interrupted run is left as it is."""
        if trainer.should_stop:
            return
        if not self.history or self.history[-1]["step"] != trainer.global_step:
            self._evaluate(trainer, pl_module)
            self._to_loggers(trainer)
        self._film(trainer, pl_module)

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Evaluate, log and write the result file; the learning curve is the checkpoint's."""
        self._evaluate(trainer, pl_module)
        self._log(pl_module)
        self._film(trainer, pl_module)

    def _evaluate(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure in the first process, write the files there, and tell the others."""
        start = time.perf_counter()
        fitting = trainer.state.fn == "fit"
        step = trainer.global_step if fitting else self._restore(trainer)
        content: ResultContent | None = None
        if trainer.is_global_zero:
            result = measure(
                pl_module, datamodule_of(trainer), self.protocol, num_threads=self.num_threads
            )
            content = result.to_dict()
        self._latest = trainer.strategy.broadcast(content)  # type: ignore[arg-type, assignment]
        if fitting:
            self._evaluation_time += time.perf_counter() - start
            point = history_point(self._latest, step, self._seconds_trained())
            self.history = [*(old for old in self.history if old["step"] < step), point]
        if trainer.is_global_zero:
            self._write(trainer, pl_module, step)

    def _restore(self, trainer: lightning.Trainer) -> int:
        """Take over curve and clocks of the checkpoint that is tested; return its outer steps."""
        if not trainer.ckpt_path:
            return trainer.global_step
        checkpoint = Checkpoint.read(trainer.ckpt_path)
        state = checkpoint.callback_state(self.state_key)
        if state is not None:
            self.load_state_dict(state)
        return checkpoint.global_step

    def _log(self, pl_module: lightning.LightningModule) -> None:
        for key, value in result_metrics(self._latest, self.name).items():
            shown = key.endswith("/after_return")
            pl_module.log(key, value, prog_bar=shown, sync_dist=True, batch_size=1)
        self._log_table(pl_module.trainer)

    def _to_loggers(self, trainer: lightning.Trainer) -> None:
        """Log where the module's own ``log`` is not allowed or comes too late."""
        for logger in trainer.loggers:
            logger.log_metrics(result_metrics(self._latest, self.name), step=trainer.global_step)
        self._log_table(trainer)

    def _log_table(self, trainer: lightning.Trainer) -> None:
        columns, rows = result_table(self._latest)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.log_table(f"{self.name}/per_task", columns=columns, data=rows)

    def _seconds_trained(self) -> float:
        running = 0.0 if self._train_start is None else time.perf_counter() - self._train_start
        return self._wall_time + running

    def _write(
        self, trainer: lightning.Trainer, method: lightning.LightningModule, step: int
    ) -> None:
        seconds = self._seconds_trained()
        training_seconds = seconds - self._evaluation_time
        content: ResultFile = {
            **self._latest,
            **describe_run(method, datamodule_of(trainer), step),
            "wall_time": seconds,
            "evaluation_time": self._evaluation_time,
            "steps_per_second": step / training_seconds if training_seconds > 0 else None,
            "history": self.history,
        }
        write_results(Path(trainer.default_root_dir) / self.results_file, content)

    def _film(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.video and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / f"{self.name}_video"
            film_first_task(pl_module, datamodule_of(trainer), self.protocol, path)
