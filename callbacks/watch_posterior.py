"""Draw what a method with a context posterior knows of the tasks, at the end of a run.

Under ``default_root_dir``: ``posterior.png``, posterior means of several contexts of every task in
two dimensions, coloured by the task's parameters, and the same numbers in ``posterior.json``.
"""

from pathlib import Path

import lightning
import numpy as np
import torch

from offline_meta_rl.common.files import write_json
from offline_meta_rl.evaluation.contracts import EvaluationData, Infers
from offline_meta_rl.evaluation.measure import evaluation_data
from offline_meta_rl.reports.posterior import Array, between_task_variance, draw_posterior


class WatchPosterior(lightning.Callback):
    """Draws after training and after testing; the first process does the work.

    Args:
        contexts: Contexts to draw for each task, at least 2.
        context_size: Transitions of each context.
        seed: Seed of the contexts.
        name: Name of the files, without their ending.
    """

    def __init__(
        self,
        *,
        contexts: int = 5,
        context_size: int = 256,
        seed: int = 0,
        name: str = "posterior",
    ) -> None:
        if contexts < 2:
            raise ValueError(f"contexts: expected at least 2 for each task, found {contexts}.")
        self.contexts, self.context_size, self.seed, self.name = contexts, context_size, seed, name

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Check the method and the datamodule.

        Raises:
            TypeError: A method without posterior, or a datamodule without a task dataset.
        """
        _inferring(pl_module)
        evaluation_data(trainer)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Draw; an interrupted run is left as it is."""
        if not trainer.should_stop:
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the posterior of the tested checkpoint."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data = evaluation_data(trainer)
        means = self._means(_inferring(pl_module), data)
        parameters = np.asarray(data.dataset.manifest.task_parameters, dtype=np.float64)
        # Held-out tasks are marked: the encoder has never seen their data.
        held_out = ~np.isin(np.arange(len(means)), data.train_tasks)
        root = Path(trainer.default_root_dir)
        draw_posterior(means, parameters, held_out, root / f"{self.name}.png")
        content = {
            "between_task_variance": between_task_variance(means),
            "global_step": trainer.global_step,
            "context_size": self.context_size,
            "held_out_tasks": np.flatnonzero(held_out).tolist(),
            "task_parameters": parameters.tolist(),
            "posterior_means": means.tolist(),
        }
        write_json(root / f"{self.name}.json", content)

    @torch.no_grad()
    def _means(self, method: Infers, data: EvaluationData) -> Array:
        """Return the posterior means of every task's contexts, [T, K, Z]."""
        tasks = range(data.dataset.manifest.num_tasks)
        means = [
            method.infer(data.context(tasks, self.context_size, seed=seed).to(method.device)).mean
            # Several contexts of each task, to show how far their posterior means lie apart.
            for seed in range(self.seed, self.seed + self.contexts)
        ]
        return np.asarray(torch.stack(means, dim=1).cpu().double().numpy())


def _inferring(module: lightning.LightningModule) -> Infers:
    """Return a module as a method with a posterior.

    Raises:
        TypeError: The method has no posterior over tasks.
    """
    if not isinstance(module, Infers):
        raise TypeError(
            "WatchPosterior needs a method with a context posterior, such as Pearl; found "
            f"{type(module).__name__}. Remove the callback."
        )
    return module
