"""Checkpoints of a run: the best by a monitored value, and the last.

Lightning's own callback, adapted to methods that step their optimizer themselves: the state saved
is the one after the step; a run that never evaluates has no best checkpoint, instead of an error;
and the last checkpoint is the state after the final step whatever the interval.
"""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best monitored value, judged after each validation."""

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """Do nothing: only a validation can improve the value."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: only a validation can improve the value."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the value is there and better."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class LastCheckpoint(ModelCheckpoint):
    """Saves every ``every_n_train_steps`` outer steps, and when all is done.

    The state after the last step is saved after the evaluation that follows it: a run resumed from
    such a state has nothing left to do.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Save at every multiple of the interval before the last step."""
        interval = self._every_n_train_steps
        # The last step's state has to wait for its evaluation; ``on_train_end`` saves it.
        last = 0 < trainer.max_steps <= trainer.global_step
        if interval > 0 and trainer.global_step % interval == 0 and not last:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: epochs have no meaning here."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: saving does not depend on validation."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring ``last.ckpt`` up to the final step."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        # Lightning has no public way to save both the best k and ``last`` at a time of one's own.
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
