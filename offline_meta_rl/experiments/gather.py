"""Read the results of a plan's runs, and refuse to compare what is not comparable.

Nothing is averaged silently. Missing, failed and duplicate runs are named, so are runs of another
method, and runs that differ in protocol, dataset or settings. Scores are arrays [S, T] of S seeds
and T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.common.files import Json, read_json
from offline_meta_rl.evaluation.result_files import FineTuningFile, ResultFile
from offline_meta_rl.experiments.curves import Curve, fine_tuning_curve, training_curve
from offline_meta_rl.experiments.plan import Run
from offline_meta_rl.experiments.specification import Experiment, Metric
from offline_meta_rl.experiments.states import State, last_lines, state_of

Array = NDArray[np.float64]
CHOICES = ("final", "best")
CONTEXT_DATA = ("inner_slice", "stride")
"""Settings of the data that say where contexts come from, in evaluations too."""
PARTS: tuple[Literal["model", "data"], ...] = ("model", "data")
OF_ONE_RUN = {"seed", "path"}
"""Settings that may differ between the runs of an arm; data are known by their checksum."""


@dataclass(frozen=True)
class RunResults:
    """What a finished run left.

    Attributes:
        run: The run.
        trained: Content of its ``results.json``.
        tuned: Content of its ``fine_tuning.json``; None where the experiment has no fine-tuning.
    """

    run: Run
    trained: ResultFile
    tuned: FineTuningFile | None

    def curve(self, metric: Metric) -> Curve:
        """Return what is compared: the curve of the fine-tuning, or else of the training."""
        if self.tuned is not None:
            return fine_tuning_curve(self.tuned, metric)
        return training_curve(self.trained, metric)

    def terms(self) -> dict[str, object]:
        """Return how the run was measured and on what, by names for messages."""
        tuning = self.tuned["settings"] if self.tuned else {}
        data = self._config("data")
        batches = data.get("batches")  # earlier versions had these settings among the others
        of_contexts = batches if isinstance(batches, dict) else data
        return {
            **self.trained["protocol"],
            "dataset_checksum": self.trained.get("dataset_checksum"),
            "environment": self.trained.get("environment"),
            **{name: of_contexts.get(name) for name in CONTEXT_DATA},
            **{f"fine-tuning {name}": value for name, value in tuning.items()},
        }

    def arguments(self) -> dict[str, object]:
        """Return the constructor arguments that the runs of an arm share."""
        return {
            f"{part} {name}": value
            for part in PARTS
            for name, value in self._config(part).items()
            if name not in OF_ONE_RUN
        }

    def _config(self, part: Literal["model", "data"]) -> dict[str, Json]:
        config = self.trained.get("config")
        return (config.get(part) if config else None) or {}


@dataclass(frozen=True)
class ArmResults:
    """What the finished runs of one arm on one family reached.

    Attributes:
        label: Name of the arm in figures.
        runs: Finished runs, by seed.
        tasks: Names of the T evaluated tasks.
        axis: What ``steps`` counts: ``outer steps`` or ``environment steps`` of fine-tuning.
        steps: Steps of the evaluations, [P].
        curve: Scores of every evaluation, [P, S, T].
        results: Content of the result files, by seed.
        random: Mean return of random actions, if known.
        best_behaviour: Mean return of the best behaviour, if known.
    """

    label: str
    runs: tuple[Run, ...]
    tasks: tuple[str, ...]
    axis: str
    steps: NDArray[np.int64]
    curve: Array
    results: tuple[ResultFile, ...]
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
        experiment: What was run.
        scale: Name of the scale.
        arms: Family -> arm -> results; arms without a finished run are left out.
        notes: What the reader has to know: runs that are missing or failed, different commits.
    """

    experiment: Experiment
    scale: str
    arms: Mapping[str, Mapping[str, ArmResults]]
    notes: tuple[str, ...]


def gather(experiment: Experiment, runs: Sequence[Run], *, incomplete: bool = False) -> Gathered:
    """Read and check the results of a plan.

    Args:
        experiment: The plan's experiment.
        runs: The plan.
        incomplete: Go on with runs missing or failed; they are named in ``notes``.

    Raises:
        ValueError: Missing, failed, duplicate or foreign runs, or runs that are not comparable.
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
    read = [_read(run) for run in finished]
    arms: dict[str, dict[str, ArmResults]] = {}
    for family in dict.fromkeys(run.family for run in finished):
        own = [each for each in read if each.run.family == family]
        check_comparable(own, experiment.varies)
        names = dict.fromkeys(each.run.arm for each in own)
        arms[family] = {
            name: _arm_results([each for each in own if each.run.arm == name], experiment.metric)
            for name in names
        }
    commits = sorted({str(each.trained.get("commit")) for each in read})
    notes = tuple(lacking)
    if len(commits) > 1:
        notes += (f"Runs of {len(commits)} commits of the code: {', '.join(commits)}.",)
    return Gathered(experiment, runs[0].scale, arms, notes)


def _check_duplicates(runs: Sequence[Run]) -> None:
    """Check that no run lies in two folders, as after copying results together."""
    places: dict[tuple[Json, ...], list[Path]] = {}
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


def _read(run: Run) -> RunResults:
    """Return what a run left, which has to be of that run.

    Raises:
        ValueError: It is of another method, seed or number of steps.
    """
    path = run.folder / "results.json"
    content = read_json(path)
    expected = {"method": run.method.rsplit(".", 1)[-1], "seed": run.seed, "global_step": run.steps}
    found = {key: content.get(key) for key in expected}
    found["method"] = str(content.get("method", "")).rsplit(".", 1)[-1]
    wrong = [
        f"{key} {expected[key]!r}, found {found[key]!r}"
        for key in found
        if found[key] != expected[key]
    ]
    if wrong:
        raise ValueError(
            f"{path}: expected {'; '.join(wrong)}. The file is of another run; remove the folder "
            "and run it again."
        )
    tuned = read_json(run.folder / run.results[-1]) if run.results[-1] != path.name else None
    return RunResults(run, cast(ResultFile, content), cast(FineTuningFile | None, tuned))


def _arm_results(results: Sequence[RunResults], metric: Metric) -> ArmResults:
    """Return the results of one arm.

    Raises:
        ValueError: Seeds evaluated at different steps, or scores that are not finite.
    """
    own = sorted(results, key=lambda each: each.run.seed)
    first = own[0]
    curves = [each.curve(metric) for each in own]
    for each, found in zip(own, curves, strict=True):
        if found.steps.tolist() != curves[0].steps.tolist():
            raise ValueError(
                f"{first.run.name} and {each.run.name} were evaluated at different steps: "
                f"{curves[0].steps.tolist()} and {found.steps.tolist()}. Run them again with one "
                "scale."
            )
        if not np.isfinite(found.scores).all():
            raise ValueError(
                f"{each.run.name}: {metric} is not finite for every task and evaluation. Does the "
                "dataset have reference returns, and did every task keep an episode?"
            )
    references = first.trained.get("references", {})
    means = {name: reference.get("return") for name, reference in references.items()}
    return ArmResults(
        label=first.run.label,
        runs=tuple(each.run for each in own),
        tasks=curves[0].tasks,
        axis=curves[0].axis,
        steps=curves[0].steps,
        curve=np.stack([found.scores for found in curves], axis=1),
        results=tuple(each.trained for each in own),
        random=means.get("random"),
        best_behaviour=means.get("best_behaviour"),
    )


def check_comparable(results: Sequence[RunResults], varies: Sequence[str]) -> None:
    """Check that runs on one family were measured alike, on the same data.

    Args:
        results: The runs of all arms.
        varies: Fields of the protocol, ``dataset_checksum``, ``inner_slice`` or ``stride``, that
            may differ between arms; they never differ between seeds of one arm, and neither do
            settings of method and data.

    Raises:
        ValueError: Names two runs and each field that differs.
    """
    twins: dict[str, RunResults] = {}
    for each in results:
        twin = twins.setdefault(each.run.arm, each)
        of_arm = {**_differences(twin.terms(), each.terms())}
        of_arm |= _differences(twin.arguments(), each.arguments())
        of_all = _differences(results[0].terms(), each.terms())
        of_all = {field: two for field, two in of_all.items() if field not in varies}
        for other, found in ((twin, of_arm), (results[0], of_all)):
            if found:
                shown = "; ".join(f"{f}: {one!r} and {two!r}" for f, (one, two) in found.items())
                raise ValueError(
                    f"{other.run.name} and {each.run.name} cannot be compared; they differ in "
                    f"{shown}. Run them again on equal terms, or select other runs."
                )


def _differences(
    first: Mapping[str, object], second: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """Return the fields in which two results differ, with both values."""
    pairs = {field: (first.get(field), second.get(field)) for field in {**first, **second}}
    return {field: (one, two) for field, (one, two) in pairs.items() if one != two}
