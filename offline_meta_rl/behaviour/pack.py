"""Choose snapshots of a behaviour agent's training and pack them as package data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from offline_meta_rl.behaviour.policy import (
    FORMAT_VERSION,
    Package,
    PackedLayers,
    PackedStage,
    behaviour_file,
)
from offline_meta_rl.behaviour.references import random_returns
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.locomotion.family import LocomotionFamily
from offline_meta_rl.networks.actors import SCALE


def choose_stages(mean: Tensor, noisy: Tensor, random_return: float, count: int) -> list[int]:
    """Choose snapshots from poor to expert.

    The last one has the best mean action. The others come before it in training; their returns,
    with the mean action and with a sampled one, lie nearest to equal distances from a tenth of the
    way between random and best. Both count: an untrained ant's mean action stands still, which is
    worth more than walking badly.

    Args:
        mean: Return of every snapshot's mean action, in order of training, [S].
        noisy: Return of its sampled actions, [S].
        random_return: Of uniform random actions.
        count: How many to choose.

    Returns:
        Indices of snapshots, increasing.

    Raises:
        ValueError: There are not enough snapshots up to the best one.
    """
    best = int(mean.argmax())
    if best + 1 < count:
        raise ValueError(
            f"Expected at least {count} snapshots up to the best one, found {best + 1}. "
            "Train longer, take snapshots more often, or choose fewer stages."
        )
    chosen = [best]
    for rank in range(count - 2, -1, -1):
        # Equal steps of return, not of training: an agent learns most in a short while.
        share = 0.1 + 0.9 * rank / (count - 1)
        aim = random_return + share * (float(mean[best]) - random_return)
        distance = (mean - aim).abs() + (noisy - aim).abs()
        # Before the stage above in training, with enough snapshots left for those below.
        chosen.append(rank + int(distance[rank : chosen[-1]].argmin()))
    return chosen[::-1]


def pack(snapshots: Sequence[Path], out: Path, family: TaskFamily) -> Package:
    """Write the snapshots of a training, poor to expert, as package data.

    The stages are called ``stage_0``, ``stage_1``, ..., ``expert``.

    Args:
        snapshots: Files of ``callbacks.BehaviourSnapshots``, poor to expert.
        out: File to write; half precision, a few hundred kB.
        family: What they were trained on.

    Returns:
        What was written.
    """
    stages: list[PackedStage] = []
    for number, path in enumerate(snapshots):
        snapshot = torch.load(path, weights_only=True)
        stages.append(
            {
                "name": "expert" if path == snapshots[-1] else f"stage_{number}",
                "step": int(snapshot["step"]),
                "mean_return": torch.as_tensor(snapshot["mean"]).float(),
                "noisy_return": torch.as_tensor(snapshot["noisy"]).float(),
                # Half precision: the file ships with the package.
                "actor": {key: value.half() for key, value in snapshot["state"].items()},
            }
        )
    package: Package = {
        "format": FORMAT_VERSION,
        "family": family.name,
        "family_version": family.version,
        "network": _hidden_layers(stages[0]["actor"]),
        "scale": {"floor": SCALE.floor, "at_zero": SCALE.at_zero},
        "stages": stages,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(package, out)
    return package


def pack_policies(
    name: str,
    folder: Path,
    *,
    stages: int = 5,
    steps: Sequence[int] | None = None,
    out: Path | None = None,
) -> list[str]:
    """Choose among all snapshots of a training, pack them, and return lines about what they reach.

    Args:
        name: Of the family that they were trained on.
        folder: Of the snapshots, ``<step>.pt``.
        stages: How many to choose.
        steps: Training steps to take instead, poor to expert.
        out: File to write; None for the package's own.

    Raises:
        FileNotFoundError: No snapshot in the folder.
        ValueError: The family has no learned behaviour, too few snapshots, or none of a step.
    """
    family = FAMILIES.get(name)
    if not isinstance(family, LocomotionFamily):
        learned = [key for key, each in FAMILIES.items() if isinstance(each, LocomotionFamily)]
        raise ValueError(
            f"family: expected one whose behaviour is learned, {', '.join(learned)}, found {name}."
        )
    paths = sorted(folder.glob("*.pt"), key=lambda path: int(path.stem))
    if not paths:
        raise FileNotFoundError(
            f"No snapshot in {folder}: expected <step>.pt files of the callback "
            "BehaviourSnapshots. Train with configs/behaviour/*.yaml and pass the run's folder "
            "snapshots."
        )
    # The lower end of the scale that stages are chosen on.
    random_return = float(random_returns(family, seed=0, task_seed=0).mean())
    if steps is not None:
        chosen = _at_steps(paths, steps)
    else:
        returns = [torch.load(path, weights_only=True) for path in paths]
        mean, noisy = (
            torch.stack([torch.as_tensor(found[kind]).mean() for found in returns])
            for kind in ("mean", "noisy")
        )
        chosen = [paths[i] for i in choose_stages(mean, noisy, random_return, stages)]
    target = out or behaviour_file(family)
    package = pack(chosen, target, family)
    lines = [f"random actions: {random_return:.1f}"]
    for stage in package["stages"]:
        mean, noisy = (stage["mean_return"].mean(), stage["noisy_return"].mean())
        reached = f"mean action {mean:.1f}, sampled {noisy:.1f}"
        lines.append(f"{stage['name']}: step {stage['step']}, {reached}")
    return [*lines, str(target)]


def _hidden_layers(actor: Mapping[str, Tensor]) -> PackedLayers:
    """Return the sizes of the hidden layers from an actor's state."""
    weights = [value for name, value in actor.items() if name.endswith(".weight")]
    return {"width": len(weights[0]), "depth": len(weights) - 1}


def _at_steps(paths: Sequence[Path], steps: Sequence[int]) -> list[Path]:
    """Return the snapshots of some training steps.

    Raises:
        ValueError: There is none of a step.
    """
    of_step = {int(path.stem): path for path in paths}
    missing = [step for step in steps if step not in of_step]
    if missing:
        raise ValueError(f"steps: expected some of {sorted(of_step)}, found {missing}.")
    return [of_step[step] for step in steps]
