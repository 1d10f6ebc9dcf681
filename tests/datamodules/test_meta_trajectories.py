"""Batches of MetaTrajectories: contents, determinism, processes, resuming, clear errors."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from datamodules import MetaTrajectories
from datamodules.meta_trajectories import NOISE, BeliefBatches
from datamodules.sampling.belief_cache import compute_beliefs
from datamodules.sampling.episodes import EpisodeTable
from datamodules.sampling.stitch import draw_segments
from datamodules.sampling.stitched import HeldOutEpisodes
from datamodules.sampling.transitions import BeliefTransitions, index_transitions
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.methods.cql_agent import FIELDS
from offline_meta_rl.networks.filter.model import VariationalFilter
from offline_meta_rl.networks.filter.settings import FilterSettings
from tests.helpers import make_dataset
from tests.image_data import HORIZON, SHAPE, image_episodes, image_writer, make_image_dataset

LENGTH = (6, 4, 5, 6, 2, 6, 3, 6, 5, 6)
POSITIONS = 2 * (HORIZON + 1)  # K = 2 episodes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta_trajectories") / "dataset"
    return make_image_dataset(folder, num_tasks=3, length=LENGTH)


def meta_trajectories(path: Path, *, stage: str | None = None, **changes: Any) -> MetaTrajectories:
    settings: dict[str, Any] = {
        "num_episodes": 2,
        "batch_size": 5,
        "held_out": HeldOutEpisodes(count=7),
    }
    data = MetaTrajectories(env="nowhere_images", path=str(path), **(settings | changes))
    data.prepare_data()
    data.setup(stage)
    return data


def equal(first: TensorDict, second: TensorDict) -> bool:
    return bool((first == second).all())


def test_batch_holds_whole_episodes_step_by_step(path: Path) -> None:
    data = meta_trajectories(path, batch_size=40, updates_per_batch=2)
    batch = data.batch(0)
    assert batch.batch_size == (2, 40)
    assert data.horizon == HORIZON
    assert data.image_shape == SHAPE
    assert batch["weight"].unique().tolist() == [pytest.approx(1 / 40)]
    assert batch["observation"].dtype == torch.uint8
    kept = 0
    for one in batch.flatten():
        assert one["observation"].shape == (POSITIONS, *SHAPE)
        for segment in range(2):
            part = slice(segment * (HORIZON + 1), (segment + 1) * (HORIZON + 1))
            kept += check_segment(data.dataset, one, segment, part)
    assert 0 < kept < 80


def check_segment(dataset: TaskDataset, one: TensorDict, segment: int, part: slice) -> bool:
    """Compare one segment with the episode it was taken from; return whether it was rewarded."""
    observation, mask = one["observation"][part], one["mask"][part]
    length = int(mask.sum()) - 1
    assert mask.tolist() == [step <= length for step in range(HORIZON + 1)]
    first = (dataset.transitions["observation"] == observation[0]).flatten(1).all(1).nonzero()
    start = int(first)
    episode = int((dataset.episodes["start"] == start).nonzero())
    assert int(dataset.episodes["length"][episode]) == length
    task = int(dataset.episodes["task"][episode])
    assert one["segment_task"][segment] == task
    rows = slice(start, start + length)
    assert torch.equal(observation[:length], dataset.transitions["observation"][rows])
    assert torch.equal(observation[length], dataset.episodes["final_observation"][episode])
    action, reward = one["action"][part], one["reward"][part]
    assert torch.equal(action[1 : length + 1], dataset.transitions["action"][rows])
    assert not action[0].any()
    assert not action[length + 1 :].any()
    keeps = bool(task == one["task"])
    assert torch.equal(reward[1 : length + 1], dataset.transitions["reward"][rows] * keeps)
    assert not reward[0]
    assert not reward[length + 1 :].any()
    assert one["first_reward"][segment] == length  # the last reward of these episodes is 1
    return keeps


def test_reward_sums_are_kept_or_zero(path: Path) -> None:
    data = meta_trajectories(path, batch_size=200)
    batch = data.batch(1)[0]
    sums = batch["reward"].unflatten(1, (2, -1)).sum(-1)
    matches = batch["segment_task"] == batch["task"][:, None]
    assert torch.equal(sums, matches.float())


def test_no_exploration_is_one_task_with_its_own_rewards(path: Path) -> None:
    batch = meta_trajectories(path, exploration=False).batch(0)[0]
    assert (batch["segment_task"] == batch["task"][:, None]).all()
    assert (batch["reward"].unflatten(1, (2, -1)).sum(-1) == 1).all()


def test_same_batch_for_the_same_seed_and_update(path: Path) -> None:
    data = meta_trajectories(path)
    assert equal(data.batch(4), meta_trajectories(path).batch(4))
    assert equal(data.batch(4), meta_trajectories(path, device="disk").batch(4))
    assert not equal(data.batch(4), data.batch(5))
    assert not equal(data.batch(4), meta_trajectories(path, seed=1).batch(4))
    several = meta_trajectories(path, updates_per_batch=3).batch(1)
    assert equal(several, torch.cat([data.batch(step) for step in (3, 4, 5)]))


def test_shards_of_all_processes_are_the_global_batch(path: Path) -> None:
    data = meta_trajectories(path, updates_per_batch=2)
    whole = data.batch(7)
    for rank in range(3):
        assert equal(data.batch(7, rank=rank, world_size=3), whole[:, rank::3])


def test_held_out_episodes_are_never_trained_on(path: Path) -> None:
    held_out = HeldOutEpisodes(share=0.3, count=7)
    data = meta_trajectories(path, held_out=held_out, batch_size=300)
    (item,) = data.val_dataloader()
    assert item["fit"].batch_size == item["held_out"].batch_size == (7,)
    training = {frame(one) for one in data.batch(0)[0]["observation"]}
    cached = torch.cat([part["observation"] for part in data._stitched.for_beliefs(3000, 1000)])
    training |= {frame(one) for one in (*item["fit"]["observation"], *cached)}
    assert not training & {frame(one) for one in item["held_out"]["observation"]}
    assert len(training) == 21
    (again,) = meta_trajectories(path, held_out=held_out).val_dataloader()
    assert equal(item["held_out"], again["held_out"])


def frame(observation: torch.Tensor) -> bytes:
    """Return the first image of a meta-trajectory, which all differ between episodes."""
    return observation[0].numpy().tobytes()


def test_belief_batches_are_one_draw_in_pieces(path: Path) -> None:
    stitched = meta_trajectories(path)._stitched
    pieces = list(stitched.for_beliefs(10, 4))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    (whole,) = stitched.for_beliefs(10, 10)
    assert equal(torch.cat(pieces), whole)


def cached_beliefs(data: MetaTrajectories) -> TensorDict:
    """Number every position of the meta-trajectories in place of a belief."""
    parts = data._stitched.for_beliefs(data.beliefs.count, 100)
    cache = torch.cat([part.select("action", "reward", "mask") for part in parts])
    count = cache["mask"].numel()
    cache["belief"] = torch.arange(count, dtype=torch.float32).view(*cache["mask"].shape, 1)
    return cache


def pairs(places: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(itertools.pairwise(places))


@pytest.mark.parametrize("across", [False, True])
def test_belief_transitions_against_a_loop(path: Path, across: bool) -> None:
    beliefs = BeliefBatches(count=20, across_episodes=across)
    data = meta_trajectories(path, beliefs=beliefs)
    cache = cached_beliefs(data)
    expected = []
    for one in cache:
        valid = one["mask"].unflatten(0, (2, -1))
        first, second = ((HORIZON + 1) * j + valid[j].nonzero()[:, 0] for j in range(2))
        steps = [(*pair, pair[1] == first[-1] and not across) for pair in pairs(first)]
        steps += [(first[-1], second[0], False)] if across else []
        steps += [(*pair, pair[1] == second[-1]) for pair in pairs(second)]
        for source, target, ends in steps:
            row = (one["belief"][source], one["belief"][target], one["reward"][target])
            expected.append((*map(float, row), *one["action"][target].tolist(), bool(ends)))
    transitions = BeliefTransitions(cache, 2, across=across)
    assert len(transitions) == len(expected)
    found = transitions.gather(np.arange(len(transitions)))
    names = ("observation", "next_observation", "reward", "action", "terminated")
    columns = [found[name].reshape(len(found), -1) for name in names]
    rows = [(*row[:-1], bool(row[-1])) for row in torch.cat(columns, 1).double().tolist()]
    assert sorted(rows) == sorted(expected)


def test_lengths_of_one_step_have_transitions() -> None:
    mask = np.array([[True, True, False, True, True, True]])
    index = index_transitions(mask, 2, across=True)
    assert [part.tolist() for part in index] == [[0, 1, 3, 4], [1, 3, 4, 5], [0, 0, 0, 1]]
    index = index_transitions(mask, 2, across=False)
    assert [part.tolist() for part in index] == [[0, 3, 4], [1, 4, 5], [1, 0, 1]]


def test_transitions_are_served_and_resumed(path: Path) -> None:
    beliefs = BeliefBatches(count=8, batch_size=6, updates_per_batch=2)
    settings = {"beliefs": beliefs, "steps_per_epoch": 3}
    data = meta_trajectories(path, **settings)
    data.serve_transitions(cached_beliefs(data))
    loader = iter(data.train_dataloader())
    next(loader)
    batch = next(loader)
    assert batch.batch_size == (2, 6)
    assert set(batch.keys()) == {*FIELDS, "weight"}
    assert batch["weight"].unique().tolist() == [pytest.approx(1 / 6)]
    assert data.state_dict() == {"batches_served": 2}
    following = next(iter(data.train_dataloader()))
    assert not equal(batch, following)

    resumed = meta_trajectories(path, **settings)
    resumed.load_state_dict({"batches_served": 2})
    resumed.serve_transitions(cached_beliefs(resumed))
    assert equal(next(iter(resumed.train_dataloader())), following)
    whole = data.batch(9)
    for rank in range(2):
        assert equal(data.batch(9, rank=rank, world_size=2), whole[:, rank::2])
    single = meta_trajectories(path, beliefs=replace(beliefs, updates_per_batch=1))
    single.serve_transitions(cached_beliefs(single))
    assert equal(torch.cat([single.batch(4), single.batch(5)]), data.batch(2))


def small_filter(seed: int = 0, **settings: Any) -> VariationalFilter:
    torch.manual_seed(seed)
    sizes = {"image_network": "dense", "image_size": 5, "hidden_size": 7}
    return VariationalFilter(SHAPE, 2, FilterSettings(**(sizes | settings)))


def test_the_policy_sees_beliefs_of_mean_zero_and_spread_one(path: Path, tmp_path: Path) -> None:
    data = meta_trajectories(path, beliefs=BeliefBatches(count=20))
    model = small_filter()
    mean, spread = data.serve_beliefs(model, tmp_path)
    transitions = data._transitions
    assert transitions is not None
    raw = compute_beliefs(model, data._stitched, 20, [data.seed, NOISE])
    valid = raw["belief"][raw["mask"]]
    torch.testing.assert_close(mean, valid.mean(dim=0))
    torch.testing.assert_close(spread, valid.std(dim=0))
    raw["belief"] = (raw["belief"] - mean) / spread
    expected = BeliefTransitions(raw, 2, across=False)
    every = np.arange(len(transitions))
    assert equal(transitions.gather(every), expected.gather(every))


def test_beliefs_are_computed_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counted(model: VariationalFilter, *rest: Any) -> TensorDict:
        computed.append(model)
        return compute_beliefs(model, *rest)

    monkeypatch.setattr("datamodules.meta_trajectories.compute_beliefs", counted)
    first = meta_trajectories(path, beliefs=BeliefBatches(count=8))
    first.serve_beliefs(small_filter(), tmp_path)
    # A run of another policy: other batches, the same beliefs.
    second = meta_trajectories(path, beliefs=BeliefBatches(count=8, batch_size=5))
    second.serve_beliefs(small_filter(), tmp_path)
    assert len(computed) == 1
    one, two = (data._transitions for data in (first, second))
    assert one is not None
    assert two is not None
    assert equal(one.gather(np.arange(len(one))), two.gather(np.arange(len(two))))
    for change, model in (
        ({"seed": 1}, small_filter()),
        ({"exploration": False}, small_filter()),
        ({}, small_filter(seed=1)),
        ({}, small_filter(reward_std=0.3)),
        ({"beliefs": BeliefBatches(count=9)}, small_filter()),
    ):
        settings: dict[str, Any] = {"beliefs": BeliefBatches(count=8), **change}
        meta_trajectories(path, **settings).serve_beliefs(model, tmp_path)
    assert len(computed) == 6
    assert len(list(tmp_path.glob("*.pt"))) == 6


def test_beliefs_on_the_disk_that_are_damaged_are_noticed(path: Path, tmp_path: Path) -> None:
    data = meta_trajectories(path, beliefs=BeliefBatches(count=8))
    data.serve_beliefs(small_filter(), tmp_path)
    (file,) = tmp_path.glob("*.pt")
    content = torch.load(file, weights_only=True)
    content["tensors"]["belief"][0, 0, 0] += 1.0
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"expected the beliefs .* damaged. Delete it"):
        data.serve_beliefs(small_filter(), tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"found a file that cannot be read. Delete it"):
        data.serve_beliefs(small_filter(), tmp_path)


def test_beliefs_of_a_killed_process_are_no_beliefs(path: Path, tmp_path: Path) -> None:
    data = meta_trajectories(path, beliefs=BeliefBatches(count=8))

    class Killed(BaseException):
        """Stands for a process that ends while it writes."""

    def killed(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.sampling.belief_cache.torch.save", killed)
        with pytest.raises(Killed):
            data.serve_beliefs(small_filter(), tmp_path)
    assert not list(tmp_path.glob("*.pt"))
    data.serve_beliefs(small_filter(), tmp_path)
    assert len(list(tmp_path.glob("*.pt"))) == 1


def test_beliefs_that_cannot_be_used_are_refused(path: Path) -> None:
    data = meta_trajectories(path, beliefs=BeliefBatches(count=3))
    cache = cached_beliefs(data)
    with pytest.raises(ValueError, match=r"expected belief, action, .* \['reward'\] are missing"):
        data.serve_transitions(cache.exclude("reward"))
    cache["belief"][1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"found NaN or infinity. The filter has diverged"):
        data.serve_transitions(cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_episodes": 0}, "num_episodes: expected at least 1, found 0"),
        ({"env": "point_robot"}, "is of nowhere_images .*expected point_robot"),
        ({"split": "other"}, "Unknown split 'other'"),
    ],
)
def test_settings_that_cannot_be(path: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"env": "nowhere_images", "path": str(path)} | changes
    with pytest.raises(ValueError, match=message):
        MetaTrajectories(**settings).setup()


def test_shares_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"share: expected a share between 0 and 1, found 1\.0"):
        HeldOutEpisodes(share=1.0)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        BeliefBatches(batch_size=0)


def test_fewer_rows_than_processes_are_refused(path: Path) -> None:
    data = MetaTrajectories(env="nowhere_images", path=str(path), batch_size=2, device="cpu")
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=3, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    with pytest.raises(ValueError, match="one row for each of the 3 processes, found 2"):
        data.setup("fit")


def write(path: Path, rewards: list[float], *, shape: tuple[int, ...] = SHAPE) -> Path:
    """Write a dataset in which every step in task i is rewarded with ``rewards[i]``."""
    writer = image_writer(path, num_tasks=len(rewards), shape=shape)
    for task, reward in enumerate(rewards):
        transitions, final = image_episodes((3, 3), shape=shape, seed=task)
        transitions["reward"] *= 0
        transitions["reward"] += reward
        writer.write_task(task, transitions, stage=[0, 0], length=[3, 3], final_observation=final)
    return writer.commit({})


def test_one_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least two tasks to tell apart, found \[0\]"):
        meta_trajectories(make_image_dataset(tmp_path / "one", num_tasks=1))


def test_task_without_success_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Tasks \[1\] of .*with a reward, found none"):
        meta_trajectories(write(tmp_path / "fails", [1.0, 0.0]))


@pytest.mark.parametrize("reward", [1.0, -0.5])
def test_dense_rewards_are_warned_of(tmp_path: Path, reward: float) -> None:
    with pytest.warns(UserWarning, match="rewards are not sparse .*assumes that they would have"):
        meta_trajectories(write(tmp_path / "dense", [reward, reward]))


def test_single_episode_is_refused(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "short", length=(4,))
    with pytest.raises(ValueError, match=r"Task 0 of .*at least 2 episodes, .* found 1"):
        meta_trajectories(path)


def test_vectors_are_refused(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "vectors")
    with pytest.raises(ValueError, match=r"Expected images .* found observations \[4\] float32"):
        MetaTrajectories(env="point_robot", path=str(path)).setup()


def test_channels_last_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "last", [1.0, 1.0], shape=(8, 8, 3))
    with pytest.raises(ValueError, match=r"found \[8, 8, 3\], which looks like channels last"):
        meta_trajectories(path)


def test_damaged_images_on_disk_are_noticed(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "damaged", length=LENGTH)
    file = path / "episodes" / "final_observation.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    dataset = TaskDataset.open(path, verify=False)
    table = EpisodeTable(dataset, np.zeros(20, dtype=np.int64), None)
    segments = draw_segments(np.random.default_rng(0), {0: np.arange(5)}, 3, 2)
    with pytest.raises(ValueError, match=r"final_observation.bin: chunk 0: expected checksum"):
        table.gather(segments)
