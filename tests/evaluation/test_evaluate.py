"""The evaluation protocol: formula, batching, control, reproducibility, bad input."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import StepResult
from offline_meta_rl.evaluation.evaluate import (
    EvaluationResult,
    Protocol,
    evaluate,
    normalised_return,
)

TASKS = [3, 11, 27]
FAMILY = FAMILIES["point_robot"]
PARAMETERS = FAMILY.task_parameters(0)[TASKS]
REFERENCES = {"random": np.full(3, -20.0), "best_behaviour": np.full(3, -8.0)}


class GoalPolicy:
    """Walks to a goal [T, 2] as fast as it can; stands still without one."""

    sigma = 0.5

    def __init__(self, goal: Tensor | None) -> None:
        self.goal = goal

    def __call__(self, observation: Tensor) -> Tensor:
        if self.goal is None:
            return torch.zeros_like(observation)
        return (10 * (self.goal[:, None] - observation)).clamp(-1, 1)


def adapt_to_goal(context: TensorDict, num_steps: int) -> GoalPolicy:
    """Read the goal that the test put into the context."""
    return GoalPolicy(context["goal"].mean(dim=1) if num_steps else None)


@pytest.fixture
def contexts() -> TensorDict:
    goals = torch.from_numpy(PARAMETERS).float()[:, None].expand(-1, 4, -1)
    return TensorDict({"goal": goals.clone()}, batch_size=[3, 4])


def run(contexts: TensorDict, **fields: Any) -> EvaluationResult:
    protocol = Protocol(episodes=4, **fields)
    return evaluate(adapt_to_goal, contexts, FAMILY, PARAMETERS, REFERENCES, protocol, tasks=TASKS)


def test_normalised_return_is_a_hand_worked_number() -> None:
    # (-80 + 280) / (-30 + 280) = 200 / 250; random is 0, the best behaviour is 1.
    values = np.array([-80.0, -280.0, -30.0])
    result = normalised_return(values, np.full(3, -280.0), np.full(3, -30.0))
    np.testing.assert_allclose(result, [0.8, 0.0, 1.0])


def test_normalised_return_needs_a_scale() -> None:
    with pytest.raises(ValueError, match=r"position 1 .* best_behaviour -5.0 and random -5.0"):
        normalised_return(np.zeros(2), np.array([-9.0, -5.0]), np.array([-3.0, -5.0]))


def test_adaptation_helps_on_its_own_context_only(contexts: TensorDict) -> None:
    own, other = run(contexts), run(contexts, context_source="other")
    assert own.task_returns(1).mean() > own.task_returns(0).mean() + 5
    assert (other.task_returns(1) < own.task_returns(1) - 5).all()
    # Standing still for 20 steps at distance 1 costs about 20.
    np.testing.assert_allclose(own.task_returns(0), -20.0, atol=1.0)
    np.testing.assert_array_equal(own.task_returns(0), other.task_returns(0))


def test_the_control_uses_the_next_tasks_context(contexts: TensorDict) -> None:
    rolled = contexts[torch.tensor([1, 2, 0])]
    other = run(contexts, context_source="other")
    np.testing.assert_array_equal(other.returns[1], run(rolled).returns[1])


def test_same_protocol_same_numbers_and_random_state_untouched(contexts: TensorDict) -> None:
    before = torch.get_rng_state()
    first, second = (run(contexts, stochastic=True, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for steps in (0, 1):
        np.testing.assert_array_equal(first.returns[steps], second.returns[steps])
    assert not np.array_equal(run(contexts, stochastic=True, seed=6).returns[1], first.returns[1])
    # Noise of standard deviation 0.5 keeps the robot off its goal.
    assert run(contexts).task_returns(1).mean() > first.task_returns(1).mean()


class CountingEngine:
    """The reward is the first action; every third environment diverges if asked to."""

    def __init__(self, num_envs: int, diverging: bool) -> None:
        self.num_envs, self.diverging = num_envs, diverging

    def reset(self, mask: Any = None) -> Any:
        return np.zeros((self.num_envs, 2), dtype=np.float32)

    def step(self, action: Any) -> StepResult:
        never = np.zeros(self.num_envs, dtype=bool)
        diverged = (np.arange(self.num_envs) % 3 == 0) & self.diverging
        reward = action[:, 0].astype(np.float64) + 100.0 * diverged
        return StepResult(self.reset(), reward, never, ~never, diverged, {"task": reward})

    def close(self) -> None:
        """Nothing to release."""


class CountingFamily:
    """Makes counting engines; episodes have one step."""

    horizon = 1

    def __init__(self, diverging: bool = False) -> None:
        self.diverging = diverging

    def make_engine(self, parameters: Any, *, seed: int, num_threads: Any = None) -> CountingEngine:
        return CountingEngine(len(parameters), self.diverging)


def constant_policy(context: TensorDict, num_steps: int) -> Any:
    """Every task and number of steps has its own constant action."""
    level = (0.1 * torch.arange(len(context)) + 0.01 * num_steps)[:, None, None]
    return lambda observation: level.expand(observation.shape).clone()


@pytest.mark.parametrize("diverging", [False, True])
def test_every_environment_gets_its_own_tasks_policy(contexts: TensorDict, diverging: bool) -> None:
    family: Any = CountingFamily(diverging)
    protocol = Protocol(episodes=6, adaptation_steps=(1, 3))
    result = evaluate(constant_policy, contexts, family, PARAMETERS, REFERENCES, protocol)
    for steps in (0, 1, 3):
        expected = [0.01 * steps, 0.1 + 0.01 * steps, 0.2 + 0.01 * steps]
        # Diverged episodes, which carry another reward here, do not count.
        np.testing.assert_allclose(result.task_returns(steps), expected, atol=1e-6)
        assert result.diverged[steps].sum() == (6 if diverging else 0)


def test_result_holds_all_that_is_promised(contexts: TensorDict) -> None:
    result = run(contexts, adaptation_steps=(2, 1)).to_dict()
    result = json.loads(json.dumps(result, allow_nan=False))
    assert set(result["after_n_steps"]) == {"1", "2"}
    assert result["after_adaptation"] == result["after_n_steps"]["2"]
    assert set(result["before_adaptation"]["per_task"]) == {"3", "11", "27"}
    per_task = result["after_adaptation"]["per_task"].values()
    for key in ("return", "normalised_return"):
        mean = np.mean([task[key] for task in per_task])
        assert result["after_adaptation"][key] == pytest.approx(mean)
    assert result["references"]["random"]["per_task"]["11"] == -20.0
    assert result["protocol"]["adaptation_steps"] == [2, 1]
    assert result["protocol"]["episodes"] == 4


def test_without_references_nothing_is_normalised(contexts: TensorDict) -> None:
    result = evaluate(adapt_to_goal, contexts, FAMILY, PARAMETERS, {}, Protocol(episodes=1))
    assert np.isnan(result.normalised_returns(1)).all()
    assert np.isfinite(result.task_returns(1)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_source": "none"}, r"context_source must be one of .* found 'none'"),
        ({"context_size": 0}, "context_size: expected at least 1, found 0"),
        ({"episodes": 0}, "episodes: expected at least 1, found 0"),
        ({"adaptation_steps": []}, r"adaptation_steps must be different numbers .* found \[\]"),
        ({"adaptation_steps": [0, 1]}, r"found \[0, 1\].* 0 is always evaluated"),
    ],
)
def test_bad_protocols(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(**fields)


def test_tasks_of_a_split() -> None:
    splits = {"default": {"train": [0, 2], "test": [1]}}
    assert Protocol().task_indices(splits, 3) == [1]
    assert Protocol(tasks="train").task_indices(splits, 3) == [0, 2]
    assert Protocol(tasks=[2, 1]).task_indices(splits, 3) == [2, 1]
    with pytest.raises(ValueError, match=r"Unknown split 'half': expected one of \['default'\]"):
        Protocol(split="half").task_indices(splits, 3)
    with pytest.raises(ValueError, match=r"Unknown tasks \[7\].* from 0 to 2"):
        Protocol(tasks=[1, 7]).task_indices(splits, 3)
    with pytest.raises(ValueError, match="'train', 'test' or a list of indices, found 'all'"):
        Protocol(tasks="all").task_indices(splits, 3)


def test_bad_evaluations(contexts: TensorDict) -> None:
    with pytest.raises(ValueError, match="contexts of 3 tasks, found 2"):
        run(contexts[:2])
    protocol = Protocol(context_source="other", episodes=1)
    with pytest.raises(ValueError, match="needs at least 2 evaluated tasks, found 1"):
        evaluate(adapt_to_goal, contexts[:1], FAMILY, PARAMETERS[:1], {}, protocol)
    contexts["goal"][1] = torch.nan
    with pytest.raises(FloatingPointError, match="actions that are not finite"):
        run(contexts)
