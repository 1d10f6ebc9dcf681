"""What the replays of behaviour agents share: settings, their agents, one process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import lightning
from lightning.fabric.utilities.data import AttributeDict

from offline_meta_rl.behaviour.learning import ActsInEnvironments
from offline_meta_rl.common.settings import check_at_least, to_plain


@dataclass(frozen=True)
class Replay:
    """How a replay is filled and drawn from. A step is one step in every environment.

    Attributes:
        batch_size: Transitions of each agent in an update.
        updates_per_step: Updates after each step.
        warmup_steps: Steps with uniform random actions before the first update.

    Raises:
        ValueError: A number is too small.
    """

    batch_size: int = 256
    updates_per_step: int = 1
    warmup_steps: int = 1000

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, 1, "batch_size", "updates_per_step")
        check_at_least(self, 0, "warmup_steps")


class ReplayModule(lightning.LightningDataModule):
    """A replay: the datamodule that fills it is its own loader.

    Args:
        steps_per_epoch: Batches Lightning calls an epoch.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "batch_size": "replay.batch_size",
        "updates_per_step": "replay.updates_per_step",
        "warmup_steps": "replay.warmup_steps",
        "alive_bonus": "shaping.alive_bonus",
        "control_cost": "shaping.control_cost",
        "anneal_steps": "shaping.anneal_steps",
        "fall_penalty": "shaping.fall_penalty",
        "height_weight": "shaping.height_weight",
    }

    def __init__(self, steps_per_epoch: int) -> None:
        super().__init__()
        self.steps_per_epoch = steps_per_epoch
        self.env_steps = 0

    @property
    def hparams_initial(self) -> AttributeDict:
        """The constructor's arguments as loggers get them, plain."""
        return AttributeDict(to_plain(dict(super().hparams_initial)))

    def train_dataloader(self) -> Self:
        """Return the loader, the replay itself."""
        return self

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.steps_per_epoch


def agents_of(trainer: lightning.Trainer | None) -> ActsInEnvironments:
    """Return the agents that are trained.

    Raises:
        TypeError: The trainer's module has no ``act``.
    """
    module: object = trainer.lightning_module if trainer else None
    if not isinstance(module, ActsInEnvironments):
        raise TypeError(
            "Expected a method that acts, act(observation, noise), such as SAC, found "
            f"{type(module).__name__}. Pass --model SAC."
        )
    return module


def check_one_process(trainer: lightning.Trainer, replay: str) -> None:
    """Check that one process trains: each of several would fill a replay of its own.

    Args:
        trainer: The run's trainer.
        replay: Class name, for the message.

    Raises:
        ValueError: Several processes.
    """
    if trainer.world_size > 1:
        raise ValueError(
            f"{replay} simulates and keeps its replay in one process, found {trainer.world_size}. "
            "Set --trainer.devices=1."
        )
