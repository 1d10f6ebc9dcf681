"""Conversions: what comes out is what went in, whatever the layout."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from numpy.typing import NDArray

from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.writer import DatasetWriter
from offline_meta_rl.data_tools.command import data_command
from offline_meta_rl.data_tools.formats import files
from offline_meta_rl.data_tools.validate import validate
from offline_meta_rl.envs.locomotion.families import WalkerParams
from tests.data_tools import layouts
from tests.helpers import make_dataset

MINARI_WARNINGS = pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")


def assert_tasks(dataset: TaskDataset, tasks: list[dict[str, NDArray[Any]]]) -> None:
    for task, expected in enumerate(tasks):
        rows = slice(*dataset.task_rows(task))
        for key, values in expected.items():
            np.testing.assert_array_equal(dataset.transitions[key][rows].numpy(), values, key)
        returns = layouts.returns_to_go(expected["reward"], layouts.LENGTHS[task])
        found = dataset.returns_to_go(layouts.DISCOUNT)[rows].numpy()
        np.testing.assert_allclose(found, returns, rtol=1e-5, atol=1e-5)
        lengths = dataset.episodes["length"][dataset.episodes["task"] == task]
        assert lengths.tolist() == layouts.LENGTHS[task]


def test_native_to_minari_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = TaskDataset.open(make_dataset(tmp_path / "before"))
    monkeypatch.chdir(tmp_path)
    data_command(["convert", "before", "minari", "--to", "minari"])
    data_command(["convert", "minari", "after"])
    after = TaskDataset.open(tmp_path / "after")
    assert after.checksum == before.checksum
    assert (after.transitions == before.transitions).all()
    assert (after.episodes == before.episodes).all()
    assert (after.returns_to_go(0.9) == before.returns_to_go(0.9)).all()
    assert not list(tmp_path.glob("*.partial"))


def test_minari_reads_what_is_written_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TaskDataset.open(make_dataset(tmp_path / "before"))
    data_command(["convert", str(tmp_path / "before"), str(tmp_path / "minari"), "--to", "minari"])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert list(minari.list_local_datasets()) == [f"point_robot/task-0000{t}-v0" for t in range(3)]
    loaded = minari.load_dataset("point_robot/task-00001-v0")
    first, stop = dataset.task_rows(1)
    assert (loaded.total_episodes, loaded.total_steps) == (8, stop - first)
    row = first
    for episode in loaded.iterate_episodes():
        last = row + len(episode.rewards)
        rows = slice(row, last)
        assert (episode.observations[:-1] == dataset.transitions["observation"][rows].numpy()).all()
        final = dataset.transitions["next_observation"][last - 1].numpy()
        assert (episode.observations[-1] == final).all()
        assert (episode.terminations == dataset.transitions["terminated"][rows].numpy()).all()
        assert (episode.truncations == dataset.transitions["truncated"][rows].numpy()).all()
        row = last
    assert row == stop


@MINARI_WARNINGS
def test_minari_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_minari(tmp_path / "minari", monkeypatch)
    description = tmp_path / "about.yaml"
    description.write_text(layouts.DESCRIPTION)
    arguments = ["--description", str(description), "--test_tasks", "1"]
    data_command(["convert", str(tmp_path / "minari"), str(tmp_path / "native"), *arguments])
    dataset = TaskDataset.open(tmp_path / "native")
    assert_tasks(dataset, [layouts.forward_task(task) for task in range(2)])
    assert dataset.split() == ([0], [1])
    assert dataset.manifest.action_space["high"] == 1.0


def test_macaw(tmp_path: Path) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    target = tmp_path / "native"
    pickles = ["--task_pickles", str(tmp_path / "macaw")]
    data_command(["convert", str(tmp_path / "macaw"), str(target), *pickles])
    dataset = TaskDataset.open(target)
    expected = [
        layouts.make_episodes(lengths, layouts.HORIZON, 20, 6, seed=task)
        for task, lengths in enumerate(layouts.LENGTHS)
    ]
    assert_tasks(dataset, expected)
    assert dataset.manifest.task_parameters == [[0.075], [0.15]]
    assert dataset.manifest.family == "cheetah_vel"
    assert validate(target) == []
    with h5py.File(tmp_path / "macaw" / "buffers_cheetah_vel_train_0_sub_task_0.hdf5") as file:
        stored = file["mc_rewards"][:, 0]
    forward = np.concatenate([part[::-1] for part in np.split(stored, np.cumsum([20, 7, 20, 1]))])
    found = dataset.returns_to_go(layouts.DISCOUNT)[: len(forward)]
    np.testing.assert_allclose(found, forward, rtol=1e-5, atol=1e-5)


def test_macaw_without_a_discount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "DISCOUNT", 1.0)
    layouts.write_macaw(tmp_path / "macaw")
    data_command(["convert", str(tmp_path / "macaw"), str(tmp_path / "native"), "--task_seed", "0"])
    dataset = TaskDataset.open(tmp_path / "native")
    assert dataset.episodes["length"].tolist() == [*layouts.LENGTHS[0], *layouts.LENGTHS[1]]
    assert validate(tmp_path / "native") == []


@pytest.mark.mujoco
def test_macaw_walkers_are_the_same_bodies(tmp_path: Path) -> None:
    layouts.write_macaw(tmp_path / "macaw", "walker_param", 17)
    family = WalkerParams()
    bodies = [family.model(parameters) for parameters in family.task_parameters(3)[:2]]
    files = [tmp_path / "macaw" / f"env_walker_param_train_task{task}.pkl" for task in range(2)]
    for body, file in zip(bodies, files, strict=True):
        values = {name: array.copy() for name, (array, _) in family.scaled_arrays(body).items()}
        file.write_bytes(pickle.dumps([values]))
    command = ["convert", str(tmp_path / "macaw"), str(tmp_path / "native")]
    data_command([*command, "--task_pickles", str(tmp_path / "macaw")])
    manifest = TaskDataset.open(tmp_path / "native").manifest
    assert manifest.family == "walker_params"
    for body, parameters in zip(bodies, manifest.task_parameters, strict=True):
        found = family.model(np.asarray(parameters))
        expected = family.scaled_arrays(body)
        for name, (array, _) in family.scaled_arrays(found).items():
            np.testing.assert_allclose(array, expected[name][0], rtol=1e-12)
    values["body_mass"] = values["body_mass"] * 20.0
    files[1].write_bytes(pickle.dumps([values]))
    with pytest.raises(SystemExit, match=r"body_mass: expected \d+ values between .*other"):
        data_command(
            [*command[:2], str(tmp_path / "other"), "--task_pickles", str(tmp_path / "macaw")]
        )


def test_macaw_stride_keeps_whole_episodes(tmp_path: Path) -> None:
    layouts.write_macaw(tmp_path / "macaw")
    data_command(
        [
            *("convert", str(tmp_path / "macaw"), str(tmp_path / "native"), "--stride", "2"),
            *("--task_seed", "0"),
        ]
    )
    dataset = TaskDataset.open(tmp_path / "native")
    assert dataset.episodes["length"].tolist() == [20, 20, 13, 20, 4]
    assert validate(tmp_path / "native") == []


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_plain_files(tmp_path: Path, suffix: str) -> None:
    layouts.write_plain(tmp_path / "files", suffix)
    data_command(["convert", str(tmp_path / "files"), str(tmp_path / "native")])
    dataset = TaskDataset.open(tmp_path / "native")
    assert_tasks(dataset, [layouts.forward_task(task) for task in range(2)])
    assert dataset.manifest.task_parameters == [[0.0], [1.0]]


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_plain_files_with_stages_and_lengths(tmp_path: Path, suffix: str) -> None:
    layouts.write_plain(tmp_path / "files", suffix)
    for task, lengths in enumerate(layouts.LENGTHS):
        stage = np.arange(len(lengths)) % 2
        layouts.write_plain_task(
            tmp_path / "files" / f"task_{task}{suffix}",
            layouts.forward_task(task) | {"length": lengths, "stage": stage},
        )
    (tmp_path / "files" / "description.yaml").write_text(
        layouts.DESCRIPTION + "stages: [poor, expert]\n"
    )
    data_command(["convert", str(tmp_path / "files"), str(tmp_path / "native")])
    dataset = TaskDataset.open(tmp_path / "native")
    assert dataset.episodes["stage"].tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    assert dataset.manifest.stages == ["poor", "expert"]


@pytest.mark.parametrize("layout", ["native", "minari", "macaw", ".npz", ".hdf5"])
@MINARI_WARNINGS
def test_blocks_of_a_few_rows_change_nothing(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    if layout == "native":
        make_dataset(data)
    elif layout == "minari":
        layouts.write_minari(data, monkeypatch)
        (data / "description.yaml").write_text(layouts.DESCRIPTION)
    elif layout == "macaw":
        layouts.write_macaw(data)
    else:
        layouts.write_plain(data, layout)
    options = ["--task_seed", "0"] if layout == "macaw" else []
    data_command(["convert", str(data), str(tmp_path / "large"), *options])
    blocks: list[int] = []
    monkeypatch.setattr(files, "BLOCK_BYTES", 300)
    write = DatasetWriter.write_blocks

    def counting(self: Any, task: int, parts: Any, advance: Any) -> None:
        listed = list(parts)
        blocks.append(len(listed))
        write(self, task, iter(listed), advance)

    monkeypatch.setattr(DatasetWriter, "write_blocks", counting)
    data_command(["convert", str(data), str(tmp_path / "small"), *options])
    large, small = (TaskDataset.open(tmp_path / name) for name in ("large", "small"))
    assert min(blocks) > 1
    assert large.checksum == small.checksum
