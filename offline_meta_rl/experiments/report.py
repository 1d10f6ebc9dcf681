"""From gathered results to the report of an experiment: numbers first, then pictures, then origin.

Every arm is shown twice: its final weights (``last.ckpt``), and the best evaluation of each seed
(``best.ckpt``), which was chosen on the evaluated tasks and is therefore optimistic.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offline_meta_rl.common import statistics
from offline_meta_rl.common.files import write_json
from offline_meta_rl.common.statistics import Estimate
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
    """Write pictures, ``report.md``, ``report.html`` and ``summary.json``; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(gathered)
    write_json(folder / "summary.json", plain_summary(gathered, summary))
    blocks: list[Block] = [Heading(gathered.experiment.title, 1), Text(_subtitle(gathered))]
    blocks += [Text(note, note=True) for note in gathered.notes]
    axis = next(iter(next(iter(gathered.arms.values())).values())).axis
    blocks += [Heading("Results"), Text(MARKS + CHOICES_OF[axis])]
    for family in gathered.arms:
        blocks += [Heading(family, 3), _table(gathered.arms[family], summary[family])]
    blocks += _pictures(gathered, summary, folder)
    blocks += [Heading("Where the numbers come from"), *_origins(gathered)]
    return write_page(blocks, folder)


def summarise(gathered: Gathered) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return family -> arm -> ``final`` and ``best`` -> interquartile mean with its interval."""
    return {
        family: {
            arm: {choice: statistics.estimate(found.scores(choice)) for choice in CHOICES}
            for arm, found in arms.items()
        }
        for family, arms in gathered.arms.items()
    }


def plain_summary(
    gathered: Gathered, summary: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
) -> dict[str, Any]:
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
                    **{choice: vars(found) for choice, found in estimates.items()},
                }
                for arm, estimates in arms.items()
            }
            for family, arms in summary.items()
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


def _table(arms: Mapping[str, ArmResults], summary: Mapping[str, Mapping[str, Estimate]]) -> Table:
    if next(iter(arms.values())).axis == "environment steps":
        return _fine_tuning_table(arms)
    header = ("arm", "seeds", "final", "best", "mean return, final", "best behaviour", "random")
    rows = []
    for name, arm in arms.items():
        returns = [result["after_adaptation"]["return"] for result in arm.results]
        known = (arm.best_behaviour, arm.random)
        cells = ["-" if value is None else f"{value:.1f}" for value in (np.mean(returns), *known)]
        numbers = [str(summary[name][choice]) for choice in CHOICES]
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


def _pictures(
    gathered: Gathered, summary: Mapping[str, Mapping[str, Mapping[str, Estimate]]], folder: Path
) -> Iterator[Block]:
    order = {arm: place for place, arm in enumerate(gathered.experiment.arms)}
    styles = {arm: figures.style(place) for arm, place in order.items()}
    present = {arm for arms in gathered.arms.values() for arm in arms}
    labels = {arm: value.label for arm, value in gathered.experiment.arms.items() if arm in present}
    label = _label(gathered)
    yield Heading("Learning curves")
    for family, arms in gathered.arms.items():
        path = folder / f"curves_{family}.png"
        figures.learning_curves(arms, styles, path, title=family, label=label)
        yield Picture(path, f"{family}: interquartile mean over seeds and tasks, 95 % bands")
    yield from _against(gathered, summary, folder)
    yield Heading("Final and best, with intervals")
    for choice in CHOICES:
        path = folder / f"intervals_{choice}.png"
        values = {f: {a: each[choice] for a, each in arms.items()} for f, arms in summary.items()}
        figures.intervals(values, labels, styles, path, label=f"{label}, {choice}")
        yield Picture(path, f"{choice}: interquartile mean and 95 % interval")
    scores = joined_scores(gathered)
    if scores:
        path = folder / "profiles.png"
        named = {arm: figures.marked(labels[arm], len(scores[arm])) for arm in scores}
        figures.profiles(scores, named, styles, path, label=label)
        yield Picture(path, "Performance profiles of final scores, all families together")
        absent = [labels[arm] for arm in labels if arm not in scores]
        if absent:
            yield Text(
                f"Not in the profiles, because their seeds differ between families: "
                f"{', '.join(absent)}.",
                note=True,
            )
    yield from _improvement(gathered)


def _against(
    gathered: Gathered, summary: Mapping[str, Mapping[str, Mapping[str, Estimate]]], folder: Path
) -> Iterator[Block]:
    """Yield the picture of an experiment that varies one thing between its arms."""
    wanted = gathered.experiment.against
    for family, arms in summary.items() if wanted else ():
        assert wanted is not None
        path = folder / f"against_{family}.png"
        final = {arm: estimates["final"] for arm, estimates in arms.items()}
        labels = (wanted.label, f"{_label(gathered)}, final")
        figures.against(final, wanted.lines, path, title=family, labels=labels)
        yield Heading(f"Against {wanted.label}")
        yield Picture(path, f"{family}: final, interquartile mean and 95 % interval")


def joined_scores(gathered: Gathered) -> dict[str, Any]:
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


def _all(results: Any, key: str) -> str:
    return ", ".join(sorted({str(result.get(key)) for result in results}))
