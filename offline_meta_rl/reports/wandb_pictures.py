"""Pictures for Weights & Biases."""

from pathlib import Path

import lightning
from lightning.pytorch.loggers import WandbLogger


def to_wandb(trainer: lightning.Trainer, key: str, path: Path) -> None:
    """Show a picture in Weights & Biases where there is such a logger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.log_image(key, [str(path)], step=trainer.global_step)
