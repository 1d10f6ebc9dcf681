"""Reading datasets: what was written comes back, and nothing damaged is taken for whole."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.sampling.fields import FieldTable
from offline_meta_rl.data.arrays import checksum
from offline_meta_rl.data.dataset import EPISODE_KEYS, TRANSITION_KEYS, TaskDataset
from offline_meta_rl.data.manifest import SCHEMA_VERSION
from tests.helpers import STAGES, make_dataset, task_episodes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "dataset")


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "manifest.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def overwrite(path: Path, name: str, index: int, value: float) -> None:
    """Change one float32 of an array and its checksum, as a foreign program might write it."""
    file = path / "transitions" / f"{name}.bin"
    array = np.fromfile(file, dtype=np.float32)
    array[index] = value
    array.tofile(file)

    def change(values: dict[str, Any]) -> None:
        values["arrays"][f"transitions/{name}"]["checksums"] = [checksum(array)]

    edit_manifest(path, change)


def test_what_was_written_comes_back_in_order(path: Path) -> None:
    dataset = TaskDataset.open(path)
    row = episode = 0
    for task in range(3):
        transitions, stage, length = task_episodes(task)
        assert dataset.task_rows(task) == (row, row + sum(length))
        for key in TRANSITION_KEYS:
            found = dataset.transitions[key][row : row + sum(length)]
            np.testing.assert_array_equal(found.numpy(), transitions[key])
            assert found.dtype == (torch.bool if key in TRANSITION_KEYS[-2:] else torch.float32)
        for steps, label in zip(length, stage, strict=True):
            found_episode = [int(dataset.episodes[key][episode]) for key in EPISODE_KEYS]
            assert found_episode == [task, label, row, steps]
            row, episode = row + steps, episode + 1
    assert len(dataset) == row == sum(dataset.manifest.num_transitions)
    assert len(dataset.episodes) == episode == sum(dataset.manifest.num_episodes)


def test_manifest_says_what_the_tasks_are(path: Path) -> None:
    manifest = TaskDataset.open(path).manifest
    assert manifest.schema_version == 1
    assert (manifest.num_tasks, manifest.observation_size, manifest.action_size) == (3, 4, 2)
    assert manifest.observation_space["low"] is None
    assert manifest.action_space["low"] == -1.0
    assert manifest.task_parameters == [[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]]
    assert manifest.stages == STAGES
    assert manifest.reference_returns["best_behaviour"] == [10.0] * 3
    assert manifest.reference_returns["stages"]["expert"] == [15.0] * 3
    assert TaskDataset.open(path).split("default") == ([0, 2], [1])
    assert TaskDataset.open(path).split("all") == ([0, 1, 2], [0, 1, 2])


def test_checksum_identifies_the_data_not_its_provenance(path: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", seed=1)
    first, second = TaskDataset.open(path).checksum, TaskDataset.open(other).checksum
    assert len(first) == 32
    assert first != second
    edit_manifest(path, lambda values: values["provenance"].update(note="copied"))
    assert TaskDataset.open(path).checksum == first


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_returns_to_go_equal_a_slow_loop(tmp_path: Path, ragged: bool, discount: float) -> None:
    dataset = TaskDataset.open(make_dataset(tmp_path / "dataset", ragged=ragged))
    reward = dataset.transitions["reward"].tolist()
    ended = (dataset.transitions["terminated"] | dataset.transitions["truncated"]).tolist()
    expected = [0.0] * len(reward)
    following = 0.0
    for row in reversed(range(len(reward))):
        following = reward[row] + discount * (0.0 if ended[row] else following)
        expected[row] = following
    found = dataset.returns_to_go(discount)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_terminal_observation_and_discount_point_at_the_end_of_the_episode(path: Path) -> None:
    dataset = TaskDataset.open(path)
    fields = ["terminal_observation", "terminal_discount"]
    table = FieldTable(dataset, fields, 0.9, torch.device("cpu"))
    found = table.gather(np.arange(len(dataset)))
    for start, length in zip(
        *(dataset.episodes[k].tolist() for k in ("start", "length")), strict=True
    ):
        last = dataset.transitions["next_observation"][start + length - 1]
        for step in range(length):
            assert torch.equal(found["terminal_observation"][start + step], last)
            discount = float(found["terminal_discount"][start + step])
            assert discount == pytest.approx(0.9 ** (length - step), rel=1e-6)
    assert dataset.terminal_discount(0.9)[int(dataset.episode_end[0])] == pytest.approx(0.9)


def test_memory_mapped_and_resident_fields_are_equal(path: Path) -> None:
    dataset = TaskDataset.open(path, verify=False)
    fields = ["observation", "action", "return_to_go", "terminal_observation", "truncated"]
    rows = np.random.default_rng(0).integers(0, len(dataset), (2, 3, 5))
    mapped = FieldTable(dataset, fields, 0.99, None).gather(rows)
    resident = FieldTable(dataset, fields, 0.99, torch.device("cpu")).gather(rows)
    assert mapped.batch_size == (2, 3, 5)
    for key in fields:
        assert torch.equal(mapped[key], resident[key])
    assert torch.equal(mapped["observation"], dataset.transitions["observation"][rows])


def test_writing_to_what_was_read_changes_no_file(path: Path) -> None:
    TaskDataset.open(path).transitions["reward"].zero_()
    TaskDataset.open(path, verify=True)


def test_reading_needs_no_simulator(path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(gymnasium=None, mujoco=None, fcntl=None)\n"
        "from offline_meta_rl.data.dataset import TaskDataset\n"
        f"print(len(TaskDataset.open({str(path)!r})))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == len(TaskDataset.open(path))


@pytest.mark.parametrize("task", [-1, 3])
def test_unknown_task(path: Path, task: int) -> None:
    with pytest.raises(ValueError, match=f"Unknown task {task}: expected 0 to 2"):
        TaskDataset.open(path).task_rows(task)


def test_unknown_split(path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Unknown split 'hard': expected one of \['all', 'default'\]"
    ):
        TaskDataset.open(path).split("hard")


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No dataset at .*expected a folder with manifest"):
        TaskDataset.open(tmp_path / "nowhere")


def test_truncated_array(path: Path) -> None:
    file = path / "transitions" / "action.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"action\.bin: expected {size} bytes .*found {size - 8}"):
        TaskDataset.open(path)


def test_corrupt_array(path: Path) -> None:
    file = path / "transitions" / "reward.bin"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"reward\.bin: chunk 0: expected checksum .*corrupt"):
        TaskDataset.open(path)


def test_array_of_another_dataset(path: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", seed=1, ragged=False)
    same = make_dataset(tmp_path / "same", seed=2, ragged=False)
    shutil.copy(other / "transitions" / "observation.bin", same / "transitions" / "observation.bin")
    with pytest.raises(ValueError, match=r"observation\.bin: chunk 0.*belongs to another dataset"):
        TaskDataset.open(same)


def test_missing_array(path: Path) -> None:
    (path / "transitions" / "terminated.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"terminated\.bin is missing"):
        TaskDataset.open(path)


def test_damage_is_found_where_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline_meta_rl.data.arrays.CHUNK_BYTES", 64)
    monkeypatch.setattr("offline_meta_rl.data.writer.CHUNK_BYTES", 64)
    path = make_dataset(tmp_path / "dataset")
    file = path / "transitions" / "reward.bin"
    content = bytearray(file.read_bytes())
    content[64 * 3 + 1] ^= 1  # row 48 of 16 rows a chunk
    file.write_bytes(content)
    dataset = TaskDataset.open(path, verify=False)
    dataset.touch(["reward", "action"], np.array([0, 47, 64]))
    with pytest.raises(ValueError, match=r"reward\.bin: chunk 3"):
        dataset.touch(["reward"], np.array([63]))
    with pytest.raises(ValueError, match=r"reward\.bin: chunk 3"):
        dataset.validate()
    with pytest.raises(ValueError, match=r"reward\.bin: chunk 3"):
        TaskDataset.open(path, verify=True)


def test_newer_version(path: Path) -> None:
    edit_manifest(path, lambda values: values.update(schema_version=3))
    with pytest.raises(ValueError, match=r"'schema_version': expected at most 2, found 3.*update"):
        TaskDataset.open(path)


@pytest.mark.parametrize("version", [0, -1])
def test_version_that_never_existed(path: Path, version: int) -> None:
    edit_manifest(path, lambda values: values.update(schema_version=version))
    expected = f"expected 1 to {SCHEMA_VERSION}, found {version}"
    with pytest.raises(ValueError, match=f"'schema_version': {expected}"):
        TaskDataset.open(path)


@pytest.mark.parametrize(
    "text", ["{}", "[1, 2]", '{"schema_version": "one"}', '{"schema_version": true}']
)
def test_foreign_manifest(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: expected the manifest of a dataset"):
        TaskDataset.open(path)


def test_cut_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"manifest\.json: expected JSON"):
        TaskDataset.open(path)


BAD_FIELDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda v: v.pop("horizon"), "field 'horizon' is missing"),
    "type": (lambda v: v.update(stages="all"), "'stages': expected list, found str"),
    "task count": (
        lambda v: v["num_episodes"].append(1),
        "'num_episodes': expected 3 tasks, found 4",
    ),
    "split": (
        lambda v: v["splits"]["all"]["test"].append(7),
        "'splits': 'all': expected .* 0 to 2",
    ),
    "reference": (
        lambda v: v["reference_returns"]["random"].pop(),
        "'reference_returns': 'random': expected 3 tasks, found 2",
    ),
    "shape": (
        lambda v: v["observation_space"].update(shape=[5]),
        r"'transitions/observation': expected \[\d+, 5\] float32, found \[\d+, 4\]",
    ),
    "dtype": (
        lambda v: v["arrays"]["transitions/reward"].update(dtype="float64"),
        "'transitions/reward': expected .* float32, found .* float64",
    ),
    "array": (lambda v: v["arrays"].pop("episodes/stage"), "'episodes/stage' is missing"),
    "entry": (lambda v: v["arrays"]["episodes/stage"].pop("file"), "'arrays': .*'file'"),
    "bytes": (lambda v: v["arrays"]["episodes/stage"].update(bytes=1), "1 bytes do not fit"),
    "checksums": (
        lambda v: v["arrays"]["episodes/stage"].update(checksums=[]),
        "0 checksums do not fit",
    ),
    "chunk": (lambda v: v.update(chunk_bytes=0), "'chunk_bytes': expected a multiple of 8"),
    "counts": (
        lambda v: v["num_transitions"].reverse(),
        r"length\.bin: expected episodes in \(task, time\) order",
    ),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_manifest_that_contradicts_itself(path: Path, case: str) -> None:
    change, message = BAD_FIELDS[case]
    edit_manifest(path, change)
    with pytest.raises(ValueError, match=message):
        TaskDataset.open(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(path: Path, value: float) -> None:
    overwrite(path, "next_observation", 4 * 6 + 1, value)
    with pytest.raises(
        ValueError, match=r"next_observation\.bin: row 6: expected finite .*(nan|inf)"
    ):
        TaskDataset.open(path)
