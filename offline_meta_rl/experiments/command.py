"""``lightning experiment list | plan | run | status | report | sweep | workspace``.

Only what parsing needs is imported here: a command imports its tools when it runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offline_meta_rl.common.commands import Commands

if TYPE_CHECKING:
    from offline_meta_rl.experiments.plan import Run
    from offline_meta_rl.experiments.specification import Experiment


@dataclass(frozen=True)
class Selection:
    """Which runs of an experiment.

    Attributes:
        experiment: A name from `list`, or the path of an experiment.yaml.
        scale: Size of the experiment, one of those that `list` names.
        arms: Only these arms.
        families: Only these task families.
        seeds: These seeds instead of the scale's own.
        root: Folder of all runs.
        overlays: Configs on top of every arm's: a variant, such as authors_data of figure4.
        set_: KEY=VALUE for every run, as on the command line of `lightning fit`, without dashes.
    """

    experiment: str
    scale: str = "cpu"
    arms: list[str] | None = None
    families: list[str] | None = None
    seeds: list[int] | None = None
    root: Path = Path("runs/experiments")
    overlays: list[str] | None = None
    set_: list[str] | None = None

    def plan(self) -> tuple["Experiment", list["Run"]]:
        """Return the experiment and its selected runs.

        Raises:
            ValueError: An unknown name, or a setting that is not KEY=VALUE.
        """
        import yaml

        from offline_meta_rl.experiments.plan import plan
        from offline_meta_rl.experiments.reading import load_experiment

        experiment = load_experiment(self.experiment)
        overrides = {}
        for given in self.set_ or []:
            key, separator, value = given.partition("=")
            if not separator:
                raise ValueError(f"--set: expected KEY=VALUE, found {given!r}.")
            overrides[key] = yaml.safe_load(value)
        runs = plan(
            experiment,
            self.scale,
            self.root,
            arms=self.arms,
            families=self.families,
            seeds=self.seeds,
            overlays=self.overlays or [],
            overrides=overrides,
        )
        return experiment, runs


def list_() -> None:
    """Name the experiments, their arms, families and scales."""
    from offline_meta_rl.experiments.reading import experiment_names, load_experiment

    for name in experiment_names():
        experiment = load_experiment(name)
        print(f"{name}: {experiment.title}")
        print(f"    families  {' '.join(experiment.families)}")
        print(f"    arms      {' '.join(experiment.arms)}")
        print(f"    scales    {' '.join(experiment.scales)}")


def print_plan(selection: Selection) -> None:
    """Print the runs, their commands and the estimated hours.

    Args:
        selection: Which runs.
    """
    experiment, runs = selection.plan()
    _announce(experiment, runs, runs, workers=None)
    for number, run in enumerate(runs):
        print(f"\n{number}: {run.name}")
        for command in run.commands:
            print(f"  lightning {' '.join(command)}")


def run_plan(
    selection: Selection,
    *,
    workers: int | None = None,
    index: int | None = None,
    retry_failed: bool = False,
) -> None:
    """Run what is not finished, on the cores or GPUs of this machine.

    Args:
        selection: Which runs.
        workers: Runs at a time. By default one for each GPU, or for each core without one.
        index: Run only this one of the plan, as a task of a SLURM array does.
        retry_failed: Also run what failed before.

    Raises:
        ValueError: No such index, or settings that differ from those a run was begun with.
        SystemExit: With 1, if a run failed.
    """
    from offline_meta_rl.common.progress import progress_bar
    from offline_meta_rl.experiments.runner import Runner, find_workers

    experiment, runs = selection.plan()
    if index is not None:
        if not 0 <= index < len(runs):
            raise ValueError(f"--index: expected 0 to {len(runs) - 1}, found {index}.")
        runs = [runs[index]]
    found = find_workers(1 if workers is None and index is not None else workers)
    runner = Runner(runs, found, retry_failed=retry_failed, say=_say)
    _announce(experiment, runs, runner.todo, len(found))
    with progress_bar("Runs", len(runner.todo)) as advance:
        runner.ended = advance
        finished = runner.run()
    if not finished:
        sys.exit(1)
    if index is None:
        print(f"Next: lightning experiment report {selection.experiment}", file=sys.stderr)


def status(selection: Selection) -> None:
    """Say what has become of every run.

    Args:
        selection: Which runs.
    """
    from offline_meta_rl.experiments.states import State, last_lines, state_of

    _, runs = selection.plan()
    for number, each in enumerate(runs):
        state = state_of(each)
        print(f"{number:4d}  {state:12s} {each.name}")
        if state == State.FAILED:
            print(last_lines(each))


def report(selection: Selection, *, output: Path | None = None, incomplete: bool = False) -> None:
    """Write pictures, tables and one HTML page.

    Args:
        selection: Which runs.
        output: Folder to write. By default it is beside the runs.
        incomplete: Report although runs are missing, and name them.
    """
    from offline_meta_rl.experiments.gather import gather
    from offline_meta_rl.experiments.report import write_report

    experiment, runs = selection.plan()
    gathered = gather(experiment, runs, incomplete=incomplete)
    default = selection.root / experiment.name / selection.scale / "report"
    print(write_report(gathered, output or default))


def sweep(selection: Selection, *, output: Path | None = None) -> None:
    """Write a Weights & Biases sweep over the runs.

    Args:
        selection: Which runs.
        output: File to write. By default the sweep is printed.
    """
    from offline_meta_rl.experiments.trackers import sweep_file

    experiment, runs = selection.plan()
    options: dict[str, Sequence[object]] = {
        "scale": [selection.scale],
        "root": [str(selection.root)],
        "set": selection.set_ or [],
        "arms": selection.arms or [],
        "families": selection.families or [],
        "seeds": selection.seeds or [],
        "overlays": selection.overlays or [],
    }
    text = sweep_file(experiment, selection.experiment, len(runs), options)
    if output:
        output.write_text(text)
        print(f"wrote {output}; start it with: wandb sweep {output}")
    else:
        print(text, end="")


def workspace(
    experiment: str, *, entity: str, project: str = "offline_meta_rl", scale: str = "cpu"
) -> None:
    """Show arms as groups in a dashboard of Weights & Biases; needs a login.

    Args:
        experiment: A name from `list`, or the path of an experiment.yaml.
        entity: User or team of Weights & Biases.
        project: Project of the runs.
        scale: Size of the experiment, one of those that `list` names.
    """
    from offline_meta_rl.experiments.reading import load_experiment
    from offline_meta_rl.experiments.trackers import upload

    for address in upload(load_experiment(experiment), scale, entity, project):
        print(address)


COMMANDS = Commands(
    "lightning experiment",
    "Run the figures and tables of a paper, and report them.",
    {
        "list": list_,
        "plan": print_plan,
        "run": run_plan,
        "status": status,
        "report": report,
        "sweep": sweep,
        "workspace": workspace,
    },
    example="lightning experiment run figure3 --families point_robot --seeds 0 1 2\n"
    "lightning experiment report figure3 --families point_robot --seeds 0 1 2",
)


def experiment_command(arguments: Sequence[str]) -> None:
    """Run one command; errors about the input are one message, without a traceback."""
    COMMANDS.run(arguments)


def _announce(
    experiment: "Experiment", runs: Sequence["Run"], todo: Sequence["Run"], workers: int | None
) -> None:
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


def _say(line: str) -> None:
    print(line, flush=True)
