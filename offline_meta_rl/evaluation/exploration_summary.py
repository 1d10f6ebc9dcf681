"""Success by the number of exploration episodes done, with intervals; plain arithmetic.

Shapes: M meta-episodes, K episodes of each, T tasks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from offline_meta_rl.envs.base import Bools
from offline_meta_rl.evaluation.exploration import Exploration


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a probability; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, shrink = successes / trials, 1.0 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / shrink
    half = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / shrink
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def share_of(hits: Bools) -> dict[str, Any]:
    """Return the share of true entries with its 95 % interval; None without entries."""
    low, high = interval(int(hits.sum()), hits.size)
    share = float(hits.mean()) if hits.size else None
    return {"share": share, "interval": [low, high], "count": int(hits.size)}


def summarise(
    exploration: Exploration, tasks: Sequence[int], nearest: int | None
) -> list[dict[str, Any]]:
    """Return how each episode of a meta-episode went, by the number of episodes done before it.

    Args:
        exploration: what happened.
        tasks: indices of the T tasks that ``target`` counts.
        nearest: the drawer that is opened fastest; None where there is none.

    Returns:
        For each of the K episodes ``exploration_episodes`` (done before it), ``success`` (share,
        95 % interval, count), ``success_by_task``, and with drawers ``opened_any`` (share of
        episodes that opened one) and ``nearest_of_opened`` (share of those that opened the nearest
        one first).
    """
    success, first = exploration.success, exploration.first_opened
    points = []
    for done in range(success.shape[1]):
        by_task = {
            str(task): share_of(success[exploration.target == index, done])
            for index, task in enumerate(tasks)
        }
        point: dict[str, Any] = {
            "exploration_episodes": done,
            "success": share_of(success[:, done]),
            "success_by_task": by_task,
        }
        if nearest is not None:
            opening = first[:, done]
            point["opened_any"] = share_of(opening >= 0)
            point["nearest_of_opened"] = share_of(opening[opening >= 0] == nearest)
        points.append(point)
    return points
