"""From gathered results to the report of an experiment: numbers first, then pictures, then origin.

Every arm is shown twice: its final weights (``last.ckpt``), and the best evaluation of each seed
(``best.ckpt``), which was chosen on the evaluated tasks and is therefore optimistic.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from offline_meta_rl.common import statistics
from offline_meta_rl.common.files import write_json
from offline_meta_rl.common.progress import progress_bar
from offline_meta_rl.common.statistics import Array, Estimate
from offline_meta_rl.evaluation.result_files import ResultFile
from offline_meta_rl.experiments import figures
from offline_meta_rl.experiments.gather import CHOICES, ArmResults, Gathered
from offline_meta_rl.experiments.page import (
    Block,
    Heading,
    Picture,
    Table,
    Text,
    definition_table,
    write_page,
)

Estimates: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""Family -> arm -> ``final`` and ``best`` -> interquartile mean with its interval."""

MARKS = (
    "Numbers are interquartile means over tasks and seeds; in brackets 95 % intervals of a "
    "bootstrap that draws seeds anew for each task. * marks an interval of only two seeds, ** a "
    "single seed, which has none. "
)
CHOICES_OF = {
    "outer steps": "`final` is the last checkpoint (last.ckpt), `best` each seed's best evaluation "
    "(best.ckpt), chosen on the evaluated tasks and so optimistic.",
    "environment steps": "`final` is the end of the fine-tuning, `best` each seed's best "
    "evaluation on the way, chosen on the evaluated tasks and so optimistic.",
}


def write_report(gathered: Gathered, folder: Path) -> Path:
    """Write pictures, ``report.md``, ``report.html`` and ``summary.json``.

    Args:
        gathered: Results of all runs.
        folder: Where the report is written.

    Returns:
        The path of the HTML page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    estimates = estimates_of(gathered)
    write_json(folder / "summary.json", plain_summary(gathered, estimates))
    blocks: list[Block] = [Heading(gathered.experiment.title, 1), Text(_subtitle(gathered))]
    blocks += [Text(note, note=True) for note in gathered.notes]
    axis = next(iter(next(iter(gathered.arms.values())).values())).axis
    blocks += [Heading("Results"), Text(MARKS + CHOICES_OF[axis])]
    for family in gathered.arms:
        blocks += [Heading(family, 3), _table(gathered.arms[family], estimates[family])]
    # Bootstraps of many arms take longer than drawing them: a minute for 20 arms of 200 points.
    of_families = len(gathered.arms) * (2 if gathered.experiment.against else 1)
    with progress_bar("Drawing", of_families + len(CHOICES) + 1) as advance:
        for block in _pictures(gathered, estimates, folder):
            blocks.append(block)
            if isinstance(block, Picture):
                advance()
    blocks += _improvement(gathered)
    blocks += [Heading("Where the numbers come from"), *_origins(gathered)]
    return write_page(blocks, folder)


def estimates_of(gathered: Gathered) -> Estimates:
    """Return the numbers of a report."""
    return {
        family: {
            arm: {choice: statistics.estimate(found.scores(choice)) for choice in CHOICES}
            for arm, found in arms.items()
        }
        for family, arms in gathered.arms.items()
    }


def plain_summary(gathered: Gathered, estimates: Estimates) -> dict[str, object]:
    """Return the numbers of a report as plain types."""
    return {
        "experiment": gathered.experiment.name,
        "scale": gathered.scale,
        "metric": gathered.experiment.metric,
        "notes": gathered.notes,
        "families": {
            family: {
                arm: {
                    "seeds": [run.seed for run in gathered.arms[family][arm].runs],
                    **{choice: asdict(found) for choice, found in of_arm.items()},
                }
                for arm, of_arm in arms.items()
            }
            for family, arms in estimates.items()
        },
    }


def _subtitle(gathered: Gathered) -> str:
    runs = [run for arms in gathered.arms.values() for arm in arms.values() for run in arm.runs]
    steps = sorted({run.steps for run in runs})
    return (
        f"Experiment {gathered.experiment.name} at scale {gathered.scale}: {len(runs)} runs of "
        f"{' or '.join(map(str, steps))} outer steps. Measure: {_label(gathered)} on the evaluated "
        "tasks."
    )


def _label(gathered: Gathered) -> str:
    return gathered.experiment.metric.replace("after_", "").replace("_", " ")


def _table(
    arms: Mapping[str, ArmResults], estimates: Mapping[str, Mapping[str, Estimate]]
) -> Table:
    if next(iter(arms.values())).axis == "environment steps":
        return _fine_tuning_table(arms)
    header = ("arm", "seeds", "final", "best", "mean return, final", "best behaviour", "random")
    rows = []
    for name, arm in arms.items():
        returns = [result["after_adaptation"]["return"] for result in arm.results]
        known = (arm.best_behaviour, arm.random)
        cells = ["-" if value is None else f"{value:.1f}" for value in (np.mean(returns), *known)]
        numbers = [str(estimates[name][choice]) for choice in CHOICES]
        rows.append([arm.label, str(len(arm.runs)), *numbers, *cells])
    return Table(header, rows)


def _fine_tuning_table(arms: Mapping[str, ArmResults]) -> Table:
    """Return scores before fine-tuning, half way and at the end, as in Table 1 of MACAW."""
    length = len(next(iter(arms.values())).steps)
    places = (0, length // 2, length - 1)
    rows, header = [], ["arm", "seeds"]
    for arm in arms.values():
        header = ["arm", "seeds", *(f"{arm.steps[place]} environment steps" for place in places)]
        numbers = [str(statistics.estimate(arm.curve[place])) for place in places]
        rows.append([arm.label, str(len(arm.runs)), *numbers])
    return Table(header, rows)


def _pictures(gathered: Gathered, estimates: Estimates, folder: Path) -> Iterator[Block]:
    """Draw all pictures, and yield them with their headings."""
    present = {arm for arms in gathered.arms.values() for arm in arms}
    styles = {  # by the place in the experiment: an arm's colour is the same in every report
        name: figures.Style.of(place, arm.label)
        for place, (name, arm) in enumerate(gathered.experiment.arms.items())
        if name in present
    }
    label = _label(gathered)
    yield Heading("Learning curves")
    for family, arms in gathered.arms.items():
        path = folder / f"curves_{family}.png"
        figures.learning_curves(arms, styles, path, title=family, label=label)
        yield Picture(path, f"{family}: interquartile mean over seeds and tasks, 95 % bands")
    yield from _against(gathered, estimates, folder)
    yield Heading("Final and best, with intervals")
    for choice in CHOICES:
        path = folder / f"intervals_{choice}.png"
        values = {f: {a: each[choice] for a, each in arms.items()} for f, arms in estimates.items()}
        figures.intervals(values, styles, path, label=f"{label}, {choice}")
        yield Picture(path, f"{choice}: interquartile mean and 95 % interval")
    scores = joined_scores(gathered)
    if scores:
        path = folder / "profiles.png"
        figures.profiles(scores, styles, path, label=label)
        yield Picture(path, "Performance profiles of final scores, all families together")
        absent = [style.label for arm, style in styles.items() if arm not in scores]
        if absent:
            yield Text(
                f"Not in the profiles, because their seeds differ between families: "
                f"{', '.join(absent)}.",
                note=True,
            )


def _against(gathered: Gathered, estimates: Estimates, folder: Path) -> Iterator[Block]:
    """Yield the picture of an experiment that varies one thing between its arms."""
    wanted = gathered.experiment.against
    if wanted is None:
        return
    for family, arms in estimates.items():
        path = folder / f"against_{family}.png"
        final = {arm: of_arm["final"] for arm, of_arm in arms.items()}
        labels = (wanted.label, f"{_label(gathered)}, final")
        figures.against(final, wanted.lines, path, title=family, labels=labels)
        yield Heading(f"Against {wanted.label}")
        yield Picture(path, f"{family}: final, interquartile mean and 95 % interval")


def joined_scores(gathered: Gathered) -> dict[str, Array]:
    """Return arm -> final scores [S, tasks of all families], of arms with equal seeds everywhere.

    Raw returns of different families are not joined: with more than one family nothing is returned
    for them.
    """
    if len(gathered.arms) > 1 and "normalised" not in gathered.experiment.metric:
        return {}
    joined = {}
    for arm in gathered.experiment.arms:
        found = [arms[arm] for arms in gathered.arms.values() if arm in arms]
        seeds = {tuple(run.seed for run in each.runs) for each in found}
        if len(found) == len(gathered.arms) and len(seeds) == 1:
            joined[arm] = np.concatenate([each.scores("final") for each in found], axis=1)
    return joined


def _improvement(gathered: Gathered) -> Iterator[Block]:
    """Yield how probably the first arm beats each other one, where they share their tasks."""
    rows = []
    for family, arms in gathered.arms.items():
        first, *others = arms.values()
        for other in others:
            if other.tasks == first.tasks:
                found = statistics.probability_of_improvement(
                    first.scores("final"), other.scores("final")
                )
                rows.append([family, f"{first.label} over {other.label}", str(found)])
    if rows:
        yield Heading("Probability of improvement")
        yield Text(
            "How probably a run of the first arm beats a run of the other one on a task "
            "(Mann-Whitney, mean over tasks), by the final weights; 0.5 is no difference."
        )
        yield Table(("family", "comparison", "probability"), rows)


def _origins(gathered: Gathered) -> Iterator[Block]:
    for family, arms in gathered.arms.items():
        results = [result for arm in arms.values() for result in arm.results]
        protocol = results[0]["protocol"]
        yield Heading(family, 3)
        yield definition_table(
            {
                "dataset": _all(results, "dataset_checksum"),
                "commit": _all(results, "commit"),
                "protocol of the first arm": ", ".join(f"{k} {v}" for k, v in protocol.items()),
                "differs between arms on purpose": ", ".join(gathered.experiment.varies) or "-",
                "evaluated tasks": ", ".join(next(iter(arms.values())).tasks),
            }
        )


def _all(results: Sequence[ResultFile], key: Literal["dataset_checksum", "commit"]) -> str:
    return ", ".join(sorted({str(result.get(key)) for result in results}))
