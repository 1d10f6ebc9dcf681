"""The result file and the picture of a fine-tuning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

from offline_meta_rl.common.files import write_json
from offline_meta_rl.evaluation.measure import datamodule_of, describe_run
from offline_meta_rl.finetuning.summary import curves, improvement, milestones, summary
from offline_meta_rl.reports.curves import fine_tuning_curves
from offline_meta_rl.reports.wandb_pictures import to_wandb

if TYPE_CHECKING:
    from offline_meta_rl.finetuning.loop import FineTuning


def write_fine_tuning(
    trainer: lightning.Trainer,
    run: "FineTuning",
    tasks: Sequence[int],
    compared: Mapping[str, Sequence[Sequence[float]]],
    extra: Mapping[str, Any],
    name: str,
) -> None:
    """Write ``<name>.json`` and ``<name>.png`` into the run's folder.

    Args:
        trainer: with the method and its data.
        run: the fine-tuning, done.
        tasks: indices of the T tasks.
        compared: returns [T, E] before and after the adaptation, and at the end.
        extra: more for the file.
        name: of the files.
    """
    datamodule = datamodule_of(trainer)
    references = {
        key: np.asarray(values, dtype=np.float64)[list(tasks)]
        for key, values in datamodule.dataset.manifest.reference_returns.items()
        if key != "stages"
    }
    of_tasks = curves(run.curve, tasks)
    content = {
        "tasks": list(tasks),
        "curves": of_tasks,
        "return_after_steps": milestones(of_tasks, run.settings.environment_steps),
        **{when: summary(returns, tasks) for when, returns in compared.items()},
        "improvement": improvement(
            compared["after_adaptation"], compared["after_fine_tuning"], tasks
        ),
        "references": references,
        "episodes": run.episodes,
        "diverged_episodes": dict(zip(tasks, run.diverged.tolist(), strict=True)),
        "updates": run.updates_taken,
        **extra,
        **describe_run(trainer.lightning_module, datamodule, _trained_steps(trainer)),
    }
    root = Path(trainer.default_root_dir)
    write_json(root / f"{name}.json", content)
    for index, task in enumerate(tasks):
        own = {key: float(values[index]) for key, values in references.items()}
        of_tasks[str(task)]["references"] = own
    warmup = run.settings.warmup_episodes * run.family.horizon
    picture = root / f"{name}.png"
    fine_tuning_curves(of_tasks, picture, warmup_steps=warmup)
    to_wandb(trainer, f"{name}/figure", picture)


def _trained_steps(trainer: lightning.Trainer) -> int:
    """Return the outer steps of the checkpoint that is fine-tuned."""
    if not trainer.ckpt_path:
        return trainer.global_step
    checkpoint = torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True, mmap=True)
    return int(checkpoint["global_step"])
