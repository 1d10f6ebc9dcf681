"""Datasets at URLs: copied once, checked, resumed."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from datamodules.sampling.tasks import Batches
from datamodules.task_buffers import TaskBuffers
from offline_meta_rl.data import remote
from offline_meta_rl.data.dataset import TaskDataset
from offline_meta_rl.data.remote import local_dataset
from offline_meta_rl.data_tools.command import data_command
from tests.data.test_writer import DiskOf
from tests.helpers import make_dataset

URL = "memory://bucket/dataset"


@pytest.fixture
def uploaded(tmp_path: Path) -> TaskDataset:
    """A dataset, also at a URL."""
    dataset = TaskDataset.open(make_dataset(tmp_path / "dataset"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    upload(dataset.path)
    return dataset


def upload(folder: Path) -> None:
    system = fsspec.filesystem("memory")
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe_file(f"/bucket/dataset/{file.relative_to(folder)}", file.read_bytes())


def put(file: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"/bucket/dataset/{file}", content)


def read(file: str) -> bytes:
    content: bytes = fsspec.filesystem("memory").cat_file(f"/bucket/dataset/{file}")
    return content


def test_copied_once(uploaded: TaskDataset, data_root: Path) -> None:
    copy = local_dataset(URL)
    assert copy.parent == data_root
    assert uploaded.checksum[:16] in copy.name
    assert TaskDataset.open(copy, verify=True).checksum == uploaded.checksum
    fsspec.filesystem("memory").rm("/bucket/dataset/transitions", recursive=True)
    assert local_dataset(f"{URL}/") == copy
    assert not list(data_root.glob("*.partial"))


def test_changed_dataset_is_copied_anew(uploaded: TaskDataset, tmp_path: Path) -> None:
    first = local_dataset(URL)
    other = TaskDataset.open(make_dataset(tmp_path / "other", seed=1))
    upload(other.path)
    second = local_dataset(URL)
    assert second != first
    assert TaskDataset.open(second).checksum == other.checksum


def test_local_paths_are_left_alone(tmp_path: Path) -> None:
    assert local_dataset(tmp_path) == tmp_path
    assert local_dataset(f"file://{tmp_path}") == tmp_path


def test_training_and_tools_take_urls(
    uploaded: TaskDataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = TaskBuffers(env="point_robot", path=URL, batches=Batches(tasks=2, inner_size=8))
    data.prepare_data()
    data.setup("test")
    assert data.dataset.checksum == uploaded.checksum
    data_command(["info", URL, "--json"])
    assert json.loads(capsys.readouterr().out)["checksum"] == uploaded.checksum
    data_command(["validate", URL])
    data_command(["split", URL, str(tmp_path / "part"), "--tasks", "0"])
    assert TaskDataset.open(tmp_path / "part").manifest.num_tasks == 1


def test_interrupted_copy_goes_on_at_the_chunk(
    uploaded: TaskDataset, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    calls: list[int] = []
    checksum = remote.checksum

    def interrupting(content: Any) -> str:
        calls.append(len(content))
        if len(calls) == 8:
            raise KeyboardInterrupt
        return checksum(content)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "checksum", interrupting)
        with pytest.raises(KeyboardInterrupt):
            local_dataset(URL)
    (partial,) = data_root.glob("*.partial")
    assert not (partial / "manifest.json").exists()
    finished = [file for file in partial.rglob("*.bin") if file.stat().st_size]
    assert finished
    for file in finished:  # a file that is there already is not read again
        put(str(file.relative_to(partial)), b"")
    copy = local_dataset(URL)
    assert TaskDataset.open(copy, verify=True).checksum == uploaded.checksum


def test_damaged_part_of_an_interrupted_copy_is_read_again(
    uploaded: TaskDataset, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(remote.os, "rename", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            local_dataset(URL)
    (partial,) = data_root.glob("*.partial")
    file = partial / "transitions" / "reward.bin"
    file.write_bytes(file.read_bytes()[:-8] + b"12345678more")
    copy = local_dataset(URL)
    assert TaskDataset.open(copy, verify=True).checksum == uploaded.checksum


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_full_disk(uploaded: TaskDataset, data_root: Path) -> None:
    with DiskOf(1000), pytest.raises(OSError, match=r"Nothing but .*\.partial was written"):
        local_dataset(URL)
    assert [path.suffix for path in data_root.iterdir() if path.is_dir()] == [".partial"]
    TaskDataset.open(local_dataset(URL), verify=True)


def test_damaged_array(uploaded: TaskDataset, data_root: Path) -> None:
    content = read("transitions/reward.bin")
    put("transitions/reward.bin", content[:-1])
    with pytest.raises(ValueError, match=r"reward\.bin: chunk 0: expected checksum .*cut short"):
        local_dataset(URL)
    assert [path.suffix for path in data_root.iterdir() if path.is_dir()] == [".partial"]
    put("transitions/reward.bin", content)
    TaskDataset.open(local_dataset(URL), verify=True)


def test_missing_parts(uploaded: TaskDataset) -> None:
    fsspec.filesystem("memory").rm("/bucket/dataset/episodes/stage.bin")
    with pytest.raises(FileNotFoundError, match=r"expected episodes/stage\.bin there, found none"):
        local_dataset(URL)
    with pytest.raises(FileNotFoundError, match=r"expected manifest\.json there, found none"):
        local_dataset("memory://bucket/nothing")


def test_files_outside_the_dataset_are_refused(uploaded: TaskDataset, tmp_path: Path) -> None:
    text = read("manifest.json").decode()
    put("manifest.json", text.replace("episodes/stage.bin", "../../stage.bin").encode())
    with pytest.raises(
        ValueError, match=r"expected files inside the dataset's folder, found '\.\."
    ):
        local_dataset(URL)


def test_dataset_of_another_version(uploaded: TaskDataset) -> None:
    text = read("manifest.json").decode().replace('"schema_version": 1', '"schema_version": 9')
    put("manifest.json", text.encode())
    with pytest.raises(ValueError, match="'schema_version': expected at most 2, found 9"):
        local_dataset(URL)


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"expected a URL that fsspec knows.*found Protocol"):
        local_dataset("nothing://bucket/dataset")


def test_without_a_connection_the_copy_is_used(
    uploaded: TaskDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = local_dataset(URL)

    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", unreachable)
    assert local_dataset(URL) == copy
    assert "using the copy made before" in caplog.text
    with pytest.raises(ConnectionError, match=r"cannot be read .TimeoutError: no answer"):
        local_dataset("memory://bucket/other")
