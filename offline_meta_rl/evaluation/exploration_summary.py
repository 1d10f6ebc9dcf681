"""Success by the number of exploration episodes done, with intervals; plain arithmetic.

Shapes: M meta-episodes, K episodes of each, T tasks.
"""

from collections.abc import Sequence
from typing import Any

from offline_meta_rl.common.statistics import share_interval
from offline_meta_rl.envs.base import Bools
from offline_meta_rl.evaluation.exploration import Exploration


def share_of(hits: Bools) -> dict[str, Any]:
    """Return the share of true entries with its 95 % interval; None without entries."""
    low, high = share_interval(int(hits.sum()), hits.size)
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
