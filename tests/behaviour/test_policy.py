"""Behaviour policies: those that ship, the scripted one, how snapshots are chosen and packed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offline_meta_rl.behaviour import command
from offline_meta_rl.behaviour.collect import default_dataset_path
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.behaviour.pack import choose_stages, pack
from offline_meta_rl.behaviour.policy import acting, behaviour_file, load_behaviour
from offline_meta_rl.behaviour.references import random_returns, reference_returns
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import TaskFamily
from offline_meta_rl.envs.locomotion.families import CheetahVel
from offline_meta_rl.networks.actors import TENSORDICT_SCALE, BehaviourActor
from offline_meta_rl.networks.stacked import HiddenLayers

LEARNED = ["ant_dir", "cheetah_dir", "cheetah_vel", "walker_params"]


@pytest.mark.parametrize("name", LEARNED)
def test_shipped_snapshots(name: str) -> None:
    family = FAMILIES[name]
    assert behaviour_file(family).stat().st_size <= 2 * 2**20
    behaviour = load_behaviour(family)
    assert len(behaviour.stages) >= 4
    parameters = family.task_parameters(0)[:2]
    observation = torch.zeros(2, family.observation_size)
    for stage in range(len(behaviour.stages)):
        action = behaviour.act(stage, observation, parameters, stochastic=False)
        assert action.shape == (2, family.action_size)
        assert action.abs().max() <= 1.0
    assert not torch.equal(action[0], action[1]), "the agent sees its task"


@pytest.mark.parametrize("name", LEARNED)
def test_recorded_returns_go_from_poor_to_expert(name: str) -> None:
    package = torch.load(behaviour_file(FAMILIES[name]), weights_only=True)
    noisy = [float(stage["noisy_return"].mean()) for stage in package["stages"]]
    assert noisy == sorted(noisy)
    steps = [stage["step"] for stage in package["stages"]]
    assert steps == sorted(steps)
    assert all(len(s["mean_return"]) == FAMILIES[name].num_tasks for s in package["stages"])


def test_noise_comes_from_the_generator() -> None:
    family = FAMILIES["cheetah_vel"]
    behaviour = load_behaviour(family)
    observation, parameters = torch.zeros(3, 20), family.task_parameters(0)[:3]

    def sample(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return behaviour.act(1, observation, parameters, stochastic=True, generator=generator)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


def test_point_robot_walks_straight_to_the_goal_and_stops() -> None:
    family = FAMILIES["point_robot"]
    behaviour = load_behaviour(family)
    best = len(behaviour.stages) - 1
    goal = np.array([[0.6, 0.8]])
    position = torch.zeros(1, 2)
    for _ in range(8):
        action = behaviour.act(best, position, goal, stochastic=False)
        assert float(action.abs().max()) == pytest.approx(1.0, abs=1e-5)
        assert float(action[0, 0] / action[0, 1]) == pytest.approx(0.75, abs=1e-4)
        position = position + 0.1 * action
    np.testing.assert_allclose(position.numpy(), goal, atol=1e-5)
    assert behaviour.act(best, position, goal, stochastic=False).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["point_robot", "sparse_point_robot"])
def test_point_robot_stages_get_better(name: str) -> None:
    family = FAMILIES[name]
    behaviour = load_behaviour(family)
    returns = reference_returns(family, behaviour, seed=0, task_seed=0)
    stages = [float(np.mean(values)) for values in returns["stages"].values()]
    assert stages == sorted(stages)
    random, best = float(np.mean(returns["random"])), stages[-1]
    assert stages[0] <= random + 0.3 * (best - random)
    assert best - random > 3.0
    if name == "point_robot":
        assert best > -7.0


def test_acting_puts_each_row_at_its_stage() -> None:
    family = FAMILIES["point_robot"]
    behaviour = load_behaviour(family)
    stages = np.array([3, 0, 3, 1])
    rows = np.tile(family.task_parameters(0)[:1], (4, 1))
    action = acting(behaviour, stages, rows, stochastic=False)(np.zeros((4, 2), dtype=np.float32))
    np.testing.assert_array_equal(action[0], action[2])
    assert np.abs(action[1]).max() == 0.0
    assert 0.0 < np.abs(action[3]).max() < np.abs(action[0]).max()


def test_family_without_behaviour() -> None:
    class Unknown(CheetahVel):
        name = "unknown"

    with pytest.raises(ValueError, match=r"No behaviour policy ships .* unknown.* --data.path"):
        load_behaviour(Unknown())


def test_behaviour_of_another_version() -> None:
    class Newer(CheetahVel):
        version = 2

    with pytest.raises(ValueError, match=r"cheetah_vel.pt has .*, expected .* Train with configs"):
        load_behaviour(Newer())


def test_choice_of_stages() -> None:
    mean = torch.tensor([190.0, -20.0, -30.0, 60.0, 150.0, 200.0, 300.0, 400.0, 380.0])
    noisy = torch.tensor([-40.0, -60.0, -40.0, 50.0, 130.0, 180.0, 280.0, 370.0, 390.0])
    chosen = choose_stages(mean, noisy, random_return=-70.0, count=5)
    # The first snapshot stands still: its mean action is worth 190, its samples are not.
    assert chosen == [2, 3, 5, 6, 7]
    with pytest.raises(
        ValueError, match="Expected at least 5 snapshots up to the best one, found 2"
    ):
        choose_stages(torch.tensor([0.0, 2.0, 1.0]), torch.zeros(3), -1.0, 5)


def snapshot(folder: Path, family: TaskFamily, step: int) -> Path:
    """Write what the callback writes, of an untrained actor."""
    torch.manual_seed(step)
    actor = BehaviourActor(family.observation_size, 1, family.action_size, HiddenLayers(16, 2))
    returns = torch.full((family.num_tasks,), float(step), dtype=torch.float64)
    path = folder / f"{step:07d}.pt"
    torch.save({"step": step, "state": actor.state_dict(), "mean": returns, "noisy": returns}, path)
    return path


def test_pack_keeps_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["cheetah_dir"]
    paths = [snapshot(tmp_path, family, step) for step in (10, 20)]
    packed = tmp_path / "packed.pt"
    pack(paths, packed, family)
    monkeypatch.setattr("offline_meta_rl.behaviour.policy.behaviour_file", lambda family: packed)
    behaviour = load_behaviour(family)
    assert behaviour.stages == ["stage_0", "expert"]
    actor = BehaviourActor(family.observation_size, 1, family.action_size, HiddenLayers(16, 2))
    actor.load_state_dict(torch.load(paths[1], weights_only=True)["state"])
    observation, parameters = torch.randn(2, 20), family.task_parameters(0)
    features = torch.from_numpy(family.task_features(parameters))
    expected = actor.act(observation, features, stochastic=False).detach()
    found = behaviour.act(1, observation, parameters, stochastic=False)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert not torch.equal(found, behaviour.act(0, observation, parameters, stochastic=False))


def test_shipped_packages_have_the_scale_that_they_were_trained_with() -> None:
    family = FAMILIES["cheetah_dir"]
    package = torch.load(behaviour_file(family), weights_only=True)
    assert package["format"] == 1
    assert "scale" not in package
    actor = BehaviourActor(20, 1, 6, HiddenLayers(package["hidden_size"], 2), TENSORDICT_SCALE)
    weights = package["stages"][0]["actor"]
    actor.load_state_dict({key: value.float() for key, value in weights.items()})
    observation, parameters = torch.randn(2, 20), family.task_parameters(0)
    features = torch.from_numpy(family.task_features(parameters))
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    expected = actor.act(observation, features, stochastic=True, generator=noise[0])
    found = load_behaviour(family).act(
        0, observation, parameters, stochastic=True, generator=noise[1]
    )
    assert torch.equal(found, expected)


def test_package_of_a_later_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, packed = FAMILIES["cheetah_dir"], tmp_path / "packed.pt"
    package = torch.load(behaviour_file(family), weights_only=True)
    torch.save(package | {"format": 3}, packed)
    monkeypatch.setattr("offline_meta_rl.behaviour.policy.behaviour_file", lambda family: packed)
    with pytest.raises(ValueError, match=r"has \(format, family, version\) \(3, .*Train with"):
        load_behaviour(family)


def test_command_packs_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Snapshots that get better: the last is the best, and the stages go from poor to it."""
    family = FAMILIES["cheetah_dir"]
    folder, out = tmp_path / "snapshots", tmp_path / "packed.pt"
    folder.mkdir()
    for step in (100, 20, 400, 1000):  # as whole numbers, not as text
        snapshot(folder, family, step)
    command.pack_snapshots("cheetah_dir", folder, stages=3, out=out)
    package = torch.load(out, weights_only=True)
    assert [stage["step"] for stage in package["stages"]] == [100, 400, 1000]
    assert [stage["name"] for stage in package["stages"]] == ["stage_0", "stage_1", "expert"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("random actions: -")
    assert lines[3] == "expert: step 1000, mean action 1000.0, sampled 1000.0"
    assert lines[4] == str(out)
    command.pack_snapshots("cheetah_dir", folder, steps=[20, 400], out=out)
    package = torch.load(out, weights_only=True)
    assert [stage["step"] for stage in package["stages"]] == [20, 400]


def test_command_refuses_what_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"whose behaviour is learned, .*ant_dir.*found point_rob"):
        command.pack_snapshots("point_robot", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No snapshot in .*BehaviourSnapshots"):
        command.pack_snapshots("ant_dir", tmp_path)
    snapshot(tmp_path, FAMILIES["cheetah_dir"], 10)
    with pytest.raises(ValueError, match=r"steps: expected some of \[10\], found \[20\]"):
        command.pack_snapshots("cheetah_dir", tmp_path, steps=[10, 20])


def test_command_collects_where_a_run_looks(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--transitions_per_stage", "20", "--num_threads", "1"]
    command.behaviour_command(["collect", "point_robot", *options])
    expected = default_dataset_path(FAMILIES["point_robot"], Collection(transitions_per_stage=20))
    assert capsys.readouterr().out.splitlines()[-1] == str(expected)
    found = TaskDataset.open(expected)
    command.behaviour_command(
        ["collect", "point_robot", "--path", str(tmp_path / "mine"), *options]
    )
    assert TaskDataset.open(tmp_path / "mine").checksum == found.checksum
    with pytest.raises(ValueError, match=r"family: expected one of .*'ant_dir'.* found 'ants'"):
        command.collect_dataset("ants", Collection())


def test_random_returns_are_seeded() -> None:
    family = FAMILIES["point_robot"]
    first, again, other = (random_returns(family, seed=s, task_seed=0) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
