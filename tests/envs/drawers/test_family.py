"""Drawers in the plane: mechanics, images, and a horizon that is enough for one drawer only."""

from itertools import permutations
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.policy import acting, load_behaviour
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.drawers import family as two_drawers
from offline_meta_rl.envs.drawers.family import (
    BORDER,
    FARTHEST,
    FRONT,
    OPEN,
    REACH,
    START_NOISE,
    STEP,
    DrawersLite,
    DrawersLiteEngine,
)
from offline_meta_rl.evaluation.rollout import run_episodes

NAMES = ("two_drawer_lite", "two_drawer_lite_mirrored", "three_drawer_lite")


def family_of(name: str) -> DrawersLite:
    family = FAMILIES[name]
    assert isinstance(family, DrawersLite)
    return family


def engine_of(name: str, targets: list[int], seed: int = 0) -> DrawersLiteEngine:
    engine = family_of(name).make_engine(np.array(targets, dtype=float)[:, None], seed=seed)
    engine.reset()
    return engine


@pytest.mark.parametrize(
    ("name", "drawers", "nearest", "fewest"),
    [
        ("two_drawer_lite", 2, 0, [5, 8]),
        ("two_drawer_lite_mirrored", 2, 1, [8, 5]),
        ("three_drawer_lite", 3, 1, [7, 6, 8]),
    ],
)
def test_families(name: str, drawers: int, nearest: int, fewest: list[int]) -> None:
    family = family_of(name)
    assert (family.num_tasks, family.horizon, family.nearest) == (drawers, 12, nearest)
    assert [family.fewest_steps(drawer) for drawer in range(drawers)] == fewest
    everything = tuple(range(drawers))
    assert family.splits == {"default": (everything, everything)}
    assert family.observation_space["shape"] == [3, 16, 16]
    assert family.observation_size == 768
    np.testing.assert_array_equal(family.task_features(family.task_parameters(0)), np.eye(drawers))
    env = gymnasium.make(family.env_id, task=1)
    assert env.observation_space.shape == (3, 16, 16)
    assert env.observation_space.dtype == np.uint8


def slow_step(
    hand: list[float], opening: list[float], drawers: tuple[float, ...], action: list[float]
) -> tuple[list[float], list[float]]:
    """Return hand and openings after a step of one environment, drawer by drawer."""
    x = min(max(hand[0] + STEP * min(max(action[0], -1), 1), -BORDER), BORDER)
    y = min(max(hand[1] + STEP * min(max(action[1], -1), 1), -BORDER), FRONT)
    after = []
    for place, pulled in zip(drawers, opening, strict=True):
        level = abs(hand[1] - (FRONT - pulled)) <= REACH
        if level and abs(hand[0] - place) <= REACH and abs(x - place) <= REACH and y < hand[1]:
            pulled = min(pulled + hand[1] - y, FARTHEST)
        after.append(pulled)
    return [x, y], after


@pytest.mark.parametrize("name", NAMES)
def test_mechanics_against_one_drawer_at_a_time(name: str) -> None:
    drawers = family_of(name).drawers
    targets = [n % len(drawers) for n in range(60)]
    engine = engine_of(name, targets)
    random = np.random.default_rng(0)
    moved = np.zeros(60, dtype=bool)
    for step in range(30):
        if step % 8 == 0:
            drawer = random.integers(len(drawers), size=(60, 1))
        action = engine.family.script(engine.state(), drawer) + 0.7 * random.normal(size=(60, 2))
        expected = [
            slow_step(*row, drawers, act)
            for *row, act in zip(
                engine.hand.tolist(), engine.opening.tolist(), action.tolist(), strict=True
            )
        ]
        before = engine.opening.copy()
        result = engine.step(action)
        np.testing.assert_allclose(engine.hand, [hand for hand, _ in expected], atol=1e-12)
        np.testing.assert_allclose(engine.opening, [o for _, o in expected], atol=1e-12)
        target = engine.opening[np.arange(60), targets]
        np.testing.assert_array_equal(result.reward, (target >= OPEN).astype(float))
        assert not result.terminated.any()
        moved |= (engine.opening != before).any(axis=1)
        assert (engine.opening >= before).all(), "a drawer stays where it is left"
    assert moved.mean() > 0.5


def test_horizon_truncates_and_reset_closes_the_drawers() -> None:
    engine = engine_of("two_drawer_lite", [0, 1])
    ends = []
    for step in range(12):
        result = engine.step(np.array([[-1.0, 1.0 if step < 2 else -1.0], [0.0, 0.0]]))
        ends.append(result.truncated.tolist())
    assert ends == [[False, False]] * 11 + [[True, True]]
    assert engine.opening[0, 0] == 0.0, "the hand has passed the drawer"
    engine.opening[:] = 0.5
    hand = engine.hand.copy()
    engine.reset(np.array([True, False]))
    assert engine.opening.tolist() == [[0.0, 0.0], [0.5, 0.5]]
    assert (engine.hand[1] == hand[1]).all()
    np.testing.assert_allclose(engine.hand[0], [-0.1875, FRONT - 0.3], atol=START_NOISE)


@pytest.mark.parametrize("name", NAMES)
def test_the_image_says_nothing_of_the_target(name: str) -> None:
    """The same actions give the same images whichever drawer is rewarded."""
    drawers = len(family_of(name).drawers)
    engine = engine_of(name, list(range(drawers)))
    engine.hand[:] = engine.hand[0]
    rewards = np.zeros(drawers)
    for _ in range(12):
        action = family_of(name).script(engine.state(), np.zeros((drawers, 1)))
        result = engine.step(action)
        assert (result.observation == result.observation[0]).all()
        rewards += result.reward
    assert rewards[0] > 0
    assert not rewards[1:].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_image_says_where_hand_and_drawers_are(name: str) -> None:
    """A linear map of the pixels finds the hand, and each opening, to a quarter of a step."""
    engine = engine_of(name, [0] * 3000)
    random = np.random.default_rng(0)
    engine.hand = random.uniform([-0.8, -0.6], [0.8, FRONT], (3000, 2))
    engine.opening = random.uniform(0.0, FARTHEST, engine.opening.shape)
    pixels = engine.images().reshape(3000, -1) / 255.0
    inputs = np.concatenate([pixels, np.ones((3000, 1))], axis=1)
    state = engine.state()
    gram = inputs[:2000].T @ inputs[:2000] + 1e-3 * np.eye(inputs.shape[1])
    weight = np.linalg.solve(gram, inputs[:2000].T @ state[:2000])
    error = np.abs(inputs[2000:] @ weight - state[2000:]).mean(axis=0)
    assert (error < STEP / 4).all(), error


def test_images_are_shares_of_what_covers_a_pixel() -> None:
    """Averaging a picture of many pixels gives the agent's, but for edges upon edges."""
    engine = engine_of("three_drawer_lite", [0] * 50)
    engine.opening = np.random.default_rng(0).uniform(0.0, FARTHEST, engine.opening.shape)
    fine = engine.images(16 * 16).reshape(50, 3, 16, 16, 16, 16).mean(axis=(3, 5))
    difference = np.abs(fine - engine.images())
    assert np.quantile(difference, 0.98) <= 1.0
    assert difference.max() < 60


def test_mirrored() -> None:
    left, right = (
        engine_of("two_drawer_lite", [0, 1]),
        engine_of("two_drawer_lite_mirrored", [1, 0]),
    )
    right.hand = left.hand * [-1.0, 1.0]
    random = np.random.default_rng(0)
    for _ in range(12):
        state, parameters = left.state(), np.array([[0.0], [1.0]])
        action = left.family.script(state, parameters) + 0.2 * random.normal(size=(2, 2))
        a, b = left.step(action), right.step(action * [-1.0, 1.0])
        np.testing.assert_array_equal(a.observation, b.observation[..., ::-1])
        np.testing.assert_array_equal(a.reward, b.reward)
    assert a.reward.all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_script_opens_its_drawer_and_no_other(name: str, count: int) -> None:
    """With the noise of collection; prints what it finds with `-s`."""
    family = family_of(name)
    drawers = family.num_tasks
    parameters = np.repeat(family.task_parameters(0), count, axis=0)
    engine = family.make_engine(parameters, seed=0)
    generator = torch.Generator().manual_seed(0)
    stages = np.zeros(len(parameters), dtype=np.int64)
    behaviour = load_behaviour(family)
    act = acting(behaviour, stages, parameters, stochastic=True, generator=generator)
    episodes = run_episodes(engine, act, family.horizon, on_state=True)
    success = (episodes.reward[-1] > 0).reshape(drawers, count).mean(axis=1)
    assert (success >= 0.98).all()
    assert engine.opened.sum() == round(success.sum() * count), "no other drawer is open"
    assert (np.diff(episodes.reward, axis=0) >= 0).all(), "it stays open"
    # The nearer the drawer, the sooner; within two steps of the fewest there can be.
    first = family.horizon - episodes.reward.sum(axis=0).reshape(drawers, count).mean(axis=1) + 1
    fewest = [family.fewest_steps(drawer) for drawer in range(drawers)]
    print(f"\n{name}: success {success}, steps until open {first}")
    assert np.argmin(first) == family.nearest
    assert (first >= fewest).all()
    assert (first <= np.array(fewest) + 1.5).all()


def test_noise_and_its_seed() -> None:
    family = family_of("two_drawer_lite")
    behaviour = load_behaviour(family)
    engine = engine_of("two_drawer_lite", [0] * 2000)
    engine.hand[:] = [-0.4375, -0.3]
    engine.opening[:, 0] = FARTHEST
    state, parameters = torch.from_numpy(engine.state()), np.zeros((2000, 1))

    def noisy(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return behaviour.act(0, state, parameters, stochastic=True, generator=generator)

    assert not behaviour.act(0, state, parameters, stochastic=False).any(), "it stays"
    assert torch.equal(noisy(0), noisy(0))
    assert not torch.equal(noisy(0), noisy(1))
    assert noisy(0).std().item() == pytest.approx(family.script_noise, rel=0.05)


class Fastest:
    """Opens drawer ``first``, then ``second``, as fast as the mechanics allow.

    It starts in the corner of possible starts that is nearest to both, moves at full speed, pulls
    no farther than it must, and holds each handle ``lean`` (at most 1) of the reach to one side:
    towards what comes next, and after that towards where it comes from.
    """

    def __init__(self, family: DrawersLite, first: int, second: int, lean: float) -> None:
        self.family, self.order, self.lean = family, (first, second), lean
        self.side = np.sign(family.drawers[second] - family.drawers[first])

    def start(self) -> NDArray[np.float64]:
        x, distance = self.family.start
        way = self.family.drawers[self.order[0]] + self.side * REACH - x
        return np.array(
            [x + np.clip(way, -START_NOISE, START_NOISE), FRONT - distance + START_NOISE]
        )

    def act(self, hand: NDArray[Any], opening: NDArray[Any], opened: NDArray[Any]) -> NDArray[Any]:
        second = bool(opened[self.order[0]])
        drawer = self.order[int(second)]
        side = -self.side if second else self.side
        edge = self.family.drawers[drawer] + self.lean * side * REACH
        handle = FRONT - opening[drawer]
        held = (
            abs(hand[0] - self.family.drawers[drawer]) <= REACH and abs(hand[1] - handle) <= REACH
        )
        if held:
            pull = (OPEN + 1e-6 - opening[drawer]) / STEP
            return np.array([np.clip((edge - hand[0]) / STEP, -1, 1), -min(pull, 1.0)])
        return np.clip([(edge - hand[0]) / STEP, (handle - hand[1]) / STEP], -1, 1)


def steps_for_two(
    family: DrawersLite, order: tuple[int, int], noise: float = 0.0, count: int = 1
) -> NDArray[Any]:
    """Return the steps after which both drawers are open, of many trials; 99 for never."""
    engine = family.make_engine(np.zeros((count, 1)), seed=0)
    policy = Fastest(family, *order, lean=0.5 if noise else 0.999)
    engine.hand[:] = policy.start()
    random = np.random.default_rng(0)
    steps = np.full(count, 99)
    for step in range(1, 31):
        action = np.stack(
            [
                policy.act(*row)
                for row in zip(engine.hand, engine.opening, engine.opened, strict=True)
            ]
        )
        engine.step(action + noise * random.normal(size=action.shape))
        both = engine.opened[:, list(order)].all(axis=1)
        steps[both & (steps == 99)] = step
    return steps


FAR_APART = DrawersLite(drawers=(-0.6, 0.6), start=(0.0, 0.4))


@pytest.mark.parametrize("family", [*map(family_of, NAMES), FAR_APART], ids=lambda f: f.name)
def test_no_policy_opens_two_drawers_within_the_horizon(
    family: DrawersLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is reached by the fastest policy, not by noisy ones; the horizon is below it."""
    monkeypatch.setattr(two_drawers, "draw_scene", lambda hand, *_: hand)
    orders = list(permutations(range(family.num_tasks), 2))
    fastest = {order: int(steps_for_two(family, order)[0]) for order in orders}
    assert min(fastest.values()) == family.fewest_steps_for_two() > family.horizon
    for order in orders:
        noisy = steps_for_two(family, order, noise=0.3, count=60)
        assert noisy.min() >= family.fewest_steps_for_two()
        assert (noisy < 99).any()


def test_families_of_ones_own() -> None:
    family = DrawersLite("four", drawers=(-0.85, -0.3, 0.3, 0.85), start=(0.6, 0.6), horizon=10)
    assert (family.num_tasks, family.nearest) == (4, 2)
    assert family.make_engine(family.task_parameters(0), seed=0).reset().shape == (4, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"drawers: expected .* more than 0.3 apart, found \(0.0, "
    ):
        DrawersLite(drawers=(0.0, 0.25), start=(0.0, 0.3))
    with pytest.raises(ValueError, match=r"drawers: expected at least two places .* found \(0\.2,"):
        DrawersLite(drawers=(0.2,), start=(0.0, 0.3))
    with pytest.raises(
        ValueError, match=r"horizon: expected less than 14, .* found 14: one episode"
    ):
        DrawersLite(drawers=(-0.4375, 0.6875), start=(-0.1875, 0.3), horizon=14)


def test_pictures_for_people() -> None:
    env = gymnasium.make("offline_meta_rl/TwoDrawerLite-v0", task=0, render_mode="rgb_array")
    env.reset(seed=0)
    frame: Any = env.render()
    assert (frame.shape, frame.dtype) == ((192, 192, 3), np.uint8)
    _, _, _, _, info = env.step(np.array([0.0, 1.0], dtype=np.float32))
    assert (env.render() != frame).any()
    assert info["opened"].tolist() == [False, False]
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
