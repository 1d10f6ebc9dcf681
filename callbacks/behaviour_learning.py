"""Watches independent behaviour agents learn: one curve for each task, and who failed."""

import logging
from pathlib import Path

import lightning
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray

from offline_meta_rl.behaviour.learning import (
    CRITERION,
    LifetimeReport,
    ServesLifetimes,
    lifetime_report,
)
from offline_meta_rl.behaviour.references import random_returns, shipped_returns
from offline_meta_rl.common.files import write_json
from offline_meta_rl.common.provenance import code_commit
from offline_meta_rl.data.lifetimes import EpisodeColumns
from offline_meta_rl.evaluation.measure import datamodule_of
from offline_meta_rl.reports.curves import LifetimeCurve, lifetime_curves

_LOGGER = logging.getLogger(__name__)


class BehaviourLearning(lightning.Callback):
    """Logs the returns of lifetimes while they grow; at the end draws them and names failures.

    Logged are ``behaviour/return``, the mean over tasks, and ``behaviour/return_task_<index>``,
    each over the last episodes. At the end ``behaviour_learning_curves.png`` and
    ``behaviour_learning.json`` lie in the run's folder, and each task whose agent failed to learn
    is named in the log. Everything is read from the replays, so a resumed run reports all of it.

    Args:
        every_n_steps: Optimizer steps between two readings.
        last_episodes: How many of each task's last episodes are averaged for the log.
    """

    def __init__(self, every_n_steps: int = 5000, last_episodes: int = 5) -> None:
        self.every_n_steps = every_n_steps
        self.last_episodes = last_episodes
        self._read: int | None = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Count from the step a resumed run starts at.

        Raises:
            TypeError: The data are no lifetimes.
        """
        _lifetimes(trainer)
        self._read = trainer.global_step // self.every_n_steps

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Log the last returns when it is time."""
        # Compared with the last reading: several updates in a batch may step over a multiple.
        due = trainer.global_step // self.every_n_steps
        if due != self._read:
            self._read = due
            self._log(trainer, pl_module)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Draw and report."""
        self._report(trainer)

    @rank_zero_only
    def _log(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        last: dict[int, float] = {}
        for task, table in _tables(_lifetimes(trainer)).items():
            if len(table.returns):
                last[task] = float(table.returns[-self.last_episodes :].mean())
        for task, value in last.items():
            pl_module.log(f"behaviour/return_task_{task}", value, rank_zero_only=True)
        if last:
            mean = float(np.mean(list(last.values())))
            pl_module.log("behaviour/return", mean, rank_zero_only=True, prog_bar=True)

    @rank_zero_only
    def _report(self, trainer: lightning.Trainer) -> None:
        data, root = _lifetimes(trainer), Path(trainer.default_root_dir)
        tables, parameters = _tables(data), dict(zip(data.tasks, data.parameters, strict=True))
        random = random_returns(data.family, **data.evaluation).tolist()
        found = shipped_returns(data.family, **data.evaluation)
        shipped = None if found is None else found.tolist()
        returns = [table.returns for table in tables.values()]
        report = lifetime_report(data.tasks, returns, random, shipped)
        tasks = report["tasks"]
        written = {
            "family": data.family.name,
            "env_steps": data.env_steps,
            "updates": trainer.global_step,
            "seed": data.seed,
            "commit": code_commit(),
            **report,
            "tasks": {task: {**tasks[task], "parameters": parameters[task]} for task in tasks},
        }
        write_json(root / "behaviour_learning.json", written)
        curves = [
            LifetimeCurve(
                title=_name(task, parameters[task]),
                steps=table.start + table.length,
                returns=table.returns,
                references={
                    "random actions": tasks[task]["random"],
                    "best behaviour that ships": tasks[task]["shipped"],
                },
            )
            for task, table in tables.items()
        ]
        lifetime_curves(curves, root / "behaviour_learning_curves.png")
        _name_failures(report, parameters)


def _name_failures(report: LifetimeReport, parameters: dict[int, NDArray[np.float64]]) -> None:
    """Log every task whose agent failed to learn, and how many did learn."""
    for task in report["failed"]:
        found = report["tasks"][task]
        _LOGGER.warning(
            "The agent of %s failed to learn: mean return %.1f over the first and %.1f over the "
            "last 10 %% of its episodes, random actions %.1f, best behaviour that ships %.1f.",
            _name(task, parameters[task]),
            *(found["first"], found["last"], found["random"], found["shipped"]),
        )
    judged = len(report["tasks"]) - len(report["unknown"])
    learned = judged - len(report["failed"])
    _LOGGER.info("%d of %d agents learned (%s).", learned, judged, CRITERION)


def _lifetimes(trainer: lightning.Trainer) -> ServesLifetimes:
    """Return the replays that are watched.

    Raises:
        TypeError: The data are no lifetimes.
    """
    data = datamodule_of(trainer)
    if not isinstance(data, ServesLifetimes):
        raise TypeError(
            f"BehaviourLearning: expected data of LifetimeBuffers, found {type(data).__name__}. "
            "Remove the callback, or use SAC with agents: per_task on LifetimeBuffers."
        )
    return data


def _tables(data: ServesLifetimes) -> dict[int, EpisodeColumns]:
    """Return the episodes so far by task; none before training."""
    storage = data.storage
    if storage is None:
        return {}
    return {task: storage.episodes(index, data.env_steps) for index, task in enumerate(data.tasks)}


def _name(task: int, parameters: NDArray[np.float64]) -> str:
    """Return a task's index, and its parameters where they are few."""
    if len(parameters) > 3:
        return f"task {task}"
    return f"task {task} ({', '.join(f'{value:.3g}' for value in parameters)})"
