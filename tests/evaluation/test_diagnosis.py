"""What beliefs say about the task: two made-up filters, one that remembers and one that is fooled.

Beliefs here are numbers whose meaning is known, so every reported figure can be told beforehand.
"""

from typing import Any

import numpy as np
import pytest
import torch

from offline_meta_rl.evaluation.diagnosis import MOST_ROWS, diagnose, task_reader
from offline_meta_rl.evaluation.exploration import Exploration

HORIZON, EPISODES = 4, 2
STEPS = EPISODES * (HORIZON + 1)


def meta_trajectories(seed: int, *, exploration: bool, count: int = 120) -> dict[str, torch.Tensor]:
    """Return segments whose reward would arrive at step 3, kept only if they are of the task."""
    rng = np.random.default_rng(seed)
    task = rng.integers(2, size=count)
    segment = rng.integers(2, size=(count, EPISODES)) if exploration else np.stack([task] * 2, 1)
    reward = np.zeros((count, EPISODES, HORIZON + 1), dtype=np.float32)
    reward[:, :, 3:] = (segment == task[:, None])[..., None]
    return {
        "task": torch.from_numpy(task),
        "segment_task": torch.from_numpy(segment),
        "reward": torch.from_numpy(reward.reshape(count, STEPS)),
        "mask": torch.ones(count, STEPS, dtype=torch.bool),
        "first_reward": torch.full((count, EPISODES), 3),
    }


def beliefs(batch: dict[str, torch.Tensor], *, remembers: bool) -> torch.Tensor:
    """Return +1 or -1 for the task believed in, 0 for doubt, beside noise, [M, S, 2].

    One filter learns the task at the first segment's step 3 and keeps it; the other believes in the
    task of the segment it watches.
    """
    segment, task = batch["segment_task"], batch["task"]
    generator = torch.Generator().manual_seed(1)
    believed = torch.zeros(len(task), EPISODES, HORIZON + 1)
    if remembers:
        believed[:] = (2.0 * task - 1.0)[:, None, None]
        believed[:, 0, :3] = 0.0
    else:
        believed[:] = (2.0 * segment - 1.0)[..., None]
    noise = torch.randn(len(task), STEPS, generator=generator)
    return torch.stack([believed.flatten(1), noise], dim=-1)


def opens_left(*, remembers: bool) -> tuple[Exploration, np.ndarray[Any, Any]]:
    """Return meta-episodes that open drawer 0 at step 3, and what the belief was in them."""
    target = np.array([0, 1, 0, 1])
    reward = np.zeros((4, EPISODES, HORIZON + 1), dtype=np.float32)
    opened = np.zeros((4, EPISODES, HORIZON + 1, 2), dtype=bool)
    opened[:, :, 3:, 0] = True
    reward[target == 0, :, 3:] = 1.0
    belief = np.zeros((4, EPISODES, HORIZON + 1, 2), dtype=np.float32)
    if remembers:
        belief[..., 0] = (2.0 * target - 1.0)[:, None, None]
        belief[:, 0, :3, 0] = 0.0
    else:
        belief[..., 0] = -1.0  # it watches the arm go left
    frames = np.zeros((0, EPISODES, HORIZON + 1, 1, 1, 1), dtype=np.uint8)
    return Exploration(target, reward, opened, belief, frames), belief


def diagnosis(*, exploration: bool, remembers: bool) -> dict[str, Any]:
    fit, held_out = (meta_trajectories(seed, exploration=exploration) for seed in (0, 1))
    own = [beliefs(batch, remembers=remembers) for batch in (fit, held_out)]
    rollouts, belief = opens_left(remembers=remembers)
    probability = task_reader(fit, own[0]).probabilities(belief)
    item = {"fit": fit, "held_out": held_out}
    return diagnose(item, own[0], own[1], rollouts, probability)


def test_a_belief_that_remembers_is_corrected_by_a_wrong_drawer() -> None:
    found = diagnosis(exploration=True, remembers=True)
    assert found["before_any_reward"]["accuracy"] == pytest.approx(0.5, abs=0.12)
    assert found["before_any_reward"]["achievable"] == 0.5
    assert found["probe"]["episode_1/before_reward"] == 1.0
    assert found["rollouts"]["target"] == pytest.approx(0.5, abs=0.15)
    after = found["after_wrong_drawer"]
    assert after["meta_episodes"] == 2
    assert after["corrected"]["share"] == 1.0
    assert after["end_of_episode"] > 0.9
    assert after["start_of_next"] > 0.9
    assert len(after["curve"]) == STEPS
    assert max(after["curve"][:3]) < 0.7


def test_a_belief_that_watches_the_arm_is_sure_and_stays_wrong() -> None:
    found = diagnosis(exploration=False, remembers=False)
    assert found["before_any_reward"]["accuracy"] == 1.0
    assert found["rollouts"]["most_probable"] > 0.9
    assert found["rollouts"]["target"] == pytest.approx(0.5, abs=0.05)  # right for half of them
    after = found["after_wrong_drawer"]
    assert after["corrected"]["share"] == 0.0
    assert max(after["curve"]) < 0.1


def test_no_wrong_drawer_no_entry() -> None:
    fit = meta_trajectories(0, exploration=True)
    own = beliefs(fit, remembers=True)
    rollouts, belief = opens_left(remembers=True)
    right = rollouts.target == 0
    kept = Exploration(
        *(getattr(rollouts, name)[right] for name in ("target", "reward", "opened", "belief")),
        rollouts.frames,
    )
    probability = task_reader(fit, own).probabilities(belief[right])
    found = diagnose({"fit": fit, "held_out": fit}, own, own, kept, probability)
    assert found["after_wrong_drawer"] is None


def test_padding_is_not_read_and_rows_are_limited() -> None:
    fit = meta_trajectories(0, exploration=True, count=2400)
    own = beliefs(fit, remembers=True)
    assert own[..., 0].numel() > MOST_ROWS
    fit["mask"][:, 7:] = False
    own[:, 7:] = torch.nan
    probability = task_reader(fit, own).probabilities(own[:, 5].numpy())
    assert (probability.argmax(axis=1) == fit["task"].numpy()).all()
