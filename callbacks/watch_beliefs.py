"""Watch a filter learn: what it draws, and what its belief says about the task.

Under ``default_root_dir``: ``results.json`` (the probe at the end and over training, configuration,
provenance), ``probe.png``, how well the task can be read from beliefs at the episodes' boundaries,
and ``reconstructions/step_N.png``.
"""

from pathlib import Path

import lightning
import numpy as np
from tensordict import TensorDict

from offline_meta_rl.common.files import write_json
from offline_meta_rl.common.progress import Stopwatch
from offline_meta_rl.evaluation.contracts import Described, ExplorationData, Explores
from offline_meta_rl.evaluation.measure import datamodule_of, describe_run
from offline_meta_rl.evaluation.probe import ProbeResult, task_probe
from offline_meta_rl.methods.belief_filter import BeliefFilter
from offline_meta_rl.reports.exploration_plots import (
    ProbePoint,
    probe_figure,
    reconstruction_grid,
    write_png,
)
from offline_meta_rl.reports.wandb_pictures import to_wandb


class WatchBeliefs(lightning.Callback):
    """Probes and draws at every validation of a filter's training, and at its end.

    Logs ``probe/episode_E/PLACE`` (accuracy on held-out meta-trajectories), the same with
    ``_achievable`` (what can be known there), and at the end ``probe_shuffled/...``, the control
    with shuffled labels. In the run of a policy it does nothing: its filter does not change.

    Args:
        rows: Meta-trajectories whose reconstructions are drawn; 0 for none.
        images: Images drawn of each of them, evenly spaced over time.
    """

    def __init__(self, rows: int = 4, images: int = 12) -> None:
        self.rows, self.images = rows, images
        self.history: list[ProbePoint] = []
        self.clock = Stopwatch()

    def state_dict(self) -> dict[str, object]:
        """The probe over training and the clocks, as plain types."""
        return {"history": [dict(point) for point in self.history], "clocks": self.clock.seconds()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Continue the learning curve and the clocks."""
        history, clocks = state_dict["history"], state_dict.get("clocks")
        assert isinstance(history, list)
        self.history = [ProbePoint(step=each["step"], probe=each["probe"]) for each in history]
        if isinstance(clocks, dict):
            self.clock = Stopwatch(clocks)

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check method and data.

        Raises:
            TypeError: A method without a filter, or data without held-out meta-trajectories.
        """
        datamodule = datamodule_of(trainer)
        if not isinstance(pl_module, BeliefFilter | Explores) or not isinstance(
            datamodule, ExplorationData
        ):
            raise TypeError(
                "WatchBeliefs needs a method with a filter, such as BeliefFilter, and "
                f"meta-trajectories; found {type(pl_module).__name__} on "
                f"{type(datamodule).__name__}. Remove the callback."
            )

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clocks."""
        self.clock.start()

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Probe and draw."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and isinstance(pl_module, BeliefFilter):
            for name, value in self._look(trainer, pl_module).items():
                pl_module.log(name, value, batch_size=1, rank_zero_only=True)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Probe and draw the trained filter; an interrupted run is left as it is."""
        if trainer.should_stop or not isinstance(pl_module, BeliefFilter):
            return
        metrics = self._look(trainer, pl_module, final=True)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _look(
        self, trainer: lightning.Trainer, method: BeliefFilter, *, final: bool = False
    ) -> dict[str, float]:
        """Probe and draw; return what is logged."""
        data = datamodule_of(trainer)
        assert isinstance(data, ExplorationData)
        item, step = data.held_out_item(), trainer.global_step
        found = probe(method, item)
        metrics = {f"probe/{name}": value for name, value in found.metrics().items()}
        if final:
            # The control: with shuffled labels the accuracy must fall to chance.
            control = probe(method, item, np.random.default_rng(0)).metrics()
            metrics |= {
                f"probe_shuffled/{name}": value
                for name, value in control.items()
                if not name.endswith("achievable")
            }
        # An evaluation that is repeated after a resume replaces the one before.
        self.history = [point for point in self.history if point["step"] < step]
        self.history.append(ProbePoint(step=step, probe=_shown(found.metrics())))
        if trainer.is_global_zero:
            self._draw_probe(trainer, 1.0 / len(data.train_tasks))
            if self.rows:
                self._draw_images(trainer, method, item["held_out"], step)
            if final:
                self._write(trainer, method, found)
        return metrics

    def _write(self, trainer: lightning.Trainer, method: BeliefFilter, found: ProbeResult) -> None:
        data = datamodule_of(trainer)
        assert isinstance(data, Described)
        origin = describe_run(method, data, trainer.global_step)
        result = {"probe": found.metrics(), **origin, **self.clock.seconds()}
        path = Path(trainer.default_root_dir) / "results.json"
        write_json(path, {**result, "history": self.history})

    def _draw_probe(self, trainer: lightning.Trainer, chance: float) -> None:
        path = Path(trainer.default_root_dir) / "probe.png"
        probe_figure(self.history, path, chance=chance)
        to_wandb(trainer, "probe/figure", path)

    def _draw_images(
        self, trainer: lightning.Trainer, method: BeliefFilter, held_out: TensorDict, step: int
    ) -> None:
        part = held_out[: self.rows]
        decoded = method.reconstructions(part)
        steps = part["observation"].shape[1]
        chosen = np.unique(np.linspace(0, steps - 1, min(self.images, steps)).round().astype(int))
        images, drawn = (x[:, chosen].cpu().numpy() for x in (part["observation"], decoded))
        path = Path(trainer.default_root_dir) / "reconstructions" / f"step_{step}.png"
        write_png(reconstruction_grid(images, drawn), path)
        to_wandb(trainer, "filter/reconstructions", path)


def probe(
    method: BeliefFilter, item: TensorDict, shuffle: np.random.Generator | None = None
) -> ProbeResult:
    """Return the task-decoding probe of a filter on held-out meta-trajectories; see ``probe``."""
    fit, held_out = item["fit"], item["held_out"]
    beliefs = [method.held_out_beliefs(part) for part in (fit, held_out)]
    return task_probe(fit, beliefs[0], held_out, beliefs[1], shuffle=shuffle)


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    """Return the accuracies before the rewards of each episode, which only memory can raise."""
    return {name: value for name, value in metrics.items() if name.endswith("/before_reward")}
