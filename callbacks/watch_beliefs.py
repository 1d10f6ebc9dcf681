"""Watch the filter of the Reflective Explorer learn: what it draws, and what it knows of the task.

Under ``default_root_dir``: ``reconstructions/step_N.png`` and ``probe.png``, how well the task can
be read from beliefs at the episodes' boundaries, over training.
"""

from pathlib import Path
from typing import Any

import lightning
import numpy as np

from offline_meta_rl.evaluation.measure import datamodule_of
from offline_meta_rl.evaluation.probe import task_probe
from offline_meta_rl.reports.exploration_plots import probe_figure, reconstruction_grid, write_png
from offline_meta_rl.reports.wandb_pictures import to_wandb


class WatchBeliefs(lightning.Callback):
    """Probes and draws at every validation until the filter is trained, and once then.

    Logs ``probe/episode_E/PLACE`` (accuracy on held-out meta-trajectories), the same with
    ``_achievable`` (what can be known there), and in a last measurement ``probe_shuffled/...``, the
    control with shuffled labels.

    Args:
        rows: meta-trajectories whose reconstructions are drawn; 0 for none.
        images: of each of them, evenly spaced over time.
    """

    def __init__(self, rows: int = 4, images: int = 12) -> None:
        self.rows, self.images = rows, images
        self.history: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The probe over training, as plain types."""
        return {"history": [dict(point) for point in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue it."""
        self.history = [dict(point) for point in state_dict["history"]]

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check the method.

        Raises:
            TypeError: it has no filter.
        """
        if not hasattr(pl_module, "explorer"):
            raise TypeError(
                "WatchBeliefs needs a method with a filter, such as ReflectiveExplorer; found "
                f"{type(pl_module).__name__}. Remove the callback."
            )

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Probe and draw, unless the filter was looked at after its last update."""
        module: Any = pl_module
        if trainer.sanity_checking or trainer.state.fn != "fit" or "held_out" not in batch.keys():
            return
        trained = module.training_stage == "policy"
        if trained and self.history and self.history[-1]["step"] >= module.filter_steps:
            return
        step = trainer.global_step
        parts = {
            name: module.explorer.beliefs(batch[name], module.held_out_generator())
            for name in ("fit", "held_out")
        }
        arguments = (batch["fit"], parts["fit"], batch["held_out"], parts["held_out"])
        found = task_probe(*arguments).metrics()
        metrics = {f"probe/{name}": value for name, value in found.items()}
        if trained:
            control = task_probe(*arguments, shuffle=np.random.default_rng(0)).metrics()
            metrics |= {
                f"probe_shuffled/{name}": value
                for name, value in control.items()
                if not name.endswith("achievable")
            }
        for name, value in metrics.items():
            module.log(name, value, batch_size=1, rank_zero_only=True)
        self.history = [point for point in self.history if point["step"] < step]
        self.history.append({"step": step, "probe": _shown(found)})
        if trainer.is_global_zero:
            tasks = len(datamodule_of(trainer).train_tasks)
            self._draw_probe(trainer, 1.0 / tasks, module.filter_steps)
            if self.rows:
                self._draw_images(trainer, module, batch["held_out"], step)

    def _draw_probe(self, trainer: lightning.Trainer, chance: float, switch: int) -> None:
        path = Path(trainer.default_root_dir) / "probe.png"
        probe_figure(self.history, path, chance=chance, switch=switch)
        to_wandb(trainer, "probe/figure", path)

    def _draw_images(
        self, trainer: lightning.Trainer, module: Any, held_out: Any, step: int
    ) -> None:
        part = held_out[: self.rows]
        decoded = module.explorer.reconstructions(part, module.held_out_generator())
        steps = part["observation"].shape[1]
        chosen = np.unique(np.linspace(0, steps - 1, min(self.images, steps)).round().astype(int))
        images, drawn = (x[:, chosen].cpu().numpy() for x in (part["observation"], decoded))
        path = Path(trainer.default_root_dir) / "reconstructions" / f"step_{step}.png"
        write_png(reconstruction_grid(images, drawn), path)
        to_wandb(trainer, "filter/reconstructions", path)


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    """Return the accuracies before the rewards of each episode, which only memory can raise."""
    return {name: value for name, value in metrics.items() if name.endswith("/before_reward")}
