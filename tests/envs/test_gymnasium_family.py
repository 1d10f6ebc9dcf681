"""Task families registered by somebody else."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from offline_meta_rl.envs import family_of
from offline_meta_rl.envs.gymnasium_family import GymnasiumFamily
from offline_meta_rl.evaluation.rollout import run_episodes

ENV_ID = "tests/Drift-v0"


class Drift(gymnasium.Env[Any, Any]):
    """A point on a line that drifts by ``0.1 * task``; falls beyond 1; actions in [-2, 2]."""

    num_tasks = 3
    version = 4
    observation_space = spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, task: int = 0, scale: float = 1.0) -> None:
        self.task, self.scale, self.position = task, scale, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = float(self.np_random.uniform(-0.01, 0.01))
        return np.array([self.position], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position += 0.1 * self.task + 0.1 * self.scale * float(action[0])
        observation = np.array([self.position], dtype=np.float32)
        return observation, -abs(self.position), abs(self.position) > 1.0, False, {}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(ENV_ID, entry_point=Drift, max_episode_steps=12)
    gymnasium.register("tests/Endless-v0", entry_point=Drift)
    gymnasium.register("tests/Untasked-v0", entry_point=untasked, max_episode_steps=3)
    yield
    for env_id in (ENV_ID, "tests/Endless-v0", "tests/Untasked-v0"):
        gymnasium.registry.pop(env_id)


def test_family_from_a_gymnasium_id() -> None:
    family = family_of({"id": ENV_ID})
    assert isinstance(family, GymnasiumFamily)
    assert (family.num_tasks, family.horizon, family.version) == (3, 12, 4)
    assert (family.observation_size, family.action_size) == (1, 1)
    assert family.splits == {"default": ((0, 1, 2), (0, 1, 2))}
    assert family.task_features(family.task_parameters(0)).tolist() == np.eye(3).tolist()
    assert family_of({"id": ENV_ID, "num_tasks": 2, "kwargs": {"scale": 2.0}}).num_tasks == 2


def test_module_is_imported_first() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        family_of({"id": ENV_ID, "module": "no_such_module"})


def test_rollout_of_all_tasks() -> None:
    family = GymnasiumFamily(ENV_ID)
    engine = family.make_engine(family.task_parameters(0), seed=0)
    half = np.full((3, 1), 0.5, dtype=np.float32)  # rescaled to 1, so a step of 0.1 (task + 1)
    episodes = run_episodes(engine, lambda observation: half, family.horizon)
    engine.close()
    for task in range(3):
        length = episodes.lengths[task]
        moved = episodes.next_observation[:length, task, 0] - episodes.observation[:length, task, 0]
        np.testing.assert_allclose(moved, 0.1 * (task + 1), atol=1e-6)
        assert episodes.terminated[length - 1, task]
        assert episodes.returns[task] == pytest.approx(episodes.reward[:length, task].sum())


def test_truncation_is_not_termination_and_same_seed_same_start() -> None:
    family = GymnasiumFamily(ENV_ID)
    zero = np.zeros((1, 1), dtype=np.float32)
    starts = []
    for _ in range(2):
        engine = family.make_engine(np.zeros((1, 1)), seed=3)
        episodes = run_episodes(engine, lambda observation: zero, family.horizon)
        assert episodes.lengths.tolist() == [12]
        assert episodes.truncated[-1, 0]
        assert not episodes.terminated.any()
        starts.append(episodes.observation[0, 0, 0])
    assert starts[0] == starts[1]


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match="expected max_episode_steps where it is registered"):
        GymnasiumFamily("tests/Endless-v0")
    with pytest.raises(ValueError, match="expected an attribute num_tasks"):
        GymnasiumFamily("tests/Untasked-v0")
    engine = GymnasiumFamily(ENV_ID).make_engine(np.zeros((1, 1)), seed=0)
    with pytest.raises(RuntimeError, match="cannot be saved in a checkpoint"):
        engine.state_dict()
    with pytest.raises(RuntimeError, match="cannot be saved in a checkpoint"):
        engine.load_state_dict({})


def untasked(task: int = 0) -> gymnasium.Env[Any, Any]:
    """Return an environment that does not tell its number of tasks."""
    env = Drift(task)
    env.num_tasks = None  # type: ignore[assignment]
    return env
