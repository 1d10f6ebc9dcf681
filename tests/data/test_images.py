"""Datasets of images: each image is stored once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.task_buffers import TaskBuffers
from offline_meta_rl.data.dataset import TaskDataset
from tests.helpers import make_dataset
from tests.image_data import SHAPE, image_episodes, image_writer, make_image_dataset

LENGTH = (6, 4, 5)


def test_images_are_stored_once_and_come_back(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "images", length=LENGTH)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*.bin"))
    assert "transitions/next_observation.bin" not in files
    assert (path / "episodes/final_observation.bin").stat().st_size == 2 * 3 * np.prod(SHAPE)
    dataset = TaskDataset.open(path, verify=True)
    assert dataset.manifest.schema_version == 2
    for task in (0, 1):
        transitions, final = image_episodes(LENGTH, seed=31 * task)
        rows = slice(*dataset.task_rows(task))
        assert set(dataset.transitions.keys()) == set(transitions)
        for key, expected in transitions.items():
            np.testing.assert_array_equal(dataset.transitions[key][rows].numpy(), expected)
        mine = dataset.episodes["task"] == task
        found = dataset.episodes["final_observation"][mine]
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.numpy(), final)


def test_final_images_of_several_blocks_keep_their_order(tmp_path: Path) -> None:
    from offline_meta_rl.data.blocks import TaskBlock

    writer = image_writer(tmp_path / "blocks")
    for task in (0, 1):
        transitions, final = image_episodes(LENGTH, seed=31 * task)
        stops = np.cumsum(LENGTH)
        writer.write_blocks(
            task,
            (
                TaskBlock(
                    {key: array[stop - n : stop] for key, array in transitions.items()},
                    [0],
                    [n],
                    final[index : index + 1],
                )
                for index, (n, stop) in enumerate(zip(LENGTH, stops, strict=True))
            ),
        )
    path = writer.commit({"success": [1.0, 1.0]})
    at_once = make_image_dataset(tmp_path / "at_once", length=LENGTH)
    assert TaskDataset.open(path).checksum == TaskDataset.open(at_once).checksum


def test_next_observations_are_taken_apart(tmp_path: Path) -> None:
    writer = image_writer(tmp_path / "taken_apart")
    for task in (0, 1):
        transitions, final = image_episodes(LENGTH, seed=31 * task)
        following = np.concatenate([transitions["observation"][1:], final[:1]])
        following[np.cumsum(LENGTH) - 1] = final
        columns = transitions | {"next_observation": following}
        if task == 0:
            broken = columns | {"next_observation": following.copy()}
            broken["next_observation"][7, 0, 0, 0] ^= 1
            with pytest.raises(ValueError, match="Task 0: row 7: next_observation: expected the"):
                writer.write_task(task, broken, stage=[0] * 3, length=LENGTH)
        writer.write_task(task, columns, stage=[0] * 3, length=LENGTH)
    path = writer.commit({"success": [1.0, 1.0]})
    expected = make_image_dataset(tmp_path / "images", length=LENGTH)
    assert TaskDataset.open(path).checksum == TaskDataset.open(expected).checksum


def _float(columns: dict[str, Any], final: Any) -> tuple[dict[str, Any], Any]:
    return columns | {"observation": columns["observation"] / np.float32(255)}, final


CASES: dict[str, tuple[Any, str]] = {
    "floats": (_float, r"Task 0: observation: expected uint8 images, .* found float32"),
    "channels last": (
        lambda c, f: (c | {"observation": c["observation"].transpose(0, 2, 3, 1)}, f),
        r"Task 0: observation: expected shape \(15, 3, 5, 4\), found \(15, 5, 4, 3\)",
    ),
    "one final image too few": (
        lambda c, f: (c, f[:2]),
        r"Task 0: final_observation: expected shape \(3, 3, 5, 4\), .* found \(2, 3, 5, 4\)",
    ),
    "final images of another type": (
        lambda c, f: (c, f.astype(np.float64)),
        r"Task 0: final_observation: expected uint8 images, .* found float64",
    ),
    "no final images": (
        lambda c, f: (c, None),
        r"Task 0: expected final_observation .* or next_observation, found neither",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_images_that_do_not_fit(case: str, tmp_path: Path) -> None:
    spoil, message = CASES[case]
    columns, final = spoil(*image_episodes(LENGTH))
    writer = image_writer(tmp_path / "images")
    with pytest.raises(ValueError, match=message):
        writer.write_task(0, columns, stage=[0] * 3, length=LENGTH, final_observation=final)
    assert not writer.has_task(0)


def test_damaged_final_image_is_noticed_on_first_touch(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "images")
    file = path / "episodes" / "final_observation.bin"
    content = bytearray(file.read_bytes())
    content[77] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"final_observation\.bin: chunk 0: expected checksum"):
        TaskDataset.open(path)
    dataset = TaskDataset.open(path, verify=False)
    dataset.touch(["observation"])
    with pytest.raises(ValueError, match=r"final_observation\.bin: chunk 0: expected checksum"):
        dataset.touch(["final_observation"], np.array([1]))


def test_missing_or_short_final_images(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "images")
    file = path / "episodes" / "final_observation.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"final_observation\.bin: expected 360 bytes .*found 359"):
        TaskDataset.open(path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"final_observation\.bin is missing"):
        TaskDataset.open(path)


def test_image_data_of_version_one_is_refused(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "images")
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 1}))
    with pytest.raises(ValueError, match=r"'schema_version': expected 2, of data that stores"):
        TaskDataset.open(path)


def test_vectors_are_as_they_were(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "vectors")
    assert json.loads((path / "manifest.json").read_text())["schema_version"] == 1
    dataset = TaskDataset.open(path)
    keys = ["observation", "action", "reward", "next_observation", "terminated", "truncated"]
    assert list(dataset.transitions.keys()) == keys
    names = [f"transitions/{key}" for key in keys]
    names += [f"episodes/{key}" for key in ("task", "stage", "start", "length")]
    assert list(dataset.manifest.arrays) == names


def test_task_buffers_refuse_images(tmp_path: Path) -> None:
    path = make_image_dataset(tmp_path / "images")
    data = TaskBuffers(env="nowhere_images", path=str(path))
    with pytest.raises(ValueError, match=r"holds images \[3, 5, 4\] uint8, .*MetaTrajectories"):
        data.setup("fit")
