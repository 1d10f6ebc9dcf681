"""The Sawyer with two drawers: dynamics, reward, seeds, states, threads and what the agent sees."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import matplotlib.image
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from offline_meta_rl.behaviour import references
from offline_meta_rl.behaviour.collect import collect
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data_tools.validate import validate
from offline_meta_rl.envs.sawyer.env import TwoDrawerSawyerEnv
from offline_meta_rl.envs.sawyer.family import OPEN, TwoDrawerSawyer, TwoDrawerSawyerEngine
from offline_meta_rl.envs.sawyer.scene import DRAWER_X
from offline_meta_rl.envs.sawyer.simulator import START, START_NOISE, agent_camera
from offline_meta_rl.reports.command import report_command as report

pytestmark = [
    pytest.mark.mujoco,
    pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="no metaworld"),
]

FAMILY = TwoDrawerSawyer()
BOTH = FAMILY.task_parameters(0)
HORIZON = FAMILY.horizon


@pytest.fixture(scope="module")
def gl() -> None:
    try:
        agent_camera(64).close()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def engine(gl: None) -> Iterator[TwoDrawerSawyerEngine]:
    made = FAMILY.make_engine(BOTH, seed=0, num_threads=1)
    yield made
    made.close()


def blind(parameters: NDArray[np.float64], seed: int = 0) -> TwoDrawerSawyerEngine:
    return TwoDrawerSawyerEngine(FAMILY, parameters, seed=seed, num_threads=1, images=False)


def scripted(
    engine: TwoDrawerSawyerEngine, generator: np.random.Generator | None = None
) -> NDArray[np.float64]:
    action = FAMILY.script(engine.state(), engine.parameters)
    if generator is not None:
        action = action + FAMILY.script_noise * generator.standard_normal(action.shape)
    return action


def test_family() -> None:
    assert FAMILY.observation_size == 3 * 64 * 64
    assert FAMILY.observation_space["dtype"] == "uint8"
    assert FAMILY.splits["default"] == ((0, 1), (0, 1))
    assert FAMILY.task_features(BOTH).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match="Unknown task 2 of two_drawer_sawyer: expected 0 to 1"):
        FAMILY.parameters_of(2, seed=0)


def test_script_opens_each_drawer_and_the_image_shows_it(engine: TwoDrawerSawyerEngine) -> None:
    first = engine.reset()
    assert first.dtype == np.uint8
    assert first.shape == (2, 3, 64, 64)
    assert not engine.opened.any()
    rewards = []
    for step in range(HORIZON):
        result = engine.step(scripted(engine))
        opened = np.diagonal(engine.opening) > OPEN
        np.testing.assert_array_equal(result.reward, opened)
        assert (result.truncated == (step == HORIZON - 1)).all()
        assert not result.terminated.any()
        rewards.append(result.reward)
    assert np.diff(rewards, axis=0).min() >= 0.0, "an open drawer stays open"
    left, right = np.sum(rewards, axis=0)
    assert left > right > 5, "the left drawer is open sooner"
    np.testing.assert_allclose(engine.opening, 0.155 * np.eye(2), atol=0.015)

    # The inside of an open drawer is green above its case; the robot's left is the image's right.
    for images, shown in ((first, [[0, 0], [0, 0]]), (result.observation, [[1, 0], [0, 1]])):
        green = images[:, 1].astype(int) - images[:, 0] > 15
        share = np.stack([green[:, 28:34, 36:58], green[:, 28:34, 6:28]], axis=1).mean(axis=(2, 3))
        np.testing.assert_allclose(share, shown, atol=0.4)


def test_hand_starts_nearer_the_left_drawer() -> None:
    engine = blind(np.repeat(BOTH, 40, axis=0))
    engine.reset()
    offset = engine.hand - START
    # At rest the arm's weight pulls the hand 4 mm below the mocap body.
    assert np.abs(offset - [0.0, 0.0, -0.004]).max() < START_NOISE + 0.002
    assert np.abs(offset).max(axis=0).min() > 0.7 * START_NOISE
    assert engine.hand[:, 0].max() < -0.1


def test_actions_move_the_hand() -> None:
    engine = blind(np.zeros((6, 1)))
    engine.reset()
    before = engine.hand.copy()
    action = np.concatenate([np.eye(3), -np.eye(3)])
    engine.step(3.0 * action)
    clipped = engine.hand - before
    for _ in range(2):
        engine.step(np.zeros((6, 3)))
    np.testing.assert_allclose(engine.hand - before, 0.03 * action, atol=0.003)
    assert (np.abs(clipped) < 0.03).all(), "an action is clipped, and the hand follows late"
    for _ in range(40):
        engine.step(np.tile([1.0, -1.0, -1.0], (6, 1)))
    np.testing.assert_allclose(engine.hand, np.tile([0.5, 0.4, 0.05], (6, 1)), atol=0.03)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_horizon_is_too_short_for_both_drawers(order: tuple[int, int]) -> None:
    """Without noise and without a pause the second one takes more steps than an episode has."""
    engine = blind(np.full((4, 1), order[0]))
    engine.reset()
    first, second = order
    way = np.sign(DRAWER_X[second] - DRAWER_X[first])
    done = np.zeros(4, dtype=bool)
    steps = 0
    while not (done & engine.opened[:, second]).any() and steps < 3 * HORIZON:
        done |= engine.opened[:, first]
        target = np.where(done, second, first)[:, None].astype(np.float64)
        action = FAMILY.script(engine.state(), target)
        # Up from the first handle and straight to the second drawer, past the open one.
        passing = done & (np.abs(engine.hand[:, 0] - DRAWER_X[second]) > 0.1)
        above = engine.hand[:, 2] > 0.155
        action[passing] = np.stack([way * above, 0.0 * above, 1.0 * ~above], axis=1)[passing]
        engine.step(action)
        steps += 1
    assert HORIZON + 3 < steps < 2 * HORIZON


def test_threads_and_seeds(engine: TwoDrawerSawyerEngine) -> None:
    pairs = np.repeat(BOTH, 2, axis=0)
    engines = [
        FAMILY.make_engine(pairs, seed=s, num_threads=n) for s, n in ((5, 1), (5, 3), (6, 2))
    ]
    starts = [each.reset() for each in engines]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any()
    generator = np.random.default_rng(0)
    for _ in range(3):
        action = generator.uniform(-1, 1, (4, 3))
        results = [each.step(action) for each in engines]
        np.testing.assert_array_equal(results[0].observation, results[1].observation)
        np.testing.assert_array_equal(engines[0].physics, engines[1].physics)
    before = engines[0].state()
    mask = np.array([False, True, False, False])
    image = engines[0].reset(mask)
    np.testing.assert_array_equal(image[~mask], results[0].observation[~mask])
    assert (image[mask] != results[0].observation[mask]).any()
    np.testing.assert_array_equal(engines[0].state()[~mask], before[~mask])
    assert engines[0].elapsed.tolist() == [3, 0, 3, 3]
    for each in engines:
        each.close()


def test_state_dict_continues_exactly(engine: TwoDrawerSawyerEngine) -> None:
    engine.reset()
    for _ in range(12):  # the fingers are at the handles
        last = engine.step(scripted(engine))
    state = engine.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = FAMILY.make_engine(BOTH, seed=9, num_threads=2)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.reset(np.zeros(2, dtype=bool)), last.observation)
    for _ in range(4):
        action = scripted(engine)
        a, b = engine.step(action), other.step(action)
        np.testing.assert_array_equal(a.observation, b.observation)
        np.testing.assert_array_equal(engine.physics, other.physics)
    assert engine.opening.max() > 0.05
    np.testing.assert_array_equal(engine.reset(), other.reset())
    other.close()


def test_divergence_ends_one_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to a file in the working directory
    engine = blind(BOTH)
    engine.reset()
    still = np.zeros((2, 3))
    assert not engine.step(still).diverged.any()
    engine.physics[0, 1:12] = 1e12
    result = engine.step(still)
    assert result.diverged.tolist() == [True, False]
    assert result.truncated.tolist() == [True, False]
    assert not result.reward.any()
    engine.reset(result.truncated)
    assert not engine.step(still).diverged.any()
    assert np.abs(engine.hand - START).max() < 0.03


def test_gymnasium_environment(gl: None) -> None:
    env = gymnasium.make(FAMILY.env_id, task=1, render_mode="rgb_array")
    assert env.spec is not None
    assert env.spec.max_episode_steps == HORIZON
    inner = env.unwrapped
    assert isinstance(inner, TwoDrawerSawyerEnv)
    check_env(inner, skip_close_check=True)
    env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 20

    # The engine's actions on the engine's state: the same images and rewards.
    engine = FAMILY.make_engine(BOTH[1:], seed=0, num_threads=1)
    engine.reset()
    env.reset()
    inner.simulator.physics = engine.physics[0]
    generator = np.random.default_rng(1)
    reward = 0.0
    for _ in range(HORIZON):
        action = scripted(engine, generator).astype(np.float32)
        image, reward, terminated, truncated, info = env.step(action[0].clip(-1, 1))
        result = engine.step(action)
        np.testing.assert_array_equal(image, result.observation[0])
        np.testing.assert_array_equal(info["opening"], engine.opening[0])
        assert reward == result.reward[0]
    assert reward == 1.0
    assert truncated
    assert not terminated
    assert inner.render().std() > 20
    engine.close()
    env.close()


def test_collection(gl: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoDrawerSawyer, "batch_size", 2)
    monkeypatch.setattr(references, "EPISODES", 1)
    path = collect(FAMILY, tmp_path / "data", Collection(transitions_per_stage=3 * HORIZON))
    assert validate(path) == []
    dataset = TaskDataset.open(path)
    assert dataset.manifest.num_episodes == [3, 3]
    assert dataset.manifest.observation_space["shape"] == [3, 64, 64]
    assert dataset.manifest.reference_returns["success"] == [1.0, 1.0]
    assert dataset.manifest.reference_returns["random"] == [0.0, 0.0]
    finals = dataset.episodes["final_observation"]
    # What an image shows of the left drawer's inside, in both tasks.
    inside = finals[:, 1, 28:34, 36:58].int() - finals[:, 0, 28:34, 36:58].int() > 15
    assert (inside.float().mean(dim=(1, 2)) > 0.5).tolist() == [True] * 3 + [False] * 3


def test_picture_of_the_scene(gl: None, tmp_path: Path) -> None:
    report(["sawyer_scene", str(tmp_path / "scene.png")])
    picture = matplotlib.image.imread(tmp_path / "scene.png")
    assert picture.shape[:2] == (256 + 2 * 128, 1024)
    start, end = picture[256:384, :128], picture[256:384, -128:]
    assert np.abs(start - end).max() > 0.3
    assert (picture[:256].reshape(256, 4, 256, -1).std(axis=(0, 2)).max(axis=-1) > 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("drawer", [0, 1])
def test_success_of_the_script(drawer: int) -> None:
    """With the noise of collection; prints what it finds with `-s`."""
    engine = blind(np.full((200, 1), float(drawer)), seed=drawer)
    engine.reset()
    generator = np.random.default_rng(drawer)
    first = np.full(200, np.inf)
    for step in range(1, HORIZON + 1):
        rewarded = engine.step(scripted(engine, generator)).reward > 0.0
        first = np.where(rewarded, np.minimum(first, step), first)
        assert engine.opening[:, 1 - drawer].max() < 0.005
    success = rewarded.mean()
    print(f"\ndrawer {drawer}: success {success:.1%}, first reward after {first.mean():.1f} steps")
    assert success >= 0.98
