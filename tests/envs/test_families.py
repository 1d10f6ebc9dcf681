"""The task families against their specification: sizes, splits, parameters, rewards, bodies."""

import mujoco
import numpy as np
import pytest

from offline_meta_rl.envs import FAMILIES, family_of
from offline_meta_rl.envs.locomotion.env import LocomotionEnv

SIZES = {
    "cheetah_dir": (20, 6, 200, 2),
    "cheetah_vel": (20, 6, 200, 40),
    "ant_dir": (27, 8, 200, 50),
    "walker_params": (17, 6, 200, 50),
    "point_robot": (2, 2, 20, 40),
    "sparse_point_robot": (2, 2, 20, 40),
}
HELD_OUT = {
    "cheetah_dir": (0, 1),
    "cheetah_vel": (2, 7, 15, 23, 26),
    "ant_dir": (6, 17, 23, 30, 41),
    "walker_params": (43, 15, 12, 39, 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    family = FAMILIES[name]
    found = (family.observation_size, family.action_size, family.horizon, family.num_tasks)
    assert found == SIZES[name]
    parameters = family.task_parameters(3)
    assert parameters.shape[0] == family.num_tasks
    assert family.task_features(parameters).dtype == np.float32
    np.testing.assert_array_equal(parameters, family.task_parameters(3))


@pytest.mark.parametrize("name", HELD_OUT)
def test_authors_split(name: str) -> None:
    train, test = FAMILIES[name].splits["default"]
    assert set(test) == set(HELD_OUT[name])
    if name == "cheetah_dir":
        assert train == (0, 1)
    else:
        assert not set(train) & set(test)
        assert sorted(train + test) == list(range(FAMILIES[name].num_tasks))


def test_velocity_splits() -> None:
    splits = FAMILIES["cheetah_vel"].splits
    assert splits["eighth"][0] == (0, 8, 16, 24, 32)
    assert splits["sixteenth"][0] == (0, 16, 32)
    assert [len(splits[name][0]) for name in ("half", "quarter", "extrapolation")] == [20, 10, 26]
    assert splits["extrapolation"][1] == tuple(range(26, 40))


def test_task_parameters() -> None:
    velocities = FAMILIES["cheetah_vel"].task_parameters(0)[:, 0]
    held_out = velocities[list(HELD_OUT["cheetah_vel"])]
    np.testing.assert_allclose(held_out, [0.225, 0.6, 1.2, 1.8, 2.025])
    assert FAMILIES["cheetah_dir"].task_parameters(0).tolist() == [[1.0], [-1.0]]
    angles = FAMILIES["ant_dir"].task_parameters(0)
    assert angles.min() >= 0.0
    assert angles.max() < 2 * np.pi
    assert np.ptp(angles) > 5.0
    assert not np.array_equal(angles, FAMILIES["ant_dir"].task_parameters(1))
    goals = FAMILIES["point_robot"].task_parameters(0)
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 1.0)
    assert (goals[:, 1] >= 0.0).all()


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match="Unknown task 50 of ant_dir: expected 0 to 49"):
        FAMILIES["ant_dir"].parameters_of(50, seed=0)


def test_walker_models_differ() -> None:
    family = FAMILIES["walker_params"]
    parameters = family.task_parameters(0)
    base = family.base_model()
    factors = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
    for row in parameters[:3]:
        model, start = family.model(row), 0
        for name, factor in factors.items():
            nominal = getattr(base, name)
            exponents = row[start : start + nominal.size].reshape(nominal.shape)
            np.testing.assert_allclose(getattr(model, name), nominal * factor**exponents)
            start += nominal.size
        assert start == len(row)
    assert parameters.min() >= -3.0
    assert parameters.max() <= 3.0
    assert np.ptp(parameters) > 5.9

    engine = family.make_engine(parameters[:4], seed=0, num_threads=1)
    engine.reset()
    engine.state[:] = engine.state[0]
    observation = engine.step(np.full((4, 6), 0.5)).observation
    for other in (1, 2, 3):
        assert np.abs(observation[0] - observation[other]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "timestep", "frame_skip", "integrator"),
    [
        ("cheetah_vel", 0.01, 5, mujoco.mjtIntegrator.mjINT_EULER),
        ("ant_dir", 0.01, 5, mujoco.mjtIntegrator.mjINT_RK4),
        ("walker_params", 0.004, 4, mujoco.mjtIntegrator.mjINT_RK4),
    ],
)
def test_simulator_options(name: str, timestep: float, frame_skip: int, integrator: int) -> None:
    family = FAMILIES[name]
    model = family.base_model()
    assert (model.opt.timestep, family.frame_skip) == (timestep, frame_skip)
    assert model.opt.integrator == integrator
    if name == "ant_dir":
        assert set(model.actuator_gear[:, 0]) == {150.0}


def test_rewards_by_hand() -> None:
    action = np.array([[0.5, -0.5, 0.0, 0.0, 0.0, 1.0]])
    before, after = np.zeros((1, 9)), np.zeros((1, 9))
    after[0, 0] = 0.1

    def reward(name: str, parameters: list[float], dt: float) -> float:
        family = FAMILIES[name]
        terms = family.reward_terms(before, after, action, np.array([parameters]), dt)
        return float(family.reward(terms)[0])

    assert reward("cheetah_vel", [3.0], 0.05) == pytest.approx(-1.0 - 0.05 * 1.5)
    assert reward("cheetah_dir", [-1.0], 0.05) == pytest.approx(-2.0 - 0.05 * 1.5)
    assert reward("walker_params", [], 0.016) == pytest.approx(6.25 + 1.0 - 1e-3 * 1.5)
    before, after = np.zeros((1, 15)), np.zeros((1, 15))
    after[0, :2] = 0.1, 0.2
    expected = 2.0 * np.cos(0.3) + 4.0 * np.sin(0.3) - 0.5 * 1.5 + 1.0
    assert reward("ant_dir", [0.3], 0.05) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cheetah_vel", "ant_dir", "walker_params"])
def test_observation_contents(name: str) -> None:
    env = LocomotionEnv(FAMILIES[name], task=0)
    env.reset(seed=0)
    observation = env.step(np.full(env.action_space.shape, 0.3, dtype=np.float32))[0]
    mujoco.mj_kinematics(env.model, env.data)
    qpos, qvel = env.data.qpos, env.data.qvel
    expected = {
        "cheetah_vel": [qpos[1:], qvel, env.data.body("torso").xpos],
        "ant_dir": [qpos[2:], qvel],
        "walker_params": [qpos[1:], np.clip(qvel, -10, 10)],
    }[name]
    np.testing.assert_allclose(observation, np.concatenate(expected), rtol=1e-6, atol=1e-6)


def test_falls() -> None:
    ant, walker = FAMILIES["ant_dir"], FAMILIES["walker_params"]
    qpos, qvel = np.zeros((4, 15)), np.zeros((4, 14))
    qpos[:, 2] = [0.19, 0.5, 1.01, np.nan]
    assert ant.fallen(qpos, qvel).tolist() == [True, False, True, True]
    qpos, qvel = np.zeros((5, 9)), np.zeros((5, 9))
    qpos[:, 1], qpos[:, 2] = [0.8, 0.81, 2.0, 1.2, 1.2], [0.0, 0.0, 0.0, 1.0, -0.99]
    assert walker.fallen(qpos, qvel).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("name", "bound"), [("cheetah_dir", 0.1), ("ant_dir", 0.1), ("walker_params", 0.005)]
)
def test_reset_noise(name: str, bound: float) -> None:
    family = FAMILIES[name]
    engine = family.make_engine(np.tile(family.task_parameters(0)[:1], (200, 1)), seed=0)
    engine.reset()
    noise = engine.qpos - engine.models[0].qpos0
    assert 0.95 * bound < np.abs(noise).max() <= bound
    if name == "walker_params":
        assert 0.95 * bound < np.abs(engine.qvel).max() <= bound
    else:
        assert engine.qvel.std() == pytest.approx(0.1, rel=0.1)


def test_family_of() -> None:
    assert family_of({"id": "ant_dir"}) is FAMILIES["ant_dir"]
    assert family_of({"id": "offline_meta_rl/AntDir-v0", "version": 1}) is FAMILIES["ant_dir"]
    with pytest.raises(ValueError, match=r"Expected version 1 of ant_dir, found 7: .* Collect"):
        family_of({"id": "ant_dir", "version": 7})
