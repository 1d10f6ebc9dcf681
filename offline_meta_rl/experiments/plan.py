"""From an experiment to its runs: one command line, one folder and one number each.

The order of runs depends on the selection alone, so that run number 7 is the same everywhere: in a
plan, as a task of a SLURM array and in a sweep.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from offline_meta_rl.common.configs import with_includes
from offline_meta_rl.experiments.specification import Arm, Experiment, Layer, Scale, choose

CHECKPOINTS = ("interrupted.ckpt", "last.ckpt")
INTERRUPTED_CODES = range(129, 160)  # 128 + number of the signal


@dataclass(frozen=True, eq=False)
class Run:
    """One training, with the commands that follow it.

    Attributes:
        experiment: name.
        scale: name.
        family: task family.
        arm: name.
        label: of the arm.
        method: class name.
        seed: of weights and batches; evaluations have their own.
        steps: outer steps.
        folder: where everything of the run is kept.
        commands: arguments of ``lightning``: ``fit``, then what follows it.
        results: files that a finished run has; the last one is reported.
        environment: variables of its processes.
        configs: files that the commands name, and files that these include.
        cost: how many times the time of a step of the method's own config.
        minutes: of the commands after ``fit``.
    """

    experiment: str
    scale: str
    family: str
    arm: str
    label: str
    method: str
    seed: int
    steps: int
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    results: tuple[str, ...]
    environment: Mapping[str, str]
    configs: tuple[Path, ...]
    cost: float = 1.0
    minutes: float = 0.0

    @property
    def name(self) -> str:
        """``family/arm/seed_0``."""
        return f"{self.family}/{self.arm}/seed_{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two runs the same one."""
        names = ("experiment", "scale", "family", "arm", "seed")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """Return what decides the result: the command lines and the content of the configs."""
        root = str(self.folder)
        commands = [[part.replace(root, "RUN") for part in command] for command in self.commands]
        texts = {path.name: path.read_bytes() for path in self.configs}
        digests = {name: hashlib.blake2b(text).hexdigest()[:16] for name, text in texts.items()}
        for command in commands:  # configs are told by their content, not by where they lie
            for position, part in enumerate(command):
                if command[position - 1] == "--config":
                    command[position] = Path(part).name
        return {"commands": commands, "configs": digests}

    def checkpoint(self) -> Path | None:
        """Return the newest checkpoint to resume from; None if there is none."""
        found = [self.folder / "checkpoints" / name for name in CHECKPOINTS]
        existing = [path for path in found if path.is_file()]
        return max(existing, key=lambda path: path.stat().st_mtime) if existing else None


def plan(
    experiment: Experiment,
    scale: str,
    root: Path,
    *,
    arms: list[str] | None = None,
    families: list[str] | None = None,
    seeds: Sequence[int] | None = None,
    overlays: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Return the runs of an experiment, families first, then seeds, then arms.

    Args:
        experiment: what to run.
        scale: name of one of its scales.
        root: folder of all experiments' runs.
        arms: names; None for all.
        families: names; None for all.
        seeds: None for those of the scale.
        overlays: names of configs on top of every arm's.
        overrides: dotted key -> value, for every run; they win.

    Raises:
        ValueError: an unknown name; lists the valid ones. A seed that is given twice, or an
            override of what a plan decides itself.
        FileNotFoundError: a config that is not there.
    """
    chosen = experiment.scales[choose("scale", [scale], list(experiment.scales))[0]]
    seeds = chosen.seeds if seeds is None else tuple(seeds)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected every seed once, found {', '.join(map(str, seeds))}.")
    return [
        _run(
            experiment, chosen, root, family, experiment.arms[arm], seed, overlays, overrides or {}
        )
        for family in choose("family", families, list(experiment.families))
        for seed in seeds
        for arm in choose("arm", arms, list(experiment.arms))
    ]


def _run(
    experiment: Experiment,
    scale: Scale,
    root: Path,
    family: str,
    arm: Arm,
    seed: int,
    overlays: Sequence[str],
    overrides: Mapping[str, Any],
) -> Run:
    folder = (root / experiment.name / scale.name / family / arm.name / f"seed_{seed}").absolute()
    base = experiment.configs(arm.configs[0], family)
    method = _method(base)
    layers = [scale.all, scale.methods.get(method, Layer()), scale.families.get(family, Layer())]
    names = [name for layer in layers for name in layer.overlays]
    last = arm.scales.get(scale.name, Layer())
    names += [*arm.configs[1:], *last.overlays, *overlays]
    configs = base + [path for name in names for path in experiment.configs(name, family)]
    merged: dict[str, Any] = {}
    for layer in (*layers, Layer((), arm.overrides), last):
        merged.update(layer.overrides)
    given = [layer.steps for layer in (*layers, last) if layer.steps is not None]
    steps = given[-1] if given else scale.steps
    decided = _own(folder, steps, scale.evaluations, seed)
    taken = [key for key in {**merged, **overrides} if key in decided]
    if taken:
        raise ValueError(
            f"{', '.join(taken)}: expected other overrides, because the plan decides this one. Set "
            "steps and evaluations of the scale, or give --seeds or --root."
        )
    merged |= {**decided, **overrides}
    commands = [("fit", *_with_configs(configs), *_with_overrides(merged))]
    for stage in experiment.after:
        files = [path for name in stage.configs for path in experiment.configs(name, family)]
        own = stage.scales.get(scale.name, Layer()).overrides
        checkpoint = ("--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
        options = (*_with_configs(files), *_with_overrides(own))
        commands.append((stage.command, *checkpoint, *options))
        configs += files
    return Run(
        experiment=experiment.name,
        scale=scale.name,
        family=family,
        arm=arm.name,
        label=arm.label,
        method=method,
        seed=seed,
        steps=steps,
        folder=folder,
        commands=tuple(commands),
        results=("results.json", *(stage.result for stage in experiment.after)),
        environment={**scale.environment, **_tracking(experiment.name, scale.name, family, arm)},
        configs=tuple(dict.fromkeys(file for path in configs for file in with_includes(path))),
        cost=math.prod(experiment.costs.get(name, 1.0) for name in names),
        minutes=sum(stage.minutes.get(scale.name, 0.0) for stage in experiment.after),
    )


def _method(configs: Sequence[Path]) -> str:
    """Return the class name of the method that configs train."""
    contents = [
        yaml.safe_load(file.read_text()) for path in configs for file in with_includes(path)
    ]
    names = [content.get("model", {}).get("class_path") for content in contents]
    return str([name for name in names if name][-1])


def _own(folder: Path, steps: int, evaluations: int, seed: int) -> dict[str, Any]:
    """Return what tells one run from another of the same arm, and how often it is evaluated."""
    interval = max(1, steps // evaluations)
    return {
        "trainer.default_root_dir": str(folder),
        "trainer.max_steps": steps,
        "trainer.val_check_interval": interval,
        "checkpoint.every_n_train_steps": interval,
        "seed_everything": seed,
        "data.init_args.seed": seed,
    }


def _tracking(experiment: str, scale: str, family: str, arm: Arm) -> dict[str, str]:
    """Return what makes Weights & Biases show arms as groups."""
    return {
        "WANDB_RUN_GROUP": f"{experiment}/{family}/{arm.name}",
        "WANDB_TAGS": f"{experiment},{scale},{family},{arm.name}",
    }


def _with_configs(files: Sequence[Path]) -> list[str]:
    return [part for path in files for part in ("--config", str(path))]


def _with_overrides(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={_written(value)}" for key, value in overrides.items()]


def _written(value: Any) -> str:
    """Return a value as the command line takes it: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def estimate_hours(
    runs: Sequence[Run],
    shipped: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, float],
    workers: int,
) -> tuple[float, list[str]]:
    """Return hours until all runs are done, and which arms nothing is known about.

    A family whose speed is not known counts as the slowest one known of the method.

    Args:
        runs: that are still to do.
        shipped: method -> family -> outer steps a second, evaluations included.
        measured: ``family/arm`` -> the same with all commands, of finished runs on this machine;
            wins.
        workers: runs at a time.
    """
    seconds, unknown = [], []
    for run in runs:
        key = f"{run.family}/{run.arm}"
        known = shipped.get(run.method, {})
        if key in measured:
            seconds.append(run.steps / measured[key])
        elif known:
            speed = known.get(run.family, min(known.values()))
            seconds.append(run.steps * run.cost / speed + 60.0 * run.minutes)
        else:
            unknown.append(key)
    longest = max([sum(seconds) / max(1, workers), *seconds]) if seconds else 0.0
    return longest / 3600, sorted(set(unknown))
