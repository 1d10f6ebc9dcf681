"""Read the results of a plan's runs.

Nothing is averaged silently: missing, failed and duplicate runs are named, and so are runs of
another method; ``comparable`` names those whose protocol, dataset or settings differ. Scores are
arrays [S, T] of S seeds and T tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.experiments.comparable import check_comparable
from offline_meta_rl.experiments.curves import Curve, fine_tuning_curve, training_curve
from offline_meta_rl.experiments.plan import Run
from offline_meta_rl.experiments.specification import Experiment
from offline_meta_rl.experiments.states import State, last_lines, read_json, state_of

Array = NDArray[np.float64]
CHOICES = ("final", "best")


@dataclass(frozen=True)
class ArmResults:
    """What the finished runs of one arm on one family reached.

    Attributes:
        label: of the arm.
        runs: finished ones, by seed.
        tasks: evaluated tasks, T.
        axis: what ``steps`` counts: ``outer steps`` or ``environment steps`` of fine-tuning.
        steps: of the evaluations, [P].
        curve: score of every evaluation, [P, S, T].
        results: content of the result files, by seed.
        random: mean return of random actions, if known.
        best_behaviour: mean return of the best behaviour, if known.
    """

    label: str
    runs: tuple[Run, ...]
    tasks: tuple[str, ...]
    axis: str
    steps: NDArray[np.int64]
    curve: Array
    results: tuple[Mapping[str, Any], ...]
    random: float | None
    best_behaviour: float | None

    def scores(self, choice: str) -> Array:
        """Return scores [S, T] of the final weights, or of each seed's best evaluation.

        The best one is chosen by its mean over the evaluated tasks, so it is optimistic. Weights
        that were not trained yet have no checkpoint, so the evaluation at outer step 0 is left out.
        """
        if choice == "final":
            return np.asarray(self.curve[-1])
        curve = self.curve[self.axis == "outer steps" and len(self.curve) > 1 :]
        best = curve.mean(axis=2).argmax(axis=0)
        return np.asarray(curve[best, np.arange(curve.shape[1])])


@dataclass(frozen=True)
class Gathered:
    """Everything that a report needs.

    Attributes:
        experiment: what was run.
        scale: name.
        arms: family -> arm -> results; arms without a finished run are left out.
        notes: what the reader has to know: runs that are missing or failed, different commits.
    """

    experiment: Experiment
    scale: str
    arms: Mapping[str, Mapping[str, ArmResults]]
    notes: tuple[str, ...]


def gather(experiment: Experiment, runs: Sequence[Run], *, incomplete: bool = False) -> Gathered:
    """Read and check the results of a plan.

    Args:
        experiment: the plan's.
        runs: the plan.
        incomplete: go on with runs missing or failed; they are named in ``notes``.

    Raises:
        ValueError: missing, failed, duplicate or foreign runs, or runs that are not comparable.
    """
    _check_duplicates(runs)
    states = {run: state_of(run) for run in runs}
    finished = [run for run, state in states.items() if state == State.FINISHED]
    lacking = [_lacking(run, state) for run, state in states.items() if state != State.FINISHED]
    if not finished or (lacking and not incomplete):
        raise ValueError(
            f"{len(lacking)} of {len(runs)} runs of {experiment.name} at scale {runs[0].scale} are "
            "not finished:\n" + "\n".join(lacking) + "\nFinish them with `lightning experiment "
            "run`, select others, or pass --incomplete to report the rest."
        )
    read = {run: _read(run) for run in finished}
    arms: dict[str, dict[str, ArmResults]] = {}
    for family in dict.fromkeys(run.family for run in finished):
        own = {run: result for run, result in read.items() if run.family == family}
        check_comparable(own, experiment.varies)
        names = dict.fromkeys(run.arm for run in own)
        arms[family] = {name: _arm_results(own, name, experiment.metric) for name in names}
    notes = tuple(lacking) + tuple(_commit_notes(read.values()))
    return Gathered(experiment, runs[0].scale, arms, notes)


def _check_duplicates(runs: Sequence[Run]) -> None:
    """Check that no run lies in two folders, as after copying results together."""
    places: dict[tuple[Any, ...], list[Path]] = {}
    top = runs[0].folder.parents[2]
    for path in sorted(top.glob("**/run.json")):
        content = read_json(path)
        key = tuple(content.get(name) for name in ("family", "arm", "seed"))
        places.setdefault(key, []).append(path.parent)
    for run in runs:
        found = places.get((run.family, run.arm, run.seed), [])
        if len(found) > 1:
            raise ValueError(
                f"{run.name} is there {len(found)} times: {', '.join(map(str, found))}. Expected "
                "one; remove the others."
            )
        if found and found[0] != run.folder:
            raise ValueError(f"{run.name}: expected in {run.folder}, found in {found[0]}. Move it.")


def _lacking(run: Run, state: State) -> str:
    if state == State.FAILED:
        return f"{run.name}: failed; the end of its log:\n{last_lines(run)}"
    return f"{run.name}: {'missing' if state == State.WAITING else state}"


def _read(run: Run) -> Mapping[str, Any]:
    """Return the content of a run's result file, which has to be that run's.

    Raises:
        ValueError: it is of another method, seed or number of steps.
    """
    content = read_json(run.folder / "results.json")
    method = str(content.get("method", "")).rsplit(".", 1)[-1]
    expected = {"method": run.method.rsplit(".", 1)[-1], "seed": run.seed, "global_step": run.steps}
    found = {"method": method, **{key: content.get(key) for key in ("seed", "global_step")}}
    wrong = [
        f"{key} {expected[key]!r}, found {found[key]!r}"
        for key in found
        if found[key] != expected[key]
    ]
    if wrong:
        raise ValueError(
            f"{run.folder / 'results.json'}: expected {'; '.join(wrong)}. The file is of another "
            "run; remove the folder and run it again."
        )
    if run.results[-1] != "results.json":
        content["fine_tuning"] = read_json(run.folder / run.results[-1])
    return content


def _arm_results(results: Mapping[Run, Mapping[str, Any]], arm: str, metric: str) -> ArmResults:
    """Return the results of one arm.

    Raises:
        ValueError: seeds evaluated at different steps, or scores that are not finite.
    """
    own = sorted((run for run in results if run.arm == arm), key=lambda run: run.seed)
    contents = [results[run] for run in own]
    curves = [_curve(content, metric) for content in contents]
    for run, found in zip(own, curves, strict=True):
        if found.steps.tolist() != curves[0].steps.tolist():
            raise ValueError(
                f"{own[0].name} and {run.name} were evaluated at different steps: "
                f"{curves[0].steps.tolist()} and {found.steps.tolist()}. Run them again with one "
                "scale."
            )
        if not np.isfinite(found.scores).all():
            raise ValueError(
                f"{run.name}: {metric} is not finite for every task and evaluation. Does the "
                "dataset have reference returns, and did every task keep an episode?"
            )
    references = contents[0].get("references", {})
    known = {name: references.get(name, {}).get("return") for name in ("random", "best_behaviour")}
    return ArmResults(
        label=own[0].label,
        runs=tuple(own),
        tasks=curves[0].tasks,
        axis=curves[0].axis,
        steps=curves[0].steps,
        curve=np.stack([found.scores for found in curves], axis=1),
        results=tuple(contents),
        **known,
    )


def _curve(content: Mapping[str, Any], metric: str) -> Curve:
    if "fine_tuning" in content:
        return fine_tuning_curve(content["fine_tuning"], metric)
    return training_curve(content, metric)


def _commit_notes(results: Any) -> Iterator[str]:
    commits = sorted({str(result.get("commit")) for result in results})
    if len(commits) > 1:
        yield f"Runs of {len(commits)} commits of the code: {', '.join(commits)}."
