"""How long a plan will take."""

from collections.abc import Mapping, Sequence

from offline_meta_rl.experiments.plan import Run


def estimate_hours(
    runs: Sequence[Run],
    shipped: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, float],
    workers: int,
) -> tuple[float, list[str]]:
    """Return hours until all runs are done, and which arms nothing is known about.

    A family whose speed is not known counts as the slowest one known of the method.

    Args:
        runs: that are still to do.
        shipped: method -> family -> outer steps a second, evaluations included.
        measured: ``family/arm`` -> the same with all commands, of finished runs on this machine;
            wins.
        workers: runs at a time.
    """
    seconds, unknown = [], []
    for run in runs:
        key = f"{run.family}/{run.arm}"
        known = shipped.get(run.method, {})
        if key in measured:
            seconds.append(run.steps / measured[key])
        elif known:
            speed = known.get(run.family, min(known.values()))
            seconds.append(run.steps * run.cost / speed + 60.0 * run.minutes)
        else:
            unknown.append(key)
    longest = max([sum(seconds) / max(1, workers), *seconds]) if seconds else 0.0
    return longest / 3600, sorted(set(unknown))
