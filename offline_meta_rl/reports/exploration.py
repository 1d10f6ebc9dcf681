"""Turn result files of EvaluateExploration into the table and the pictures of a results page.

Each file is one seed. Intervals are 95 % and hold two others: the mean's over seeds (Student's t),
and that of all seeds' meta-episodes as one sample (Wilson), so that seeds that agree do not make
it zero.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from offline_meta_rl.common.statistics import mean_interval, share_interval
from offline_meta_rl.evaluation.diagnosis import Diagnosis
from offline_meta_rl.evaluation.exploration import ExplorationPoint, Share
from offline_meta_rl.evaluation.measure_exploration import ExplorationProtocol
from offline_meta_rl.evaluation.probe import PLACES
from offline_meta_rl.reports.exploration_plots import diagnosis_figure, success_figure

SHARES: tuple[Literal["opened_any", "nearest_of_opened"], ...] = ("opened_any", "nearest_of_opened")


class Result(TypedDict):
    """What is read of a result file.

    Attributes:
        points: By exploration episodes done.
        protocol: What was evaluated, and how.
        diagnosis: What beliefs say about the task.
        processor_time: Seconds of the policy's run.
    """

    points: list[ExplorationPoint]
    protocol: ExplorationProtocol
    diagnosis: Diagnosis
    processor_time: float


def print_exploration(
    *, arm: list[str], picture: Path | None = None, diagnosis: Path | None = None
) -> None:
    """Print success by the number of exploration episodes as a table, and draw it.

    Args:
        arm: NAME=FILE,FILE,... with one result file of EvaluateExploration for each seed; repeat
            the option for more arms.
        picture: PNG of success by exploration episodes to write.
        diagnosis: PNG of what beliefs say about the task to write.

    Raises:
        ValueError: An arm that is not NAME=FILE,FILE,...
    """
    arms: dict[str, list[Result]] = {
        name: [json.loads(file.read_text()) for file in files]
        for name, files in (files_of(given) for given in arm)
    }
    print(table(arms))
    chance = 1.0 / len(next(iter(arms.values()))[0]["protocol"]["tasks"])
    if picture:
        curves = {name: mean_points(results) for name, results in arms.items()}
        success_figure(curves, picture, chance=chance)
    if diagnosis:
        found = {name: mean_diagnosis(results) for name, results in arms.items()}
        diagnosis_figure(found, diagnosis, chance=chance)


def print_probe_table(*, arm: list[str]) -> None:
    """Print how well the task can be read from filters' beliefs, as a table.

    Args:
        arm: NAME=FILE,FILE,... with one result file of WatchBeliefs for each seed; repeat the
            option for more arms.

    Raises:
        ValueError: An arm that is not NAME=FILE,FILE,...
    """
    probes: dict[str, list[dict[str, float]]] = {
        name: [json.loads(file.read_text())["probe"] for file in files]
        for name, files in (files_of(given) for given in arm)
    }
    print(probe_table(probes))


def files_of(arm: str) -> tuple[str, list[Path]]:
    """Split NAME=FILE,FILE,...

    Raises:
        ValueError: There is no name, or no file.
    """
    name, _, files = arm.partition("=")
    if not name or not files:
        raise ValueError(f"--arm: expected NAME=FILE,FILE,..., found {arm!r}.")
    return name, [Path(file) for file in files.split(",")]


def mean_share(shares: Sequence[Share]) -> Share:
    """Return the mean of a share over seeds, with its interval; seeds without trials do not count.

    Args:
        shares: Of each seed.
    """
    known = [share for share in shares if share["count"]]
    if not known:
        return {"share": None, "interval": [0.0, 1.0], "count": 0}
    if len(known) == 1:
        return known[0]
    values = [float(share["share"] or 0.0) for share in known]
    count = sum(share["count"] for share in known)
    hits = round(sum(value * share["count"] for value, share in zip(values, known, strict=True)))
    lows, highs = zip(mean_interval(values), share_interval(hits, count), strict=True)
    ends = [max(0.0, min(lows)), min(1.0, max(highs))]
    return {"share": float(np.mean(values)), "interval": ends, "count": count}


def mean_points(results: Sequence[Result]) -> list[ExplorationPoint]:
    """Return the points of several seeds as one, for each number of exploration episodes done."""
    found = []
    for points in zip(*(result["points"] for result in results), strict=True):
        point: ExplorationPoint = {
            "exploration_episodes": points[0]["exploration_episodes"],
            "success": mean_share([each["success"] for each in points]),
        }
        for name in SHARES:
            if name in points[0]:
                point[name] = mean_share([each[name] for each in points])
        found.append(point)
    return found


def mean_diagnosis(results: Sequence[Result]) -> Diagnosis:
    """Return what ``diagnosis_figure`` draws, averaged over seeds."""
    found = [result["diagnosis"] for result in results]
    curves = [after["curve"] for each in found if (after := each["after_wrong_drawer"])]
    accuracy = float(np.mean([each["before_any_reward"]["accuracy"] for each in found]))
    return {
        "before_any_reward": {"accuracy": accuracy},
        "after_wrong_drawer": {"curve": np.mean(curves, axis=0).tolist()} if curves else None,
    }


def table(arms: Mapping[str, Sequence[Result]]) -> str:
    """Return one Markdown row for each arm."""
    episodes = len(next(iter(arms.values()))[0]["points"])
    header = ["arm", "seeds", *(f"success after {done}" for done in range(episodes))]
    header += [
        "episodes that opened a drawer",
        "of these, the nearest first",
        "processor time, min",
    ]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, results in arms.items():
        points = mean_points(results)
        cells = [name, str(len(results)), *(_share(point["success"]) for point in points)]
        for key in SHARES:
            every = [point[key] for r in results for point in r["points"] if key in point]
            cells.append(_pooled(every) if every else "-")
        times = [result["processor_time"] / 60 for result in results]
        cells.append(f"{np.mean(times):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def probe_table(arms: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return one Markdown row for each place of each episode, means over seeds.

    Args:
        arms: Name -> what ``ProbeResult.metrics`` returned, for each seed.
    """
    first = next(iter(arms.values()))[0]
    episodes = 1 + max(int(name.split("/")[0].removeprefix("episode_")) for name in first)
    lines = [
        "| " + " | ".join(["episode", "place", *arms, "achievable"]) + " |",
        "|---" * (len(arms) + 3) + "|",
    ]
    for episode in range(episodes):
        for place in PLACES:
            name = f"episode_{episode}/{place}"
            cells = [float(np.mean([each[name] for each in probes])) for probes in arms.values()]
            cells.append(first[f"{name}_achievable"])
            numbers = " | ".join(f"{cell:.2f}" for cell in cells)
            lines.append(f"| {episode + 1} | `{place}` | {numbers} |")
    return "\n".join(lines)


def _share(share: Share) -> str:
    low, high = share["interval"]
    return f"{share['share']:.3f} [{low:.3f}, {high:.3f}]"


def _pooled(shares: Sequence[Share]) -> str:
    """Return the share over all episodes of all seeds."""
    count = sum(share["count"] for share in shares)
    hits = sum((share["share"] or 0.0) * share["count"] for share in shares)
    return f"{hits / count:.3f}" if count else "-"
