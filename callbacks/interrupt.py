"""Ctrl-C and SIGTERM: finish the step, write the state, say how to resume."""

import os
import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A run was stopped by a signal after its state was written.

    Args:
        done: what was done, as in "step 12".
        resume: the command that goes on from there.
        signal_number: the signal that stopped it.
    """

    def __init__(self, done: str, resume: str, signal_number: int) -> None:
        super().__init__(f"Interrupted after {done}; the state is saved. Resume with\n    {resume}")
        self.signal_number = signal_number


def resume_command(subcommand: str, checkpoint: Path) -> str:
    """Return the command that goes on from a checkpoint."""
    return f"lightning {subcommand} --ckpt_path {shlex.quote(str(checkpoint))}"


class StopRequest:
    """Notes that the process is asked to stop; a second signal ends it at once.

    Args:
        unit: what is finished first, for the message.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals."""
        self.received = None
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        print(f"\nStopping at the end of this {self.unit}; once more to stop at once.", flush=True)


class Interrupt(Checkpoint):
    """Stops training at the end of a step when the process is asked to stop.

    The first signal sets a flag; the checkpoint is written when the running outer step (and the
    evaluation, if one is running) is over. A second signal ends the process at once.

    Args:
        filename: of the checkpoint, in ``checkpoints`` below the trainer's root folder.
    """

    def __init__(self, filename: str = "interrupted.ckpt") -> None:
        self.filename = filename
        self.request = StopRequest("step")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals from Lightning, with the SIGTERM that it may have noted already."""
        self.request.install()
        if trainer.received_sigterm:
            self.request.received = signal.SIGTERM

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Save and stop, on all processes at the same step; after the last one there is no need.

        Raises:
            Interrupted: tells how to resume.
        """
        stop = self.request.received is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop or 0 < trainer.max_steps <= trainer.global_step:
            return
        path = Path(trainer.default_root_dir) / "checkpoints" / self.filename
        trainer.save_checkpoint(path)
        raise Interrupted(
            f"step {trainer.global_step}",
            resume_command("fit", path),
            self.request.received or signal.SIGTERM,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self.request.restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self.request.restore()
