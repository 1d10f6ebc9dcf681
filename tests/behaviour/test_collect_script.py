"""Collecting the episodes of a script: what is in the data, blocks, resuming, its success."""

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from datamodules.lifetime_buffers import LifetimeBuffers
from datamodules.online_buffer import OnlineBuffer
from offline_meta_rl.behaviour import collect as collect_module
from offline_meta_rl.behaviour.collect import collect, default_dataset_path
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.behaviour.episodes import script_blocks
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data_tools.validate import validate
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.drawers.family import FRONT, STEP, DrawersLite, DrawersLiteEngine
from offline_meta_rl.reports.command import report_command as report
from offline_meta_rl.reports.strips import draw_script

LITE = FAMILIES["two_drawer_lite"]
EPISODES = 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect four episodes at a time."""
    monkeypatch.setattr(DrawersLite, "batch_size", 4)


def small(path: Path, seed: int = 0) -> Path:
    """Collect ten episodes of each task."""
    quota = EPISODES * LITE.horizon
    return collect(LITE, path, Collection(seed=seed, transitions_per_stage=quota))


def test_what_is_collected(tmp_path: Path) -> None:
    path = small(tmp_path / "data")
    assert validate(path) == []
    dataset = TaskDataset.open(path)
    manifest = dataset.manifest
    assert manifest.environment == {"id": LITE.env_id, "version": 1, "kwargs": {}}
    assert manifest.observation_space["shape"] == [3, 16, 16]
    assert manifest.task_parameters == [[0.0], [1.0]]
    assert (manifest.stages, manifest.num_episodes) == (["script"], [EPISODES] * 2)
    assert dataset.split() == ([0, 1], [0, 1])
    assert (dataset.episodes["length"] == LITE.horizon).all()
    assert set(dataset.transitions["reward"].unique().tolist()) == {0.0, 1.0}
    assert dataset.transitions["action"].abs().max() <= 1.0


def test_images_follow_the_actions(tmp_path: Path) -> None:
    """The script's actions, taken again from the start that the first image shows."""
    dataset = TaskDataset.open(small(tmp_path / "data"))
    for task in (0, 1):
        first, _ = dataset.task_rows(task)
        rows = slice(first, first + LITE.horizon)
        images, actions = (
            dataset.transitions[key][rows].numpy() for key in ("observation", "action")
        )
        engine = DrawersLiteEngine(LITE, LITE.task_parameters(0)[[task]], seed=0)
        engine.hand[0] = start_of(images[0])
        for step in range(LITE.horizon):
            result = engine.step(actions[step : step + 1])
            following = (
                images[step + 1]
                if step + 1 < LITE.horizon
                else dataset.episodes["final_observation"][task * EPISODES].numpy()
            )
            assert np.abs(result.observation[0].astype(int) - following).max() <= 4
            assert result.reward[0] == dataset.transitions["reward"][first + step]


def start_of(image: np.ndarray) -> Array:
    """Return the hand's place on an empty floor, from the blue of the image [3, h, w]."""
    blue = image[2].astype(float) - 32.0  # the floor's
    blue[:5] = 0.0  # cabinet and handles
    edge = (np.arange(16) + 0.5) / 8 - 1
    place: Array = np.array([blue.sum(0) @ edge, -blue.sum(1) @ edge]) / blue.sum()
    # The floor's share is cut to whole numbers, so this is right to a thousandth or so.
    assert abs(place[0] - LITE.start[0]) < STEP
    assert abs(place[1] - FRONT + LITE.start[1]) < STEP
    return place


def test_same_seed_same_data(tmp_path: Path) -> None:
    sums = [
        TaskDataset.open(small(tmp_path / name, seed)).checksum
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert sums[0] == sums[1] != sums[2]


def test_interrupted_collection_resumes_with_equal_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TaskDataset.open(small(tmp_path / "whole"))
    calls: list[Array] = []

    def interrupted(family: Any, parameters: Array, **settings: Any) -> Any:
        calls.append(parameters)
        blocks = script_blocks(family, parameters, **settings)
        yield next(blocks)
        if parameters[0] == 1.0 and len(calls) == 2:
            raise KeyboardInterrupt
        yield from blocks

    monkeypatch.setattr(collect_module, "script_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert TaskDataset.open(small(tmp_path / "data")).checksum == whole.checksum
    assert [call[0] for call in calls] == [0.0, 1.0, 1.0], "task 0 was kept"


def test_blocks_hold_so_many_episodes_and_no_more() -> None:
    blocks = list(script_blocks(LITE, np.array([1.0]), seed=0, transitions_per_stage=EPISODES * 12))
    assert [len(block.length) for block in blocks] == [4, 4, 2]
    assert all(block.transitions["observation"].dtype == np.uint8 for block in blocks)


class Diverging(DrawersLiteEngine):
    """All environments of a block but the first diverge in the third step."""

    diverging: slice = slice(1, None)

    def step(self, action: Any) -> Any:
        result = super().step(action)
        if self.elapsed[0] == 3:
            result.diverged[self.diverging] = True
        return result


def test_diverged_episodes_are_collected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DrawersLite, "make_engine", lambda f, rows, **settings: Diverging(f, rows, seed=0)
    )
    settings: dict[str, Any] = {"seed": 0, "transitions_per_stage": EPISODES * 12}
    blocks = list(script_blocks(LITE, np.array([0.0]), **settings))
    assert [len(block.length) for block in blocks] == [1] * EPISODES
    monkeypatch.setattr(Diverging, "diverging", slice(None))
    with pytest.raises(RuntimeError, match=r"diverged in every episode of 50 blocks, 120 trans"):
        list(script_blocks(LITE, np.array([0.0]), **settings))


def test_success_is_that_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = DrawersLite.script

    def lazy(family: DrawersLite, state: Any, parameters: Array) -> Array:
        """Solves task 1 only where the hand starts on the right half of its possible places."""
        action = script(family, state, parameters)
        action[(parameters[:, 0] == 1) & (state[:, 0] < family.start[0])] = 0.0
        return action

    monkeypatch.setattr(DrawersLite, "script", lazy)
    monkeypatch.setattr(DrawersLite, "script_noise", 0.0)
    dataset = TaskDataset.open(small(tmp_path / "data"))
    success = dataset.manifest.reference_returns["success"]
    returns = dataset.returns_to_go(1.0)[dataset.episodes["start"]]
    for task in (0, 1):
        mine = returns[dataset.episodes["task"] == task]
        assert success[task] == pytest.approx((mine > 0).double().mean().item())
    assert success[0] == 1.0
    assert 0.0 < success[1] < 1.0


def test_reference_returns(tmp_path: Path) -> None:
    references = TaskDataset.open(small(tmp_path / "data")).manifest.reference_returns
    assert references["standing_still"] == [0.0, 0.0]
    assert references["best_behaviour"] == references["stages"]["script"]
    # Without noise the near drawer is open after 5 or 6 steps, the far one after 8 or 9, of 12.
    assert 7.0 <= references["best_behaviour"][0] <= 8.0
    assert 4.0 <= references["best_behaviour"][1] <= 5.0


def test_default_is_a_thousand_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    path = default_dataset_path(LITE)
    assert path.name == "two_drawer_lite-v1-tasks0-seed0-n12000-script-2"
    monkeypatch.setattr(DrawersLite, "script_version", 99)
    assert default_dataset_path(LITE).name.endswith("script-99")
    assert default_dataset_path(LITE, Collection(transitions_per_stage=24)).name.endswith(
        "n24-script-99"
    )


def test_description(data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(DrawersLite, "episodes_per_task", 8)
    report(["dataset", "two_drawer_lite"])
    table = capsys.readouterr().out
    assert "Episodes of the script that succeed, by task: 100.0%, 100.0%." in table
    assert "| script |" in table
    assert len(list(data_root.glob("two_drawer_lite-*-n96-script-2"))) == 1


def test_full_disk_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("offline_meta_rl.data.writer.np.lib.format.write_array", full)
        with pytest.raises(OSError, match="No space left on device"):
            small(tmp_path / "data")
    assert not (tmp_path / "data").exists()
    small(tmp_path / "data")


def test_film_strip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(["strips", "two_drawer_lite", str(tmp_path / "strip.png"), "--every", "4"])
    picture = matplotlib.image.imread(tmp_path / "strip.png")[..., :3]
    assert picture.shape[1] == 440  # four images
    assert (np.abs(picture - [50 / 255, 205 / 255, 50 / 255]).max(axis=-1) < 0.01).sum() > 200
    assert str(tmp_path / "strip.png") in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"family with a script, one of .*lite.*: 'ant_dir'"):
        draw_script("ant_dir", tmp_path / "strip.png")


def test_online_agents_refuse_images(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"two_drawer_lite has images \[3, 16, 16\] .*expected vec"
    ):
        OnlineBuffer(family="two_drawer_lite")
    with pytest.raises(
        ValueError, match=r"two_drawer_lite has images \[3, 16, 16\] .*expected vec"
    ):
        LifetimeBuffers(family="two_drawer_lite", path=str(tmp_path / "data"), lifetime_steps=1000)
