"""A progress bar that counts outer steps and shows the return on held-out tasks."""

import sys
import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from offline_meta_rl.common.progress import StepClock
from offline_meta_rl.evaluation.contracts import InStages

METRICS = {
    "eval/before_return": "return before",
    "eval/after_return": "after",
    "eval/after_normalised_return": "normalised",
    "behaviour/return": "return",
    "explore/success_after_0": "success at once",
    "explore/success_after_1": "after one episode",
}


def stage_of(module: pl.LightningModule | None) -> str | None:
    """Return which part a method is training; None if it trains all at once."""
    return module.training_stage if isinstance(module, InStages) else None


def bar_label(module: pl.LightningModule | None) -> str:
    """Return the bar's label: what it counts."""
    stage = stage_of(module)
    return f"{stage}: outer steps" if stage else "outer steps"


class Progress(ProgressBar):
    """One bar for the whole run: outer steps, steps per second, time left, returns.

    Testing and the like show the time since their start.
    Without a terminal it prints a line now and then instead, so that log files stay readable.

    Args:
        refresh_seconds: Seconds between two updates of the bar.
        line_seconds: Seconds between two lines where there is no terminal.
        metrics: Logged name and the label to show it with; values logged with ``prog_bar=True``
            are shown too.
        console: Where to draw; standard error by default, so that output stays readable.
    """

    def __init__(
        self,
        refresh_seconds: float = 0.5,
        line_seconds: float = 30.0,
        metrics: dict[str, str] | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        self.metrics = METRICS if metrics is None else metrics
        self.console = console or Console(stderr=True)
        self.interval = refresh_seconds if self.console.is_terminal else line_seconds
        self.clock = StepClock()
        self.speed = 0.0
        self.enabled = True
        self._bar: RichProgress | None = None
        self._next_update = 0.0

    def disable(self) -> None:
        """Show nothing, as on all processes but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self.enabled = True

    def print(self, *args: object, sep: str = " ", end: str = "\n", **kwargs: object) -> None:
        """Print above the bar."""
        self.console.print(*args, sep=sep, end=end)

    def status(self, trainer: pl.Trainer) -> str:
        """Return speed, returns and chosen metrics as one line."""
        shown = {
            label: float(trainer.callback_metrics[name])
            for name, label in self.metrics.items()
            if name in trainer.callback_metrics
        }
        shown |= {
            name: float(value)
            for name, value in trainer.progress_bar_metrics.items()
            if name not in self.metrics
        }
        values = [f"{label} {value:.3g}" for label, value in shown.items()]
        return "  ".join([f"{self.speed:.1f} steps/s", *values])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self.clock.start(trainer.global_step)
        # The first line soon, so that one sees that the run has started.
        self._next_update = time.monotonic() + min(1.0, self.interval)
        if self.enabled and self.console.is_terminal:
            self._bar = self._on_console(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
            )
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar.add_task(bar_label(pl_module), total=total, status="")
            self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Refresh when it is time."""
        # What follows the last step is evaluation, not training.
        if trainer.global_step == trainer.max_steps:
            self.clock.pause()
        if self.enabled and time.monotonic() >= self._next_update:
            self._show(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluation is not counted as training time; alone it gets a bar of its own."""
        self.clock.pause()
        if trainer.state.fn == "validate":
            self._wait("validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the new returns at once."""
        self.clock.resume()
        if trainer.state.fn == "validate":
            self._stop()
        elif self.enabled and trainer.state.fn == "fit":
            self._show(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that something goes on: callbacks evaluate in the test loop."""
        self._wait("testing")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that something goes on."""
        self._wait("adapting")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self.enabled:
            self._show(trainer)
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def _show(self, trainer: pl.Trainer) -> None:
        self._next_update = time.monotonic() + self.interval
        if trainer.global_step > self.clock.step:
            self.speed = self.clock.read(trainer.global_step)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task,
                completed=trainer.global_step,
                description=bar_label(trainer.lightning_module),
                status=self.status(trainer),
            )
        elif not self.console.is_terminal:
            total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            stage = stage_of(trainer.lightning_module)
            done = f"step {trainer.global_step}{total}"
            line = "  ".join([*([stage] if stage else []), done, self.status(trainer)])
            self.console.print(line, soft_wrap=True, highlight=False)

    def _on_console(self, *columns: ProgressColumn) -> RichProgress:
        # What is printed meanwhile goes above the bar, unless it goes into a file or a pipe.
        return RichProgress(*columns, console=self.console, redirect_stdout=sys.stdout.isatty())

    def _wait(self, label: str) -> None:
        """Show a bar without an end on a terminal, with the time since the start."""
        if self.enabled and self.console.is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = self._on_console(*columns)
            self._bar.add_task(label, total=None)
            self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
