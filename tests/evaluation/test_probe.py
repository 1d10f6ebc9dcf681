"""The task-decoding probe: what it finds, where it looks, what could be found at best."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from tensordict import TensorDict

from offline_meta_rl.evaluation.probe import PLACES, LinearProbe, achievable, positions, task_probe

HORIZON = 4


def meta_trajectories(
    count: int, *, num_tasks: int = 2, num_episodes: int = 2, seed: int = 0, success: float = 1.0
) -> TensorDict:
    """Return stitched episodes of random lengths, rewarded at random steps on, or never."""
    rng = np.random.default_rng(seed)
    size = (count, num_episodes)
    segment, task = rng.integers(num_tasks, size=size), rng.integers(num_tasks, size=count)
    length = rng.integers(2, HORIZON + 1, size)
    onset = np.where(rng.random(size) < success, rng.integers(1, length + 1), length + 1)
    step = np.arange(HORIZON + 1)
    mask = step <= length[..., None]
    kept = (segment == task[:, None])[..., None]
    reward = (step >= onset[..., None]) & mask & kept
    arrays = {
        "segment_task": segment,
        "task": task,
        "first_reward": onset,
        "mask": mask.reshape(count, -1),
        "reward": reward.reshape(count, -1).astype(np.float32),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return TensorDict(tensors, batch_size=[count])


def remembering(batch: TensorDict, *, forget: bool, seed: int) -> torch.Tensor:
    """Return beliefs that tell what rewards have shown: since ever, or in this episode alone."""
    shape = batch["first_reward"].shape
    reward = batch["reward"].view(*shape, -1)
    step = torch.arange(reward.shape[-1])
    missed = (step >= batch["first_reward"][..., None]) & batch["mask"].view_as(reward)
    missed &= (batch["segment_task"] != batch["task"][:, None])[..., None]
    sign = 1.0 - 2.0 * batch["segment_task"][..., None]
    hint = sign * (reward - missed.float())
    seen = hint.cumsum(2) if forget else hint.flatten(1).cumsum(1).view_as(hint)
    noise = torch.randn(*seen.shape, 3, generator=torch.Generator().manual_seed(seed))
    noise[..., 0] = seen.clamp(-1, 1) + 0.01 * noise[..., 0]
    return noise.flatten(1, 2)


def probed(*, forget: bool = False, shuffle: Any = None) -> Any:
    parts = [meta_trajectories(400, seed=seed) for seed in (0, 1)]
    beliefs = [remembering(part, forget=forget, seed=seed) for seed, part in enumerate(parts)]
    return task_probe(parts[0], beliefs[0], parts[1], beliefs[1], shuffle=shuffle)


def test_memory_is_found_where_it_is() -> None:
    result = probed()
    first, second = result.accuracy
    assert (np.abs(first[:2] - 0.5) < 0.08).all()  # nothing is known before the first reward
    assert (second == 1.0).all()
    assert first[2] == 1.0
    assert result.achievable.tolist() == [[0.5, 0.5, 1.0], [1.0, 1.0, 1.0]]
    forgetful = probed(forget=True).accuracy
    assert (np.abs(forgetful[:, :2] - 0.5) < 0.08).all()
    assert (forgetful[:, 2] == 1.0).all()


def test_shuffled_labels_are_at_chance() -> None:
    result = probed(shuffle=np.random.default_rng(0))
    assert (np.abs(result.accuracy - 0.5) < 0.08).all()


def test_metrics_have_names() -> None:
    metrics = probed().metrics()
    assert len(metrics) == 12
    assert metrics["episode_1/before_reward"] == 1.0
    assert metrics["episode_0/first_achievable"] == 0.5


def test_positions_against_a_loop() -> None:
    batch = meta_trajectories(30, success=0.6)
    found = positions(batch)
    assert found.shape == (30, 2, len(PLACES))
    reward_free = 0
    for row, segment in itertools.product(range(30), range(2)):
        start = segment * (HORIZON + 1)
        valid = batch["mask"][row, start : start + HORIZON + 1].nonzero()[:, 0].tolist()
        onset = int(batch["first_reward"][row, segment])
        before = [step for step in valid if step < onset]
        reward_free += onset not in valid
        expected = [start, start + before[-1], start + valid[-1]]
        assert found[row, segment].tolist() == expected
    assert reward_free


@pytest.mark.parametrize(("num_tasks", "success"), [(2, 1.0), (3, 1.0), (3, 0.5)])
def test_achievable_against_bayes_rule(num_tasks: int, success: float) -> None:
    batch = meta_trajectories(200, num_tasks=num_tasks, num_episodes=3, success=success)
    expected = np.zeros((3, 3))
    for one in batch:
        reward = one["reward"].view(3, -1).any(1).tolist()
        collected = (one["first_reward"] <= one["mask"].view(3, -1).sum(1) - 1).tolist()
        segment, task = one["segment_task"].tolist(), int(one["task"])
        for episode, place in np.ndindex(3, 3):
            seen = episode + (place == 2)
            fits = [
                all(reward[j] == (collected[j] and segment[j] == candidate) for j in range(seen))
                for candidate in range(num_tasks)
            ]
            expected[episode, place] += fits[task] / sum(fits) / len(batch)
    np.testing.assert_allclose(achievable(batch), expected)
    if (num_tasks, success) == (3, 1.0):  # a third at first, then 1/3 + 2/3 / 2
        assert abs(expected[1, 0] - 2 / 3) < 0.05


def test_probe_is_the_penalised_maximum_of_likelihood() -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(60, 4)) * 3 + 5, rng.integers(3, size=60) * 2
    probe = LinearProbe(rows, labels, penalty=0.1)
    assert probe.classes.tolist() == [0, 2, 4]
    scaled = np.concatenate([(rows - rows.mean(0)) / rows.std(0), np.ones((60, 1))], 1)

    def loss(weight: np.ndarray) -> float:
        likelihood = log_softmax(scaled @ weight, axis=1)[np.arange(60), labels // 2].mean()
        return float(-likelihood + 0.05 * (weight[:-1] ** 2).sum())

    best = loss(probe.weight)
    for index in np.ndindex(probe.weight.shape):
        for change in (-0.01, 0.01):
            other = probe.weight.copy()
            other[index] += change
            assert loss(other) > best - 1e-9
    np.testing.assert_allclose(probe.probabilities(rows).sum(1), 1.0)
    expected = np.exp(log_softmax(scaled @ probe.weight, axis=1))
    np.testing.assert_allclose(probe.probabilities(rows), expected)


def test_constant_inputs_do_no_harm() -> None:
    rows = np.concatenate([np.ones((20, 1)), np.repeat([[0.0], [1.0]], 10, 0)], 1)
    labels = np.repeat([3, 8], 10)
    assert LinearProbe(rows, labels).accuracy(rows, labels) == 1.0
