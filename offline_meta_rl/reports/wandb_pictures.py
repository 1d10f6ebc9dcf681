"""Pictures for Weights & Biases."""

from collections.abc import Iterable
from pathlib import Path

import lightning
from lightning.pytorch.loggers import Logger, WandbLogger


def to_wandb(trainer: lightning.Trainer, key: str, path: Path) -> None:
    """Show a picture of a run in Weights & Biases, where there is such a logger."""
    if trainer.is_global_zero:
        show_picture(trainer.loggers, key, path, trainer.global_step)


def show_picture(loggers: Iterable[Logger], key: str, path: Path, step: int) -> None:
    """Show a picture in Weights & Biases where there is such a logger.

    Args:
        loggers: Lightning's loggers.
        key: Name of the picture.
        path: PNG.
        step: Outer step that it belongs to.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [str(path)], step=step)
