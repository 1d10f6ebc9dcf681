"""What a fine-tuning leaves behind: a result file, a picture, and points in the loggers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger

from offline_meta_rl.common.files import write_json
from offline_meta_rl.evaluation.result_files import FineTuningFile, Origin, TaskCurve
from offline_meta_rl.finetuning.loop import FineTuning
from offline_meta_rl.finetuning.settings import Setting
from offline_meta_rl.finetuning.summary import (
    Point,
    Returns,
    Summary,
    curves,
    improvement,
    mean_return,
    milestones,
    summary,
)
from offline_meta_rl.reports.curves import fine_tuning_curves
from offline_meta_rl.reports.wandb_pictures import show_picture


class FineTuningResult(FineTuningFile, Origin):
    """Content of the result file.

    Attributes:
        return_after_steps: Environment steps -> mean return over tasks: the start, half way, the
            end.
        before_adaptation: Returns of the method without a context.
        after_adaptation: Returns after the adaptation to offline data.
        after_fine_tuning: Returns at the end.
        improvement: What fine-tuning gained, episode by episode from the same initial states.
        episodes: Episodes collected in each task.
        diverged_episodes: Task -> episodes that were dropped.
        updates: Kind of update -> how many were taken.
        learner: Settings of the method's own fine-tuning.
    """

    return_after_steps: dict[str, float]
    before_adaptation: Summary
    after_adaptation: Summary
    after_fine_tuning: Summary
    improvement: Summary
    episodes: int
    diverged_episodes: dict[int, int]
    updates: dict[str, int]
    learner: dict[str, Setting]


@dataclass(frozen=True)
class Outputs:
    """Where a fine-tuning writes.

    Attributes:
        root: Folder of the result file, the picture and the state.
        name: Name of the files, and prefix of what is logged.
        loggers: Lightning's loggers.
    """

    root: Path
    name: str
    loggers: Sequence[Logger] = ()

    @property
    def result(self) -> Path:
        """The result file."""
        return self.root / f"{self.name}.json"

    @property
    def picture(self) -> Path:
        """The picture of the curves."""
        return self.root / f"{self.name}.png"

    @property
    def state(self) -> Path:
        """The state of a fine-tuning that is not done."""
        return self.root / "checkpoints" / f"{self.name}.ckpt"

    def log_point(self, point: Point, tasks: Sequence[int], metrics: Mapping[str, float]) -> None:
        """Send one point of the curve to the loggers, against mean environment steps.

        Args:
            point: ``steps`` and ``returns`` of T tasks.
            tasks: Indices of the T tasks.
            metrics: What the last updates reported.
        """
        means = [mean_return(row) for row in point["returns"]]
        found = {f"{self.name}/return": mean_return(means)}
        for task, mean in zip(tasks, means, strict=True):
            found[f"{self.name}/return_task_{task}"] = mean
        found |= {f"{self.name}/{name}": value for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(found, step=int(np.mean(point["steps"])))


def result_of(
    run: FineTuning,
    tasks: Sequence[int],
    compared: Mapping[str, Returns],
    references: dict[str, list[float]],
    origin: Origin,
) -> FineTuningResult:
    """Return the content of the result file.

    Args:
        run: The fine-tuning, done.
        tasks: Indices of the T tasks.
        compared: Returns [T, E] ``before_adaptation``, ``after_adaptation`` and
            ``after_fine_tuning``.
        references: Name -> mean return of a reference policy on each of the T tasks.
        origin: Method, data and code.
    """
    of_tasks = curves(run.curve, tasks)
    adapted, tuned = compared["after_adaptation"], compared["after_fine_tuning"]
    return {
        "tasks": list(tasks),
        "curves": of_tasks,
        "return_after_steps": milestones(of_tasks, run.settings.environment_steps),
        "before_adaptation": summary(compared["before_adaptation"], tasks),
        "after_adaptation": summary(adapted, tasks),
        "after_fine_tuning": summary(tuned, tasks),
        "improvement": improvement(adapted, tuned, tasks),
        "references": references,
        "episodes": run.episodes,
        "diverged_episodes": dict(zip(tasks, run.diverged.tolist(), strict=True)),
        "updates": run.updates_taken,
        "settings": run.settings.schedule(),
        "learner": dict(run.settings.learner or {}),
        **origin,
    }


def write_result(content: FineTuningResult, outputs: Outputs, *, warmup_steps: float) -> None:
    """Write the result file and the picture.

    Args:
        content: ``result_of``.
        outputs: Where to write.
        warmup_steps: Environment steps of each task before the first update.
    """
    write_json(outputs.result, content)
    drawn: dict[str, TaskCurve] = {}
    for index, task in enumerate(content["tasks"]):
        own = {name: values[index] for name, values in content["references"].items()}
        drawn[str(task)] = {**content["curves"][str(task)], "references": own}
    fine_tuning_curves(drawn, outputs.picture, warmup_steps=warmup_steps)
    last = max(step for curve in content["curves"].values() for step in curve["steps"])
    show_picture(outputs.loggers, f"{outputs.name}/figure", outputs.picture, last)


def summary_lines(content: FineTuningResult, outputs: Outputs) -> list[str]:
    """Return the lines that summarise the result on the command line."""
    before, adapted = content["before_adaptation"], content["after_adaptation"]
    tuned, gained = content["after_fine_tuning"], content["improvement"]
    interval = gained["interval"]
    spread = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
    return [
        f"Mean return of {len(content['tasks'])} tasks: {before['return']:.4g} before adaptation, "
        f"{adapted['return']:.4g} after, {tuned['return']:.4g} after fine-tuning; improvement "
        f"{gained['return']:.4g}{spread}.",
        f"Result {outputs.result}",
        f"Curves {outputs.picture}",
    ]
