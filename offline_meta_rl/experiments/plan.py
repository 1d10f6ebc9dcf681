"""From an experiment to its runs: command lines, one folder and one number each.

The order of runs depends on the selection alone, so that run number 7 is the same everywhere: in a
plan, as a task of a SLURM array and in a sweep.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import yaml

from offline_meta_rl.common.configs import with_includes
from offline_meta_rl.experiments.specification import Experiment, Layer, choose

CHECKPOINTS = ("interrupted.ckpt", "last.ckpt")
INTERRUPTED_CODES = range(129, 160)  # 128 + number of the signal


@dataclass(frozen=True)
class Call:
    """One call of ``lightning``.

    Attributes:
        command: Subcommand: ``fit``, ``test``, ``finetune``.
        configs: Files; later ones win.
        overrides: Dotted key -> value; they win over all files.
        checkpoint: Weights to begin with; None for none.
    """

    command: str
    configs: tuple[Path, ...]
    overrides: Mapping[str, object]
    checkpoint: Path | None = None

    def arguments(self) -> tuple[str, ...]:
        """Return the command line behind ``lightning``."""
        checkpoint = ("--ckpt_path", str(self.checkpoint)) if self.checkpoint else ()
        configs = (part for path in self.configs for part in ("--config", str(path)))
        overrides = (f"--{key}={_written(value)}" for key, value in self.overrides.items())
        return (self.command, *checkpoint, *configs, *overrides)


def _written(value: object) -> str:
    """Return a value as the command line takes it: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


class RunSettings(TypedDict):
    """What decides a run's result.

    Attributes:
        commands: Arguments of ``lightning``, of one call after the other; the run's folder is RUN.
        configs: Name of a config's file -> digest of its content.
    """

    commands: list[list[str]]
    configs: dict[str, str]


@dataclass(frozen=True, eq=False)
class Run:
    """One training, with the commands that follow it.

    Attributes:
        experiment: Name of the experiment.
        scale: Name of the scale.
        family: Task family.
        arm: Name of the arm.
        label: Name of the arm in figures.
        method: Class name.
        seed: Seed of weights and batches; evaluations have their own.
        steps: Outer steps.
        folder: Where everything of the run is kept.
        calls: ``fit``, then what follows it.
        results: Files that a finished run has, one of each call; the last one is reported.
        environment: Variables of its processes.
        cost: How many times the time of a step of the method's own config.
        minutes: Minutes that the commands after ``fit`` take, about.
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
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    cost: float = 1.0
    minutes: float = 0.0

    @property
    def name(self) -> str:
        """``family/arm/seed_0``."""
        return f"{self.family}/{self.arm}/seed_{self.seed}"

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """Arguments of ``lightning``, of one call after the other."""
        return tuple(call.arguments() for call in self.calls)

    @property
    def configs(self) -> tuple[Path, ...]:
        """Files that the commands name, and files that these include."""
        named = (path for call in self.calls for path in call.configs)
        return tuple(dict.fromkeys(file for path in named for file in with_includes(path)))

    @property
    def identity(self) -> dict[str, str | int]:
        """What makes two runs the same one."""
        return {
            "experiment": self.experiment,
            "scale": self.scale,
            "family": self.family,
            "arm": self.arm,
            "seed": self.seed,
        }

    def settings(self) -> RunSettings:
        """Return what decides the result: the command lines and the content of the configs."""
        root = str(self.folder)
        commands = [[part.replace(root, "RUN") for part in command] for command in self.commands]
        # Configs are told by their content, not by where they lie.
        count = Counter(path.name for path in set(self.configs))
        names = {
            str(path): path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}"
            for path in self.configs
        }
        digests = {
            name: hashlib.blake2b(Path(path).read_bytes()).hexdigest()[:16]
            for path, name in names.items()
        }
        for command in commands:
            for position, part in enumerate(command):
                if command[position - 1] == "--config":
                    command[position] = names[part]
        return {"commands": commands, "configs": digests}

    def checkpoint(self) -> Path | None:
        """Return the newest checkpoint to resume from; None if there is none."""
        found = [self.folder / "checkpoints" / name for name in CHECKPOINTS]
        existing = [path for path in found if path.is_file()]
        return max(existing, key=lambda path: path.stat().st_mtime) if existing else None


@dataclass(frozen=True)
class _Selection:
    """What a plan was asked for on top of the experiment."""

    experiment: Experiment
    scale: str
    root: Path
    overlays: Sequence[str]
    overrides: Mapping[str, object]


def plan(
    experiment: Experiment,
    scale: str,
    root: Path,
    *,
    arms: Sequence[str] | None = None,
    families: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    overlays: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
) -> list[Run]:
    """Return the runs of an experiment, families first, then seeds, then arms.

    Args:
        experiment: What to run.
        scale: Name of one of its scales.
        root: Folder of all experiments' runs.
        arms: Names; None for all.
        families: Names; None for all.
        seeds: None for those of the scale.
        overlays: Names of configs on top of every arm's.
        overrides: Dotted key -> value, for every run; they win.

    Raises:
        ValueError: An unknown name; lists the valid ones. A seed that is given twice, or an
            override of what a plan decides itself.
        FileNotFoundError: A config that is not there.
    """
    (scale,) = choose("scale", [scale], list(experiment.scales))
    seeds = experiment.scales[scale].seeds if seeds is None else tuple(seeds)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected every seed once, found {', '.join(map(str, seeds))}.")
    selection = _Selection(experiment, scale, root, overlays, overrides or {})
    chosen_arms = choose("arm", arms, list(experiment.arms))
    runs: list[Run] = []
    for family in choose("family", families, list(experiment.families)):
        of_arms = [_runs(selection, family, arm, seeds) for arm in chosen_arms]
        runs += [run for of_seed in zip(*of_arms, strict=True) for run in of_seed]
    return runs


def _runs(selection: _Selection, family: str, arm: str, seeds: Sequence[int]) -> list[Run]:
    """Return the runs of one arm on one family, by seed."""
    experiment, scale = selection.experiment, selection.scale
    chosen, line = experiment.scales[scale], experiment.arms[arm]
    base = experiment.configs(line.configs, family)
    method = _method(base, f"arm {arm} of {experiment.name}")
    layers = [*chosen.layers(method, family), *line.layers(scale)]
    overlays = [name for layer in layers for name in layer.overlays]
    overlays += selection.overlays
    configs = (*base, *experiment.configs(overlays, family))
    steps = [chosen.steps, *(layer.steps for layer in layers if layer.steps is not None)][-1]
    merged = {key: value for layer in layers for key, value in layer.overrides.items()}
    runs = []
    for seed in seeds:
        folder = selection.root / experiment.name / scale / family / arm / f"seed_{seed}"
        folder = folder.absolute()
        decided = _decided(folder, steps, chosen.evaluations, seed)
        _check_overrides({**merged, **selection.overrides}, decided)
        fit = Call("fit", configs, {**merged, **decided, **selection.overrides})
        run = Run(
            experiment=experiment.name,
            scale=scale,
            family=family,
            arm=arm,
            label=line.label,
            method=method,
            seed=seed,
            steps=steps,
            folder=folder,
            calls=(fit, *_after(selection, family, folder)),
            results=("results.json", *(stage.result for stage in experiment.after)),
            environment={**chosen.environment, **_tracking(experiment.name, scale, family, arm)},
            cost=math.prod(experiment.costs.get(name, 1.0) for name in overlays),
            minutes=sum(stage.minutes.get(scale, 0.0) for stage in experiment.after),
        )
        runs.append(run)
    return runs


def _after(selection: _Selection, family: str, folder: Path) -> list[Call]:
    """Return the calls that follow the training of a run."""
    return [
        Call(
            stage.command,
            tuple(selection.experiment.configs(stage.configs, family)),
            stage.scales.get(selection.scale, Layer()).overrides,
            folder / "checkpoints" / "last.ckpt",
        )
        for stage in selection.experiment.after
    ]


def _method(configs: Sequence[Path], owner: str) -> str:
    """Return the class name of the method that an arm's configs name, the last one that does.

    Raises:
        ValueError: None does.
    """
    files = [file for path in configs for file in with_includes(path)]
    contents = [yaml.safe_load(file.read_text()) or {} for file in files]
    named = [
        each["model"]["class_path"] for each in contents if "class_path" in each.get("model", {})
    ]
    if not named:
        raise ValueError(
            f"{owner}: expected model.class_path in one of {', '.join(map(str, files))}, found "
            "none."
        )
    return str(named[-1])


def _check_overrides(given: Mapping[str, object], decided: Mapping[str, object]) -> None:
    """Check that overrides leave alone what the plan decides.

    Raises:
        ValueError: One of them does not.
    """
    taken = [key for key in given if key in decided]
    if taken:
        raise ValueError(
            f"{', '.join(taken)}: expected other overrides, because the plan decides this one. Set "
            "steps and evaluations of the scale, or give --seeds or --root."
        )


def _decided(folder: Path, steps: int, evaluations: int, seed: int) -> dict[str, object]:
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


def _tracking(experiment: str, scale: str, family: str, arm: str) -> dict[str, str]:
    """Return what makes Weights & Biases show arms as groups."""
    return {
        "WANDB_RUN_GROUP": f"{experiment}/{family}/{arm}",
        "WANDB_TAGS": f"{experiment},{scale},{family},{arm}",
    }


def estimate_hours(
    runs: Sequence[Run],
    shipped: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, float],
    workers: int,
) -> tuple[float, list[str]]:
    """Return hours until all runs are done, and which arms nothing is known about.

    A family whose speed is not known counts as the slowest one known of the method.

    Args:
        runs: Runs that are still to do.
        shipped: Method -> family -> outer steps a second, evaluations included.
        measured: ``family/arm`` -> the same with all commands, of finished runs on this machine;
            wins.
        workers: Runs at a time.
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
