"""Choose snapshots of a behaviour agent's training and pack them as package data.

``lightning behaviour pack ant_dir FOLDER`` writes ``policies/ant_dir.pt``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offline_meta_rl.behaviour.policy import FORMAT_VERSION, behaviour_file
from offline_meta_rl.behaviour.references import random_returns
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.locomotion.family import LocomotionFamily

LEARNED = [name for name, family in FAMILIES.items() if isinstance(family, LocomotionFamily)]
"""Families whose behaviour policy is learned, not scripted."""


def choose_stages(mean: Tensor, noisy: Tensor, random_return: float, count: int) -> list[int]:
    """Choose snapshots from poor to expert.

    The last one has the best mean action. The others come before it in training; their returns,
    with the mean action and with a sampled one, lie nearest to equal distances from a tenth of the
    way between random and best. Both count: an untrained ant's mean action stands still, which is
    worth more than walking badly.

    Args:
        mean: return of every snapshot's mean action, in order of training, [S].
        noisy: return of its sampled actions, [S].
        random_return: of uniform random actions.
        count: how many to choose.

    Returns:
        Indices of snapshots, increasing.

    Raises:
        ValueError: if there are not enough snapshots up to the best one.
    """
    best = int(mean.argmax())
    if best + 1 < count:
        raise ValueError(
            f"Expected at least {count} snapshots up to the best one, found {best + 1}. "
            "Train longer, take snapshots more often, or choose fewer stages."
        )
    chosen = [best]
    for rank in range(count - 2, -1, -1):
        share = 0.1 + 0.9 * rank / (count - 1)
        aim = random_return + share * (float(mean[best]) - random_return)
        distance = (mean - aim).abs() + (noisy - aim).abs()
        chosen.append(rank + int(distance[rank : chosen[-1]].argmin()))
    return chosen[::-1]


def pack(snapshots: Sequence[Path], out: Path, family: TaskFamily) -> None:
    """Write the snapshots of a training, poor to expert, as package data.

    The stages are called ``stage_0``, ``stage_1``, ..., ``expert``.

    Args:
        snapshots: files of ``callbacks.BehaviourSnapshots``, poor to expert.
        out: file to write; half precision, a few hundred kB.
        family: what they were trained on.
    """
    stages: list[dict[str, Any]] = []
    for number, path in enumerate(snapshots):
        snapshot = torch.load(path, weights_only=True)
        stages.append(
            {
                "name": "expert" if path == snapshots[-1] else f"stage_{number}",
                "step": int(snapshot["step"]),
                "mean_return": torch.as_tensor(snapshot["mean"]).float(),
                "noisy_return": torch.as_tensor(snapshot["noisy"]).float(),
                "actor": {key: value.half() for key, value in snapshot["state"].items()},
            }
        )
    package = {
        "format": FORMAT_VERSION,
        "family": family.name,
        "family_version": family.version,
        "hidden_size": stages[0]["actor"]["network.0.weight"].shape[0],
        "stages": stages,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(package, out)


def pack_snapshots(
    name: str,
    folder: Path,
    *,
    stages: int = 5,
    steps: Sequence[int] | None = None,
    out: Path | None = None,
) -> list[str]:
    """Choose snapshots, pack them, and return lines about what they reach.

    Args:
        name: Of the family.
        folder: With <step>.pt snapshots.
        stages: How many to choose.
        steps: Choose these training steps instead.
        out: File to write; None for the package's own.

    Raises:
        ValueError: The family has no learned behaviour, a step has no snapshot, or there are too
            few snapshots.
    """
    if name not in LEARNED:
        raise ValueError(
            f"Expected a family whose behaviour is learned, {', '.join(LEARNED)}, found {name!r}. "
            "Name one of these."
        )
    family = FAMILIES[name]
    paths = sorted(folder.glob("*.pt"), key=lambda path: int(path.stem))
    if not paths:
        raise ValueError(
            f"Expected <step>.pt snapshots in {folder}, found none. Train the behaviour agents "
            "with the callback BehaviourSnapshots first."
        )
    snapshots = [torch.load(path, weights_only=True) for path in paths]
    mean = torch.stack([snapshot["mean"].mean() for snapshot in snapshots])
    noisy = torch.stack([snapshot["noisy"].mean() for snapshot in snapshots])
    random_return = float(random_returns(family, seed=0, task_seed=0).mean())
    known = [int(path.stem) for path in paths]
    if unknown := sorted(set(steps or ()) - set(known)):
        raise ValueError(f"--steps: expected some of {known}, found {unknown}.")
    if steps:
        chosen = [known.index(step) for step in steps]
    else:
        chosen = choose_stages(mean, noisy, random_return, stages)
    target = out or behaviour_file(family)
    pack([paths[index] for index in chosen], target, family)
    lines = [f"random actions: {random_return:.1f}"]
    for number, index in enumerate(chosen):
        reached = f"mean action {mean[index]:.1f}, sampled {noisy[index]:.1f}"
        lines.append(f"stage {number}: step {known[index]}, {reached}")
    return [*lines, str(target)]
