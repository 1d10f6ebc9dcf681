"""Turn result files of EvaluateExploration into the table and the pictures of a results page.

``lightning report exploration --arm "Ours=runs/a/results.json,runs/b/results.json"
--arm "No Expl=runs/c/results.json" --picture success.png --diagnosis diagnosis.png``

Each file is one seed. Intervals are 95 % and hold two others: the mean's over seeds (Student's t),
and that of all seeds' meta-episodes as one sample (Wilson), so that seeds that agree do not make
it zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offline_meta_rl.common.statistics import mean_interval, share_interval

Result = Mapping[str, Any]


def mean_share(shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of a share over seeds, with its interval; seeds without trials do not count.

    Args:
        shares: ``share``, ``interval`` and ``count`` of each seed.
    """
    known = [share for share in shares if share["count"]]
    if not known:
        return {"share": None, "interval": [0.0, 1.0], "count": 0}
    if len(known) == 1:
        return dict(known[0])
    values = [float(share["share"]) for share in known]
    count = sum(share["count"] for share in known)
    hits = round(sum(share["share"] * share["count"] for share in known))
    lows, highs = zip(mean_interval(values), share_interval(hits, count), strict=True)
    ends = [max(0.0, min(lows)), min(1.0, max(highs))]
    return {"share": float(np.mean(values)), "interval": ends, "count": count}


def mean_points(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the points of several seeds as one, for each number of exploration episodes done."""
    names = ("success", "opened_any", "nearest_of_opened")
    return [
        {
            "exploration_episodes": points[0]["exploration_episodes"],
            **{
                name: mean_share([point[name] for point in points])
                for name in names
                if name in points[0]
            },
        }
        for points in zip(*(result["points"] for result in results), strict=True)
    ]


def mean_diagnosis(results: Sequence[Result]) -> dict[str, Any]:
    """Return what ``diagnosis_figure`` draws, averaged over seeds."""
    found = [result["diagnosis"] for result in results]
    curves = [d["after_wrong_drawer"]["curve"] for d in found if d["after_wrong_drawer"]]
    accuracy = float(np.mean([d["before_any_reward"]["accuracy"] for d in found]))
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
        for key in ("opened_any", "nearest_of_opened"):
            every = [point[key] for r in results for point in r["points"] if key in point]
            cells.append(_pooled(every) if every else "-")
        times = [result["processor_time"] / 60 for result in results]
        cells.append(f"{np.mean(times):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['share']:.3f} [{low:.3f}, {high:.3f}]"


def _pooled(shares: Sequence[Mapping[str, Any]]) -> str:
    """Return the share over all episodes of all seeds."""
    count = sum(share["count"] for share in shares)
    hits = sum(share["share"] * share["count"] for share in shares if share["count"])
    return f"{hits / count:.3f}" if count else "-"
