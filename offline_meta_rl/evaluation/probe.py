"""The task-decoding probe: how well a linear readout tells the task from the belief.

Multinomial logistic regression from beliefs to the target task i*, fitted on one set of meta-
trajectories and scored on another, around every boundary of episodes. If the filter remembers, it
reads what the rewards so far have told, and no more. Shapes: M meta-trajectories, K episodes of
each, H steps of the longest, S = K (H + 1) positions, N tasks, Z belief size.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import Tensor

PLACES = ("first", "before_reward", "last")
"""Where a segment is probed: at its first observation, at the last one before its first reward (as
it was collected, whether the reward is kept or not), and at its last."""

Floats = NDArray[np.float64]


class ProbeResult(NamedTuple):
    """Shares of meta-trajectories whose task is told, by episode and ``PLACES``, [K, 3] each.

    Attributes:
        accuracy: Accuracy of the probe on meta-trajectories that it was not fitted on.
        achievable: On average, by whoever knows the tasks of the segments and which of their
            rewards were seen, and nothing else.
    """

    accuracy: Floats
    achievable: Floats

    def metrics(self) -> dict[str, float]:
        """Return every number by name, ``episode_2/before_reward`` and so on."""
        return {
            f"episode_{episode}/{place}{suffix}": float(table[episode, number])
            for suffix, table in (("", self.accuracy), ("_achievable", self.achievable))
            for episode in range(len(table))
            for number, place in enumerate(PLACES)
        }


class LinearProbe:
    """Multinomial logistic regression on standardised inputs.

    Args:
        inputs: [M, Z].
        labels: [M], any integers.
        penalty: Factor of half the squared weights, for each input row.

    Attributes:
        classes: The labels that occur, sorted.
    """

    def __init__(self, inputs: ArrayLike, labels: ArrayLike, *, penalty: float = 1e-2) -> None:
        rows = np.asarray(inputs, dtype=np.float64)
        self.mean, spread = rows.mean(axis=0), rows.std(axis=0)
        # A number of the belief that never varies says nothing; it must not divide by zero.
        self.scale = np.where(spread > 1e-9, spread, 1.0)
        self.classes, number = np.unique(np.asarray(labels), return_inverse=True)
        self.weight = _fit(self._with_one(rows), number, len(self.classes), penalty)

    def probabilities(self, inputs: ArrayLike) -> Floats:
        """Return the probability of each of ``classes``, [..., Z] -> [..., N]."""
        rows = np.asarray(inputs, dtype=np.float64)
        result: Floats = softmax(self._with_one(rows) @ self.weight, axis=-1)
        return result

    def accuracy(self, inputs: ArrayLike, labels: ArrayLike) -> float:
        """Return the share of rows [M, Z] whose most probable class is the label [M]."""
        found = self.classes[self.probabilities(inputs).argmax(axis=-1)]
        return float((found == np.asarray(labels)).mean())

    def _with_one(self, rows: Floats) -> Floats:
        """Standardise, and append a column of ones."""
        scaled = (rows - self.mean) / self.scale
        return np.concatenate([scaled, np.ones((*rows.shape[:-1], 1))], axis=-1)


def task_probe(
    fit: Mapping[str, Tensor],
    fit_beliefs: Tensor,
    held_out: Mapping[str, Tensor],
    held_out_beliefs: Tensor,
    *,
    shuffle: np.random.Generator | None = None,
) -> ProbeResult:
    """Fit a probe for every episode and place, and score it on other meta-trajectories.

    Args:
        fit: Task [M], segment_task [M, K], first_reward [M, K], reward [M, S] and mask [M, S] of
            the meta-trajectories to fit on, as ``EpisodeTable.gather`` returns them.
        fit_beliefs: Beliefs of these, [M, S, Z].
        held_out: The same fields of the meta-trajectories to score.
        held_out_beliefs: Beliefs of the latter, [M, S, Z].
        shuffle: Shuffles all labels first; then the accuracy has to be that of guessing.
    """
    places, scored = positions(fit), positions(held_out)
    labels, truth = (_array(part["task"]) for part in (fit, held_out))
    if shuffle is not None:
        # The control: a probe that beats chance with shuffled labels has an error.
        labels, truth = shuffle.permutation(labels), shuffle.permutation(truth)
    accuracy = np.zeros(places.shape[1:])
    for episode, place in np.ndindex(accuracy.shape):
        probe = LinearProbe(_at(fit_beliefs, places[:, episode, place]), labels)
        rows = _at(held_out_beliefs, scored[:, episode, place])
        accuracy[episode, place] = probe.accuracy(rows, truth)
    return ProbeResult(accuracy, achievable(held_out))


def positions(batch: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """Return where each segment is probed, as positions of [S]: [M, K, 3]."""
    first_reward = _array(batch["first_reward"])
    mask = _array(batch["mask"]).reshape(*first_reward.shape, -1)
    length = mask.sum(axis=-1) - 1
    # Segment k starts at position k (H + 1).
    start = np.arange(mask.shape[1]) * mask.shape[2]
    within = np.stack([np.zeros_like(length), np.minimum(first_reward - 1, length), length], axis=2)
    return start[:, None] + within


def achievable(batch: Mapping[str, Tensor]) -> Floats:
    """Return how often the task can be told from segments and rewards alone, [K, 3].

    A rewarded segment tells the task. A segment that was collected with a reward and shows none
    rules its task out; all tasks that are left are equally probable.
    """
    segment, task = _array(batch["segment_task"]), _array(batch["task"])
    tasks = np.unique(np.concatenate([segment.ravel(), task]))
    mask = _array(batch["mask"]).reshape(*segment.shape, -1)
    succeeded = _array(batch["first_reward"]) < mask.sum(axis=-1)
    told = succeeded & (_array(batch["reward"]).reshape(mask.shape) != 0).any(axis=-1)
    # Its reward was taken away in stitching, so its task is not the target.
    failed = (succeeded & ~told)[..., None] & (segment[..., None] == tasks)
    known, excluded = np.zeros(len(task), dtype=bool), np.zeros((len(task), len(tasks)), dtype=bool)
    result = np.zeros((segment.shape[1], len(PLACES)))
    for episode in range(len(result)):
        # ``first`` and ``before_reward``: only earlier episodes count there.
        result[episode, :2] = _chance(known, excluded)
        known |= told[:, episode]
        excluded |= failed[:, episode]
        result[episode, 2] = _chance(known, excluded)
    return result


def _chance(known: NDArray[np.bool_], excluded: NDArray[np.bool_]) -> float:
    """Return the mean probability of guessing the task with this knowledge."""
    return float(np.where(known, 1.0, 1.0 / (~excluded).sum(axis=1)).mean())


def _fit(rows: Floats, number: NDArray[np.int64], classes: int, penalty: float) -> Floats:
    """Return the weights [Z + 1, N] with the smallest penalised cross-entropy."""
    target = np.eye(classes)[number]
    free = np.ones((rows.shape[1], 1))
    free[-1] = 0.0  # the column of ones is not penalised

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight = flat.reshape(rows.shape[1], classes)
        scores = rows @ weight
        log_probability = scores - logsumexp(scores, axis=1, keepdims=True)
        # Gradient of the cross-entropy in the scores: softmax minus one-hot.
        error = (np.exp(log_probability) - target) / len(rows)
        value = -(log_probability * target).sum() / len(rows)
        value += 0.5 * penalty * float((free * weight**2).sum())
        return value, (rows.T @ error + penalty * free * weight).ravel()

    start = np.zeros(rows.shape[1] * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    result: Floats = found.x.reshape(rows.shape[1], classes)
    return result


def _at(beliefs: Tensor, place: NDArray[np.int64]) -> Floats:
    """Return the belief of each meta-trajectory at its own position, [M, Z]."""
    chosen = beliefs[torch.arange(len(place)), torch.from_numpy(place)]
    return chosen.detach().cpu().double().numpy()


def _array(values: Tensor) -> NDArray:
    """Return a tensor's numbers."""
    return values.cpu().numpy()
