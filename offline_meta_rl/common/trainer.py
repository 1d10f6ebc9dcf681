"""Attributes that Lightning's trainer has, and that its type does not know of."""

from typing import Protocol, cast


class TrainerAttributes(Protocol):
    """Lightning's connectors set these on every ``Trainer``; they are part of its documentation.

    Attributes:
        datamodule: What the trainer was given as data; None without.
        log_every_n_steps: Steps between two rows of a logger; 0 for none.
        fast_dev_run: Number of steps of a trial run, True for one; False otherwise.
    """

    datamodule: object
    log_every_n_steps: int
    fast_dev_run: int | bool


def attributes_of(trainer: object) -> TrainerAttributes:
    """Return a ``Trainer`` as what it is."""
    return cast(TrainerAttributes, trainer)
