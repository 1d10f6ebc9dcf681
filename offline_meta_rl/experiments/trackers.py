"""The dashboards of an experiment in Weights & Biases, as definitions that can be uploaded.

One saved view for each family. Runs are filtered by their tags (experiment, scale, family) and
grouped by ``Group``, which is experiment/family/arm: every arm is one line with its seeds as band.
Needs the extra ``workspace``.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import yaml

from offline_meta_rl.common.extras import logged_in, require
from offline_meta_rl.experiments.specification import Experiment, choose

STEPS = "trainer/global_step"
SECTIONS = {
    "Held-out returns": (
        "eval/after_normalised_return",
        "eval/after_return",
        "eval/before_return",
    ),
    "Health": ("gradient_norm/total", "speed/steps_per_second"),
}


class Workspace(Protocol):
    """What is used of ``wandb_workspaces.workspaces.Workspace``."""

    @property
    def url(self) -> str:
        """Address of the saved view."""

    def save(self) -> "Workspace":
        """Send the view; return it with its address."""


def workspaces(experiment: Experiment, scale: str, entity: str, project: str) -> list[Workspace]:
    """Return one ``wandb_workspaces.workspaces.Workspace`` for each family; nothing is sent.

    Args:
        experiment: Experiment whose runs are shown.
        scale: Scale whose runs are shown.
        entity: User or team.
        project: Project of the runs.

    Raises:
        ValueError: An unknown scale.
        ImportError: wandb-workspaces is not installed.
    """
    choose("scale", [scale], list(experiment.scales))
    spaces = require("wandb_workspaces.workspaces", "workspace")
    reports = require("wandb_workspaces.reports.v2", "workspace")

    def panel(metric: str) -> object:
        return reports.LinePlot(
            title=metric,
            x=STEPS,
            y=[metric],
            log_x=metric.startswith("eval/"),
            title_x="outer steps",
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        )

    return [
        spaces.Workspace(
            entity=entity,
            project=project,
            name=f"{experiment.name}, {family}, {scale}",
            sections=[
                spaces.Section(name=name, panels=[panel(m) for m in metrics], is_open=True)
                for name, metrics in SECTIONS.items()
            ],
            runset_settings=spaces.RunsetSettings(
                filters=[spaces.Tags().isin([tag]) for tag in (experiment.name, scale, family)],
                groupby=[spaces.Metric("Group")],
            ),
        )
        for family in experiment.families
    ]


def upload(experiment: Experiment, scale: str, entity: str, project: str) -> list[str]:
    """Save the workspaces for a logged-in user; return their addresses. Never asks for a login.

    Raises:
        ValueError: Nobody is logged in, or an unknown scale.
    """
    if not logged_in():
        raise ValueError(
            "Uploading a workspace needs a login, found none. Run `wandb login`, or set "
            "WANDB_API_KEY, and try again."
        )
    made = workspaces(experiment, scale, entity, project)
    return [str(each.save().url) for each in made]


ARGUMENTS = "${args}"  # W&B puts --index=NUMBER here


def sweep_file(
    experiment: Experiment, name: str, count: int, selection: Mapping[str, Sequence[object]]
) -> str:
    """Return the YAML of a grid over all runs; each of its agents does one run at a time.

    Args:
        experiment: What is run.
        name: Name of the experiment, as on the command line.
        count: Number of runs of the plan.
        selection: Option -> values, the same that the plan was made with.
    """
    options = [
        str(part)
        for option, values in selection.items()
        if values
        for part in (f"--{option}", *values)
    ]
    command = ["lightning", "experiment", "run", name, *options, ARGUMENTS]
    content = {
        "name": f"{experiment.name}: {experiment.title}",
        "program": "lightning",
        "method": "grid",
        "parameters": {"index": {"values": list(range(count))}},
        "command": command,
    }
    return yaml.safe_dump(content, sort_keys=False)
