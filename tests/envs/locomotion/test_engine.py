"""The batched engines against the gymnasium classes, and their own promises."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.drawers.family import DrawersLiteEngine
from offline_meta_rl.envs.locomotion.engine import MujocoEngine

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN.*infinity")

# The Sawyer's own tests do the same where its packages are installed.
NAMES = [name for name in FAMILIES if name != "two_drawer_sawyer"]


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_check_env(name: str) -> None:
    env = gymnasium.make(FAMILIES[name].env_id, task=1)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def put_states(engine: Any, envs: list[gymnasium.Env[Any, Any]]) -> None:
    """Put every environment of the engine where the gymnasium environment is."""
    for index, env in enumerate(envs):
        inner: Any = env.unwrapped
        if isinstance(engine, MujocoEngine):
            data = inner.data
            engine.state[index] = np.concatenate([[data.time], data.qpos, data.qvel])
            engine.warmstart[index] = data.qacc_warmstart
        elif isinstance(engine, DrawersLiteEngine):
            for name in ("hand", "opening"):
                getattr(engine, name)[index] = getattr(inner.engine, name)[0]
        else:
            engine.position[index] = inner.position


@pytest.mark.parametrize("name", NAMES)
def test_equals_gymnasium_for_200_steps(name: str) -> None:
    family = FAMILIES[name]
    tasks = [0, family.num_tasks // 2, family.num_tasks - 1]
    engine = family.make_engine(family.task_parameters(5)[tasks], seed=0, num_threads=2)
    envs = [
        gymnasium.make(family.env_id, task=task, task_seed=5, disable_env_checker=True)
        for task in tasks
    ]
    engine.reset()
    for env in envs:
        env.reset(seed=1)
    random = np.random.default_rng(0)
    ends = 0
    for _ in range(200):
        put_states(engine, envs)
        action = random.uniform(-1.2, 1.2, (len(tasks), family.action_size)).astype(np.float32)
        result = engine.step(action)
        for index, env in enumerate(envs):
            observation, reward, terminated, truncated, _ = env.step(action[index])
            np.testing.assert_allclose(result.observation[index], observation, rtol=0, atol=1e-6)
            assert result.reward[index] == pytest.approx(reward, abs=1e-6)
            assert bool(result.terminated[index]) == terminated
            assert bool(result.truncated[index]) == truncated
        ended = result.terminated | result.truncated
        ends += int(ended.sum())
        engine.reset(ended)
        for index in np.flatnonzero(ended):
            envs[index].reset()
    # Horizons reached at least; walkers fall within 200 steps of random actions.
    expected = {"walker_params": 4}.get(name, len(tasks) * (200 // family.horizon))
    assert ends >= expected
    engine.close()


@pytest.mark.parametrize("name", ["cheetah_vel", "walker_params"])
def test_divergence_ends_one_episode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to a file in the working directory
    family = FAMILIES[name]
    engine = family.make_engine(family.task_parameters(0)[:2], seed=0, num_threads=1)
    engine.reset()
    still = np.zeros((2, family.action_size))
    assert not engine.step(still).diverged.any()
    engine.qvel[0] = 1e12
    result = engine.step(still)
    assert result.diverged.tolist() == [True, False]
    assert result.truncated.tolist() == [True, False]
    assert not result.terminated[0]
    assert np.isfinite(result.observation).all()
    engine.reset(result.truncated)
    assert not engine.step(still).diverged.any()


@pytest.mark.parametrize("name", ["ant_dir", "point_robot", "two_drawer_lite"])
def test_state_dict_continues_exactly(name: str) -> None:
    family = FAMILIES[name]
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, family.action_size))
    first = family.make_engine(family.task_parameters(0)[:2], seed=0)
    first.reset()
    for action in actions[:3]:
        first.step(action)
    state = first.state_dict()
    second = family.make_engine(family.task_parameters(0)[:2], seed=9)
    second.load_state_dict(state)
    for action in actions[3:]:
        a, b = first.step(action), second.step(action)
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(a.reward, b.reward)
    np.testing.assert_array_equal(first.reset(), second.reset())
    assert all(isinstance(value, torch.Tensor) for value in state.values()), (
        "checkpoints hold tensors"
    )


def test_same_seed_same_start_and_partial_reset() -> None:
    family = FAMILIES["cheetah_vel"]
    rows = family.task_parameters(0)[:3]
    engines = [family.make_engine(rows, seed=seed) for seed in (0, 0, 1)]
    starts = [engine.reset() for engine in engines]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.abs(starts[0] - starts[2]).max() > 1e-3
    moved = engines[0].step(np.ones((3, 6))).observation
    after = engines[0].reset(np.array([False, True, False]))
    np.testing.assert_array_equal(after[[0, 2]], moved[[0, 2]])
    assert np.abs(after[1] - moved[1]).max() > 1e-3
