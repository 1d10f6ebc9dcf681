"""The dashboards of an experiment in Weights & Biases, as definitions that can be uploaded.

One saved view for each family. Runs are filtered by their tags (experiment, scale, family) and
grouped by ``Group``, which is experiment/family/arm: every arm is one line with its seeds as band.
Needs the extra ``workspace``.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from offline_meta_rl.common.wandb_login import logged_in
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


def workspaces(experiment: Experiment, scale: str, entity: str, project: str) -> list[Any]:
    """Return one ``wandb_workspaces.workspaces.Workspace`` for each family; nothing is sent.

    Args:
        experiment: whose runs are shown.
        scale: whose runs are shown.
        entity: user or team.
        project: of the runs.

    Raises:
        ValueError: an unknown scale, or wandb-workspaces is not installed.
    """
    choose("scale", [scale], list(experiment.scales))
    spaces = _module("wandb_workspaces.workspaces")
    return [
        spaces.Workspace(
            entity=entity,
            project=project,
            name=f"{experiment.name}, {family}, {scale}",
            sections=[_section(name, metrics) for name, metrics in SECTIONS.items()],
            runset_settings=spaces.RunsetSettings(
                filters=[spaces.Tags().isin([tag]) for tag in (experiment.name, scale, family)],
                groupby=[spaces.Metric("Group")],
            ),
        )
        for family in experiment.families
    ]


def _section(name: str, metrics: tuple[str, ...]) -> Any:
    spaces = _module("wandb_workspaces.workspaces")
    reports = _module("wandb_workspaces.reports.v2")
    panels = [
        reports.LinePlot(
            title=metric,
            x=STEPS,
            y=[metric],
            log_x=metric.startswith("eval/"),
            title_x="outer steps",
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        )
        for metric in metrics
    ]
    return spaces.Section(name=name, panels=panels, is_open=True)


def upload(experiment: Experiment, scale: str, entity: str, project: str) -> list[str]:
    """Save the workspaces for a logged-in user; return their addresses. Never asks for a login.

    Raises:
        ValueError: nobody is logged in.
    """
    if not logged_in():
        raise ValueError(
            "Uploading a workspace needs a login, found none. Run `wandb login`, or set "
            "WANDB_API_KEY, and try again."
        )
    made = workspaces(experiment, scale, entity, project)
    return [str(each.save().url) for each in made]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"The dashboard needs wandb-workspaces ({error}). Install it: pip install "
            "'offline_meta_rl[workspace]'."
        ) from error


ARGUMENTS = "${args}"  # W&B puts --index=NUMBER here


def sweep_file(
    experiment: Experiment, name: str, count: int, selection: Mapping[str, Sequence[Any]]
) -> str:
    """Return the YAML of a grid over all runs; each of its agents does one run at a time.

    Args:
        experiment: what is run.
        name: as on the command line.
        count: runs of the plan.
        selection: option -> values, the same that the plan was made with.
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
