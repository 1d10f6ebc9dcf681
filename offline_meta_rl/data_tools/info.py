"""What a dataset holds, as JSON and as tables."""

from typing import NotRequired, TypedDict

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from offline_meta_rl.data.description import (
    Environment,
    Space,
    Splits,
    policy_returns,
    stage_returns,
)
from offline_meta_rl.data.stored import StoredDataset
from offline_meta_rl.data_tools.statistics import Summary, episode_statistics, episode_summary

StageInfo = TypedDict(
    "StageInfo",
    {
        "episodes": int,
        "transitions": int,
        "length": Summary,
        "return": Summary,
        "mean_action_return": NotRequired[float],
    },
)
"""One behaviour stage, over all tasks; ``length`` in steps."""

TaskInfo = TypedDict(
    "TaskInfo",
    {
        "task": int,
        "parameters": list[float],
        "episodes": int,
        "transitions": int,
        "length": Summary,
        "return": Summary,
        "stages": dict[str, Summary],
        "references": dict[str, float],
    },
)
"""One task: ``stages`` has the returns of each, ``references`` those of whole policies."""


class DatasetInfo(TypedDict):
    """What ``lightning data info --json`` prints."""

    path: str
    checksum: str
    bytes: int
    family: str
    environment: Environment
    observation_space: Space
    action_space: Space
    horizon: int
    task_seed: int
    splits: Splits
    episodes: int
    transitions: int
    stages: dict[str, StageInfo]
    tasks: list[TaskInfo]
    provenance: dict[str, object]


def information(dataset: StoredDataset) -> DatasetInfo:
    """Return what a dataset holds, in plain JSON types."""
    manifest = dataset.manifest
    stages, tasks = _stages_of(dataset)
    return {
        "path": str(dataset.path),
        "checksum": dataset.checksum,
        "bytes": sum(entry.bytes for entry in manifest.arrays.values()),
        "family": manifest.family,
        "environment": manifest.environment,
        "observation_space": manifest.observation_space,
        "action_space": manifest.action_space,
        "horizon": manifest.horizon,
        "task_seed": manifest.task_seed,
        "splits": manifest.splits,
        "episodes": sum(manifest.num_episodes),
        "transitions": len(dataset),
        "stages": stages,
        "tasks": tasks,
        "provenance": manifest.provenance,
    }


def _stages_of(dataset: StoredDataset) -> tuple[dict[str, StageInfo], list[TaskInfo]]:
    """Return what there is of each stage, and of each task."""
    manifest, episodes = dataset.manifest, episode_statistics(dataset)
    of_stage = {name: episodes.stage == index for index, name in enumerate(manifest.stages)}
    stages: dict[str, StageInfo] = {}
    for name, chosen in of_stage.items():
        if chosen.any():
            stages[name] = {
                "episodes": int(chosen.sum()),
                "transitions": int(episodes.length[chosen].sum()),
                "length": episode_summary(episodes.length[chosen]),
                "return": episode_summary(episodes.returns[chosen]),
            }
            if name in (known := stage_returns(manifest.reference_returns)):
                stages[name]["mean_action_return"] = float(np.mean(known[name]))
    tasks: list[TaskInfo] = []
    for task in range(manifest.num_tasks):
        own = episodes.task == task
        tasks.append(
            {
                "task": task,
                "parameters": manifest.task_parameters[task],
                "episodes": manifest.num_episodes[task],
                "transitions": manifest.num_transitions[task],
                "length": episode_summary(episodes.length[own]),
                "return": episode_summary(episodes.returns[own]),
                "stages": {
                    name: episode_summary(episodes.returns[own & chosen])
                    for name, chosen in of_stage.items()
                    if (own & chosen).any()
                },
                "references": {
                    name: values[task]
                    for name, values in policy_returns(manifest.reference_returns).items()
                },
            }
        )
    return stages, tasks


def print_information(info: DatasetInfo, console: Console) -> None:
    """Print three tables: the dataset, its stages, its tasks."""
    console.print(_overview(info))
    stages = Table(title="Stages", title_justify="left")
    stages.add_column("stage")
    for name in ("episodes", "transitions", "steps per episode", "return", "mean action's return"):
        stages.add_column(name, justify="right")
    for name, stage in info["stages"].items():
        mean_action = stage.get("mean_action_return")
        stages.add_row(
            escape(name),
            str(stage["episodes"]),
            str(stage["transitions"]),
            f"{stage['length']['mean']:.1f}",
            _spread(stage["return"]),
            "" if mean_action is None else f"{mean_action:.1f}",
        )
    console.print(stages)
    console.print(_tasks(info))


def _overview(info: DatasetInfo) -> Table:
    table = Table(title=escape(info["path"]), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    environment = info["environment"]
    rows = {
        "family": f"{info['family']} ({environment.get('id')}, version "
        f"{environment.get('version', '-')})",
        "observations": _space(info["observation_space"]),
        "actions": _space(info["action_space"]),
        "tasks": f"{len(info['tasks'])}, seed {info['task_seed']}, horizon {info['horizon']}",
        "data": f"{info['episodes']} episodes, {info['transitions']} transitions, "
        f"{info['bytes'] / 2**20:.1f} MiB",
        "checksum": info["checksum"],
    }
    for name, split in info["splits"].items():
        rows[f"split {name}"] = f"{len(split['train'])} train, {len(split['test'])} test tasks"
    for name, value in info["provenance"].items():
        rows[f"provenance: {name}"] = str(value)
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table


def _tasks(info: DatasetInfo) -> Table:
    table = Table(title="Tasks", title_justify="left")
    table.add_column("task", justify="right")
    table.add_column("parameters", no_wrap=True)
    for name in ("episodes", "transitions", "steps", "return"):
        table.add_column(name, justify="right", no_wrap=True)
    references = sorted({name for task in info["tasks"] for name in task["references"]})
    stages = list(info["stages"]) if len(info["stages"]) > 1 else []
    for name in (*stages, *references):
        table.add_column(escape(name.replace("_", " ")), justify="right")
    for task in info["tasks"]:
        of_stage = [
            f"{task['stages'][name]['mean']:.1f}" if name in task["stages"] else ""
            for name in stages
        ]
        table.add_row(
            str(task["task"]),
            _numbers(task["parameters"]),
            str(task["episodes"]),
            str(task["transitions"]),
            _range(task["length"]),
            _spread(task["return"]),
            *of_stage,
            *(_reference(name, task["references"][name]) for name in references),
        )
    return table


def _reference(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "success" else f"{value:.1f}"


def _spread(values: Summary) -> str:
    return f"{values['mean']:.1f} ± {values['std']:.1f}"


def _range(values: Summary) -> str:
    low, high = f"{values['min']:.0f}", f"{values['max']:.0f}"
    return low if low == high else f"{low} to {high}"


def _numbers(values: list[float]) -> str:
    shown = ", ".join(f"{value:.3g}" for value in values[:3])
    return shown if len(values) <= 3 else f"{shown}, … ({len(values)})"


def _space(space: Space) -> str:
    sides = (space["low"], space["high"])
    low, high = ("unbounded" if side is None else f"{side:g}" for side in sides)
    limits = "unbounded" if low == high == "unbounded" else f"{low} to {high}"
    return f"{space['shape']} {space['dtype']}, {limits}"
