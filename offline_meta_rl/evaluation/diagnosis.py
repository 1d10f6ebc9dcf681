"""Why exploration works or fails: what the belief says about the task, and when (section 4).

Without synthetic exploration the arm's motion alone tells the task, in training, so the belief
settles before any reward is seen and does not change when a drawer turns out to be the wrong one.
Shapes: M meta-episodes, K episodes of each, H steps of an episode, S = K (H + 1), Z belief size, T
tasks.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offline_meta_rl.evaluation.exploration import Exploration, Share, share_of
from offline_meta_rl.evaluation.probe import LinearProbe, task_probe

MOST_ROWS = 20_000
Floats = NDArray[np.float64]


class BeforeReward(TypedDict):
    """The probe before the first episode's first reward.

    Attributes:
        accuracy: Share of held-out meta-trajectories whose task it tells.
        achievable: Share that can be told by then.
    """

    accuracy: float
    achievable: NotRequired[float]


class AfterWrongDrawer(TypedDict):
    """Meta-episodes whose first episode opened a wrong drawer.

    Attributes:
        meta_episodes: How many there were.
        end_of_episode: Mean probability of the true task at that episode's end.
        start_of_next: The same at the second episode's first step.
        corrected: Share in which the true task is then the most probable one.
        curve: Mean probability of the true task at every step, [S].
    """

    meta_episodes: NotRequired[int]
    end_of_episode: NotRequired[float]
    start_of_next: NotRequired[float]
    corrected: NotRequired[Share]
    curve: list[float]


class Diagnosis(TypedDict):
    """What beliefs say about the task.

    Attributes:
        probe: Accuracy on held-out meta-trajectories by episode and place, and what is achievable.
        before_any_reward: The probe where nothing can be known yet.
        rollouts: Mean probability of the true task (``target``) and of the most probable one
            (``most_probable``) in the policy's own meta-episodes, before the first reward or
            opening of the first episode.
        after_wrong_drawer: None where that never happened.
    """

    probe: NotRequired[dict[str, float]]
    before_any_reward: BeforeReward
    rollouts: NotRequired[dict[str, float]]
    after_wrong_drawer: AfterWrongDrawer | None


def task_reader(batch: Mapping[str, Tensor], beliefs: Tensor, *, seed: int = 0) -> LinearProbe:
    """Return a linear readout of the task from the belief at any step of a meta-trajectory.

    Args:
        batch: Task [M] and mask [M, S] of meta-trajectories.
        beliefs: Beliefs of these meta-trajectories, [M, S, Z].
        seed: Seed of the draw of steps where there are more than 20 000.
    """
    mask = batch["mask"].cpu().numpy()
    # Every step is labelled with its meta-trajectory's task, also the early ones at which nobody
    # can know it: there the readout learns to be unsure.
    tasks = np.repeat(batch["task"].cpu().numpy()[:, None], mask.shape[1], axis=1)
    rows, labels = beliefs.cpu().numpy()[mask], tasks[mask]
    if len(rows) > MOST_ROWS:
        chosen = np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False)
        rows, labels = rows[chosen], labels[chosen]
    return LinearProbe(rows, labels)


def diagnose(
    item: Mapping[str, Mapping[str, Tensor]],
    fit_beliefs: Tensor,
    held_out_beliefs: Tensor,
    exploration: Exploration,
    probability: Floats,
) -> Diagnosis:
    """Return what the belief says about the task before and after evidence.

    Args:
        item: ``fit`` and ``held_out`` meta-trajectories, as MetaTrajectories holds them out.
        fit_beliefs: Beliefs of ``fit``, [M, S, Z].
        held_out_beliefs: Beliefs of ``held_out``, [M, S, Z].
        exploration: Meta-episodes of the trained policy.
        probability: Probability of each task by the belief in these, [M, K, H + 1, T].
    """
    probe = task_probe(item["fit"], fit_beliefs, item["held_out"], held_out_beliefs).metrics()
    place = "episode_0/before_reward"
    rows = np.arange(len(exploration.target))
    of_target = probability[rows, ..., exploration.target]  # [M, K, H + 1]
    before = _before_evidence(exploration)
    return {
        "probe": probe,
        "before_any_reward": {
            "accuracy": probe[place],
            "achievable": probe[f"{place}_achievable"],
        },
        "rollouts": {
            "target": float(of_target[rows, 0, before].mean()),
            "most_probable": float(probability[rows, 0, before].max(axis=-1).mean()),
        },
        "after_wrong_drawer": _after_wrong_drawer(exploration, probability, of_target),
    }


def _before_evidence(exploration: Exploration) -> NDArray[np.int64]:
    """Return the last step of each first episode before a reward or an open drawer, [M]."""
    # An open drawer without reward is evidence too: it is the wrong one.
    evidence = (exploration.reward[:, 0] > 0) | exploration.opened[:, 0].any(axis=-1)
    first = np.where(evidence.any(axis=1), evidence.argmax(axis=1), evidence.shape[1])
    return np.maximum(first - 1, 0)


def _after_wrong_drawer(
    exploration: Exploration, probability: Floats, of_target: Floats
) -> AfterWrongDrawer | None:
    first = exploration.first_opened[:, 0]
    wrong = (first >= 0) & ~exploration.success[:, 0]
    if not wrong.any() or of_target.shape[1] < 2:
        return None
    # The test of memory: a belief that kept what the first episode showed rules that drawer out.
    told = probability.argmax(axis=-1) == exploration.target[:, None, None]
    return {
        "meta_episodes": int(wrong.sum()),
        "end_of_episode": float(of_target[wrong, 0, -1].mean()),
        "start_of_next": float(of_target[wrong, 1, 0].mean()),
        "corrected": share_of(told[wrong, 1, 0]),
        "curve": of_target[wrong].mean(axis=0).reshape(-1).tolist(),
    }
