"""``lightning experiment list | plan | run | status | report | sweep | workspace``.

Only what parsing needs is imported here; a command imports its tools when it runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from offline_meta_rl.common.commands import add_command, run_command

ROOT = Path("runs/experiments")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    run_command(parser(), arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    root = argparse.ArgumentParser(
        prog="lightning experiment",
        description="Run the figures and tables of a paper, and report them.",
    )
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    add_command(commands, "list", _list, "name the experiments, their arms, families and scales")
    shown = add_command(
        commands, "plan", _plan, "print the runs, their commands and the estimated hours"
    )
    run = add_command(
        commands, "run", _run, "run what is not finished, on the cores or GPUs of this machine"
    )
    status = add_command(commands, "status", _status, "say what has become of every run")
    report = add_command(commands, "report", _report, "write pictures, tables and one HTML page")
    sweep = add_command(commands, "sweep", _sweep, "write a Weights & Biases sweep over the runs")
    space = add_command(
        commands, "workspace", _workspace, "show arms as groups in a dashboard; needs a login"
    )
    for command in (shown, run, status, report, sweep):
        _selecting(command)
    run.add_argument("--workers", type=int, help="runs at a time; default: one per GPU, or core")
    run.add_argument(
        "--index", type=int, help="run only this one of the plan: a SLURM array's task"
    )
    run.add_argument("--retry-failed", action="store_true", help="also run what failed before")
    report.add_argument("--output", type=Path, help="folder; default: beside the runs")
    report.add_argument(
        "--incomplete", action="store_true", help="report although runs are missing, naming them"
    )
    sweep.add_argument("--output", type=Path, help="file; default: print it")
    space.add_argument("experiment", help="a name from `list`, or the path of experiment.yaml")
    space.add_argument("--scale", default="cpu", help="default: %(default)s")
    space.add_argument("--entity", required=True, help="user or team of Weights & Biases")
    space.add_argument("--project", default="offline_meta_rl", help="default: %(default)s")
    return root


def _selecting(command: argparse.ArgumentParser) -> None:
    """Add the options that select runs."""
    command.add_argument("experiment", help="a name from `list`, or the path of experiment.yaml")
    command.add_argument("--scale", default="cpu", help="default: %(default)s")
    command.add_argument("--arms", nargs="+", metavar="ARM")
    command.add_argument("--families", nargs="+", metavar="FAMILY")
    command.add_argument("--seeds", nargs="+", type=int, metavar="SEED")
    command.add_argument("--root", type=Path, default=ROOT, help="of runs; default: %(default)s")
    command.add_argument(
        "--overlays",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="on top of every arm's: a variant, such as authors_data of figure4",
    )
    command.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="for every run, as on the command line of `lightning fit`, without dashes",
    )


def _selected(options: argparse.Namespace) -> tuple[Any, list[Any]]:
    from offline_meta_rl.experiments.plan import plan
    from offline_meta_rl.experiments.reading import load_experiment

    experiment = load_experiment(options.experiment)
    overrides = {}
    for given in options.set:
        key, separator, value = given.partition("=")
        if not separator:
            raise ValueError(f"--set: expected KEY=VALUE, found {given!r}.")
        overrides[key] = yaml.safe_load(value)
    runs = plan(
        experiment,
        options.scale,
        options.root,
        arms=options.arms,
        families=options.families,
        seeds=options.seeds,
        overlays=options.overlays,
        overrides=overrides,
    )
    return experiment, runs


def _list(_: argparse.Namespace) -> None:
    from offline_meta_rl.experiments.reading import experiment_names, load_experiment

    for name in experiment_names():
        experiment = load_experiment(name)
        print(f"{name}: {experiment.title}")
        print(f"    families  {' '.join(experiment.families)}")
        print(f"    arms      {' '.join(experiment.arms)}")
        print(f"    scales    {' '.join(experiment.scales)}")


def _plan(options: argparse.Namespace) -> None:
    experiment, runs = _selected(options)
    _announce(experiment, runs, runs, workers=None)
    for number, run in enumerate(runs):
        print(f"\n{number}: {run.name}")
        for command in run.commands:
            print(f"  lightning {' '.join(command)}")


def _announce(experiment: Any, runs: list[Any], todo: list[Any], workers: int | None) -> None:
    """Print how many runs there are and how long they will take."""
    from offline_meta_rl.experiments.plan import estimate_hours
    from offline_meta_rl.experiments.runner import find_workers
    from offline_meta_rl.experiments.states import measured_speeds

    count = len(find_workers()) if workers is None else workers
    measured = measured_speeds(runs)
    hours, unknown = estimate_hours(todo, experiment.speeds, measured, count)
    print(experiment.title)
    steps = sorted({run.steps for run in runs})
    shown = " or ".join(map(str, steps))
    print(f"{len(runs)} runs of {shown} outer steps, {len(todo)} to do, {count} at a time;")
    guess = "at least " if unknown else "about "
    print(
        f"{guess}{hours:.1f} hours"
        + (f"; no speed known of {', '.join(unknown)}" if unknown else "")
    )
    sys.stdout.flush()


def _run(options: argparse.Namespace) -> None:
    from offline_meta_rl.experiments.runner import Runner, find_workers

    experiment, runs = _selected(options)
    if options.index is not None:
        if not 0 <= options.index < len(runs):
            raise ValueError(f"--index: expected 0 to {len(runs) - 1}, found {options.index}.")
        runs = [runs[options.index]]
    count = 1 if options.workers is None and options.index is not None else options.workers
    workers = find_workers(count)
    runner = Runner(runs, workers, retry_failed=options.retry_failed, say=_say)
    _announce(experiment, runs, runner.todo, len(workers))
    if not runner.run():
        sys.exit(1)


def _say(line: str) -> None:
    print(line, flush=True)


def _status(options: argparse.Namespace) -> None:
    from offline_meta_rl.experiments.states import State, last_lines, state_of

    _, runs = _selected(options)
    for number, run in enumerate(runs):
        state = state_of(run)
        print(f"{number:4d}  {state:12s} {run.name}")
        if state == State.FAILED:
            print(last_lines(run))


def _report(options: argparse.Namespace) -> None:
    from offline_meta_rl.experiments.gather import gather
    from offline_meta_rl.experiments.report import write_report

    experiment, runs = _selected(options)
    gathered = gather(experiment, runs, incomplete=options.incomplete)
    default = options.root / experiment.name / options.scale / "report"
    page = write_report(gathered, options.output or default)
    print(page)


def _sweep(options: argparse.Namespace) -> None:
    from offline_meta_rl.experiments.trackers import sweep_file

    experiment, runs = _selected(options)
    selection = {"scale": [options.scale], "root": [str(options.root)], "set": options.set}
    selected = ("arms", "families", "seeds", "overlays")
    selection |= {name: getattr(options, name) or [] for name in selected}
    text = sweep_file(experiment, options.experiment, len(runs), selection)
    if options.output:
        options.output.write_text(text)
        print(f"wrote {options.output}; start it with: wandb sweep {options.output}")
    else:
        print(text, end="")


def _workspace(options: argparse.Namespace) -> None:
    from offline_meta_rl.experiments.reading import load_experiment
    from offline_meta_rl.experiments.trackers import upload

    experiment = load_experiment(options.experiment)
    for address in upload(experiment, options.scale, options.entity, options.project):
        print(address)
