"""The data tools on datasets of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data_tools.command import data_command
from offline_meta_rl.data_tools.plot import overlap
from offline_meta_rl.data_tools.validate import validate
from tests.image_data import image_episodes, image_writer, make_image_dataset


def assert_same_episodes(found: TaskDataset, expected: TaskDataset) -> None:
    """Check that two datasets have the same arrays."""
    for group in ("transitions", "episodes"):
        for key, values in getattr(expected, group).items():
            assert torch.equal(values, getattr(found, group)[key]), key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_image_dataset(tmp_path / "images", length=(6, 4, 5, 6))


def test_info(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_command(["info", str(path)])
    shown = capsys.readouterr().out
    assert "[3, 5, 4] uint8, 0 to 255" in shown
    assert "100.0%" in shown  # success


def test_validate_names_the_episode_of_a_damaged_final_image(path: Path) -> None:
    assert validate(path) == []
    file = path / "episodes" / "final_observation.bin"
    content = bytearray(file.read_bytes())
    content[5 * 60] ^= 1  # episode 5, the second of task 1
    file.write_bytes(content)
    (finding,) = validate(path)
    assert (finding.task, finding.array) == (0, "episodes/final_observation")
    assert "rows 0 to 7: expected checksum" in finding.message
    file.write_bytes(content[:-1])
    (finding,) = validate(path)
    assert (finding.array, finding.row) == ("episodes/final_observation", 7)
    assert "expected 480 bytes, found 479" in finding.message


def test_validate_checks_ends_of_episodes(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["horizon"] = 5
    (path / "manifest.json").write_text(json.dumps(manifest))
    findings = validate(path)
    assert [finding.array for finding in findings] == ["episodes/length"]
    assert "expected 1 to 5 steps, the horizon; found 6 (4 such episodes)" in findings[0].message


def test_split_and_merge_again(path: Path, tmp_path: Path) -> None:
    whole = TaskDataset.open(path)
    some, rest = tmp_path / "some", tmp_path / "rest"
    data_command(["split", str(path), str(some), "--rest", str(rest), "--tasks", "1"])
    chosen = TaskDataset.open(some)
    mine = whole.episodes["task"] == 1
    assert torch.equal(
        chosen.episodes["final_observation"], whole.episodes["final_observation"][mine]
    )
    data_command(["merge", str(rest), str(some), "--into", str(tmp_path / "merged")])
    merged = TaskDataset.open(tmp_path / "merged")
    assert_same_episodes(merged, whole)
    assert merged.manifest.reference_returns == {"success": [1.0, 1.0]}
    assert all(validate(folder) == [] for folder in (some, rest, tmp_path / "merged"))


def test_half_of_the_episodes_keep_their_own_final_images(path: Path, tmp_path: Path) -> None:
    whole = TaskDataset.open(path)
    data_command(["split", str(path), str(tmp_path / "half"), "--fraction", "0.5"])
    half = TaskDataset.open(tmp_path / "half")
    assert half.manifest.num_episodes == [2, 2]
    first = {
        whole.transitions["observation"][int(start)].numpy().tobytes(): final
        for start, final in zip(
            whole.episodes["start"], whole.episodes["final_observation"], strict=True
        )
    }
    for start, final in zip(
        half.episodes["start"], half.episodes["final_observation"], strict=True
    ):
        image = half.transitions["observation"][int(start)].numpy().tobytes()
        assert torch.equal(first[image], final)


def test_minari_and_back(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("minari")
    data_command(["convert", str(path), str(tmp_path / "minari"), "--to", "minari"])
    assert data_command(["validate", str(tmp_path / "minari")]) is None
    data_command(["convert", str(tmp_path / "minari"), str(tmp_path / "back")])
    back, whole = TaskDataset.open(tmp_path / "back"), TaskDataset.open(path)
    assert_same_episodes(back, whole)
    assert back.manifest.observation_space == whole.manifest.observation_space


def test_plain_folder(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    length = (6, 4, 5, 6)
    for task in (0, 1):
        columns, final = image_episodes(length, seed=31 * task)
        following = np.concatenate([columns["observation"][1:], final[:1]])
        following[np.cumsum(length) - 1] = final
        np.savez(folder / f"task_{task}.npz", **columns, next_observation=following)
    (folder / "description.yaml").write_text(
        "environment: {id: nowhere/Images-v0}\nhorizon: 6\nfamily: nowhere_images\n"
    )
    data_command(["convert", str(folder), str(tmp_path / "native")])
    native = TaskDataset.open(tmp_path / "native")
    assert_same_episodes(native, TaskDataset.open(path))
    assert native.manifest.observation_space == TaskDataset.open(path).manifest.observation_space


def test_plot_of_large_images(tmp_path: Path) -> None:
    """Images are averaged first: 3 x 64 x 40 numbers would need minutes."""
    shape = (3, 64, 40)
    path = make_image_dataset(tmp_path / "large", shape=shape)
    data_command(["plot", str(path), str(tmp_path / "picture.png")])
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (1800, 576)


def test_overlap_of_images_tells_tasks_apart(tmp_path: Path) -> None:
    shape = (3, 20, 20)
    writer = image_writer(tmp_path / "images", num_tasks=3, shape=shape)
    for task, place in enumerate((2, 2, 12)):
        columns, final = image_episodes([6] * 40, shape=shape, seed=task)
        images = np.zeros_like(columns["observation"])
        column = place + np.random.default_rng(task).integers(0, 5, len(images))
        images[np.arange(len(images)), :, 10, column] = 255
        columns["observation"] = images
        writer.write_task(task, columns, stage=[0] * 40, length=[6] * 40, final_observation=final)
    found = overlap(TaskDataset.open(writer.commit({})))
    assert found[0, 1] > 0.5
    assert found[0, 2] < 0.1
