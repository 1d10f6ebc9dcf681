"""Ctrl-C and SIGTERM: finish the step, write the state, say how to resume."""

import signal
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from offline_meta_rl.common.interruption import Interrupted, StopRequest, resume_command


class Interrupt(Checkpoint):
    """Stops training at the end of a step when the process is asked to stop.

    The first signal sets a flag; the checkpoint is written when the running outer step (and the
    evaluation, if one is running) is over. A second signal ends the process at once.

    Args:
        filename: Name of the checkpoint in ``checkpoints`` below the trainer's root folder.
    """

    def __init__(self, filename: str = "interrupted.ckpt") -> None:
        self.filename = filename
        self.request = StopRequest("step")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals from Lightning, with the SIGTERM that it may have noted already."""
        self.request.install()
        if trainer.received_sigterm:
            # Lightning's handler may have caught one before this callback had its turn.
            self.request.received = signal.SIGTERM

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Save and stop, on all processes at the same step; after the last one there is no need.

        Raises:
            Interrupted: Tells how to resume.
        """
        stop = self.request.received is not None
        if trainer.world_size > 1:
            # The signal may reach one process only, or reach them at different steps.
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
