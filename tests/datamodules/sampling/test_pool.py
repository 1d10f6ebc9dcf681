"""Training from chunks: right contents, a function of seed and step, resuming, threads that end."""

import shutil
import threading
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDict

from datamodules import TaskBuffers
from datamodules.sampling.fields import FieldTable
from offline_meta_rl.data.dataset import TaskDataset
from tests.helpers import make_dataset, task_buffers
from tests.methods import tiny

FIELDS = ["reward", "observation", "truncated", "return_to_go", "terminal_observation"]
CHUNKS: dict[str, Any] = {"sampling": "chunks", "chunk_size": 7, "chunks_per_task": 5}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chunk_sampling") / "dataset"
    return make_dataset(folder, num_tasks=7, test_tasks=(2, 5), episodes_per_stage=5)


def buffers(path: Path, **changes: Any) -> TaskBuffers:
    settings: dict[str, Any] = {"inner_size": 8, "outer_size": 12, "fields": FIELDS}
    data = task_buffers(path, **(settings | CHUNKS | changes))
    data.setup("fit")
    return data


def rows_of(data: TaskBuffers, batch: TensorDict) -> np.ndarray[Any, Any]:
    """Find the rows of transitions by their rewards, which all differ."""
    reward = data.dataset.transitions["reward"]
    order = torch.argsort(reward)
    return order[torch.searchsorted(reward[order], batch["reward"].contiguous())].numpy()


def equal(first: TensorDict, second: TensorDict) -> bool:
    return bool((first == second).all())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("made_ahead")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"updates": 3, "tasks": None},
        {"stride": 3, "chunk_size": 11},
        {"inner_slice": ["poor", "expert"], "outer_slice": ["poor", "expert"]},
        {"inner_slice": ["poor"], "outer_slice": ["fair", "poor"], "updates": 2},
    ],
    ids=["plain", "updates", "stride", "stages", "slices"],
)
def test_batches_hold_the_rows_of_the_dataset(path: Path, changes: dict[str, Any]) -> None:
    data = buffers(path, **changes)
    stored = FieldTable(data.dataset, FIELDS, 0.99, torch.device("cpu"))
    episodes = data.dataset.episodes
    stages = np.repeat(episodes["stage"].numpy(), episodes["length"].numpy())
    for step in (0, 1, 2, 40, 3):
        batch = data.batch(step)
        drawn = {}
        for name, size in (("inner", 8), ("outer", 12)):
            rows = rows_of(data, batch[name])
            assert batch[name].batch_size == (*batch.batch_size, size)
            assert equal(batch[name], stored.gather(rows))
            for task, mine in zip(batch["task"].flatten(), rows.reshape(-1, size), strict=True):
                start, stop = data.dataset.task_rows(int(task))
                assert ((start <= mine) & (mine < stop)).all()
                assert ((mine - start) % changes.get("stride", 1) == 0).all()
            wanted = changes.get(f"{name}_slice")
            if wanted:
                names = {data.dataset.manifest.stages[stage] for stage in stages[rows].ravel()}
                assert names == set(wanted)
            drawn[name] = rows.reshape(-1, size)
        for inner, outer in zip(drawn["inner"], drawn["outer"], strict=True):
            assert len({*inner, *outer}) == 20


def test_batch_is_a_function_of_seed_and_step(path: Path) -> None:
    data = buffers(path)
    batches = [data.batch(step) for step in range(12)]
    assert equal(buffers(path).batch(11), batches[11])
    assert equal(data.batch(4), batches[4])
    assert not equal(buffers(path, seed=1).batch(4)["inner"], batches[4]["inner"])
    grouped = buffers(path, updates=3).batch(2)
    for index in range(3):
        assert equal(grouped[index], batches[6 + index][0])


@pytest.mark.parametrize(("tasks", "processes"), [(5, 2), (2, 3), (None, 2)])
def test_shards_of_all_processes_are_the_global_batch(
    path: Path, tasks: int | None, processes: int
) -> None:
    changes = {"tasks": tasks, "updates": 2}
    whole = buffers(path, **changes).batch(7)
    for rank in range(processes):
        own = buffers(path, **changes)
        for step in (5, 7):
            shard = own.batch(step, rank=rank, world_size=processes)
        assert equal(shard, whole[:, rank::processes])
        assert shard["inner", "observation"].shape[2:] == (8, 4)


def test_an_epoch_reads_every_row_once_and_holds_no_more_than_the_windows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = FieldTable.read

    def counted(self: FieldTable, rows: np.ndarray[Any, Any]) -> Any:
        read.extend(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(FieldTable, "read", counted)
    data = buffers(path)
    sizes = [np.diff(data.dataset.task_rows(task))[0] for task in data.train_tasks]
    steps = int(max(sizes) / 20)  # all five train tasks, 20 rows of each, in every step
    epochs = 6
    for step in range(epochs * steps):
        data.batch(step)
    per_epoch = len(read) / sum(sizes) / epochs
    assert 0.9 < per_epoch < 1.15
    (pool,) = data._pools
    for column in pool._columns.values():
        assert len(column) == len(sizes) * 5 * 7 < 0.6 * sum(sizes)


def test_damage_is_found_when_a_chunk_is_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(path, tmp_path / "copy")
    file = tmp_path / "copy" / "transitions" / "observation.bin"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr("offline_meta_rl.data.stored.VERIFY_AT_OPEN_BYTES", 0)
    data = buffers(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"observation\.bin: chunk 0: expected checksum"):
        data.batch(0)


def test_rows_far_apart_are_read_by_themselves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = TaskDataset.open(path)
    for skipped in (2**16, 40):
        monkeypatch.setattr("offline_meta_rl.data.arrays.SKIPPED_BYTES", skipped)
        for rows in ([5], [0, 1, 2, 9, 10, 300, 301], range(len(dataset))):
            chosen = np.array(rows)
            for key, values in dataset.transitions.items():
                np.testing.assert_array_equal(dataset.read(key, chosen), values[chosen].numpy())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_single_rows_of_a_mapped_file_are_read_without_their_neighbours(tmp_path: Path) -> None:
    def advice(file: Path) -> list[str]:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(n for n, line in enumerate(lines) if line.endswith(str(file)))
        return next(line for line in lines[start:] if line.startswith("VmFlags")).split()

    dataset = TaskDataset.open(make_dataset(tmp_path / "dataset"))
    file = dataset.path / "transitions" / "observation.bin"
    assert "rr" not in advice(file)
    FieldTable(dataset, ["observation"], 0.99, None)
    assert "rr" in advice(file)


class Recorder(lightning.LightningModule):
    """Trains one number; remembers what it saw; may fail."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.seen: list[float] = []
        self.threads: list[str] = []

    def training_step(self, batch: TensorDict, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.fail_at:
            raise RuntimeError("the training fails")
        self.seen.append(float(batch["outer", "reward"].sum()) + float(batch["task"].sum()))
        self.threads = threads()
        return self.number

    def validation_step(self, batch: TensorDict, batch_idx: int) -> None:
        assert batch["query"].batch_size == (2, 12)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    data: TaskBuffers, root: Path, steps: int, *, fail_at: int = -1, resume: Path | None = None
) -> list[float]:
    module = Recorder(fail_at)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(root, filename="{step}", every_n_train_steps=4, save_top_k=-1)],
    )
    trainer.fit(module, data, ckpt_path=resume)
    assert len(module.threads) == 1
    return module.seen


fitted = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory"
)


@fitted
@pytest.mark.parametrize("sampling", ["chunks", "rows"])
def test_resuming_within_an_epoch_goes_on_with_the_next_batch(
    path: Path, tmp_path: Path, sampling: str
) -> None:
    def data() -> TaskBuffers:
        return buffers(path, steps_per_epoch=6, sampling=sampling, prefetch=3)

    seen = fit(data(), tmp_path / "whole", 10)
    assert not threads()
    made_singly = buffers(path, sampling=sampling, prefetch=0)
    batches = [made_singly.batch(step) for step in range(10)]
    assert seen == [float(b["outer", "reward"].sum()) + float(b["task"].sum()) for b in batches]
    assert fit(data(), tmp_path / "first", 4) == seen[:4]
    checkpoint = tmp_path / "first" / "step=4.ckpt"
    assert torch.load(checkpoint, weights_only=True)["TaskBuffers"]["batches_served"] == 4
    assert fit(data(), tmp_path / "first", 10, resume=checkpoint) == seen[4:]
    assert not threads()


@fitted
def test_no_thread_is_left_by_a_training_that_fails(path: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the training fails"):
        fit(buffers(path), tmp_path, 10, fail_at=3)
    assert not threads()


@fitted
def test_an_error_of_the_thread_reaches_the_trainer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = buffers(path)
    original = data.batch

    def batch(step: int, **rank: int) -> TensorDict:
        if step == 5:
            raise ValueError("chunk 3 is damaged")
        return original(step, **rank)

    monkeypatch.setattr(data, "batch", batch)
    with pytest.raises(ValueError, match="chunk 3 is damaged"):
        fit(data, tmp_path, 10)
    assert data.batches_served == 5
    assert not threads()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resumed_training_of_a_method_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = tiny.config("Macaw", tiny.dataset(tmp_path))
    settings["data"]["init_args"]["storage"] = CHUNKS
    whole = tiny.state(tiny.fit(settings, tmp_path / "whole"))
    settings["trainer"]["max_steps"] = 5
    tiny.fit(settings, tmp_path / "first")
    settings["trainer"]["max_steps"] = 10
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    resumed = tiny.fit(settings, tmp_path / "more", "--ckpt_path", str(checkpoint))
    assert tiny.difference(tiny.state(resumed), whole) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": "windows"}, "sampling: expected rows or chunks, found 'windows'"),
        ({"contiguous": True}, r"contiguous: expected false with sampling chunks.*found true"),
        ({"device": "cpu"}, r"device: expected auto or disk with sampling chunks.*found 'cpu'"),
        ({"chunk_size": 0}, "chunk_size: expected at least 1, found 0"),
        ({"chunks_per_task": 0}, "chunks_per_task: expected at least 1, found 0"),
        ({"prefetch": -1}, "prefetch: expected at least 0, found -1"),
        ({"chunk_size": 3}, "Task 0: 5 chunks of 3 transitions hold 10 of its .* at least 20"),
        ({"tasks": 6}, "batches.tasks: expected 1 to 5"),
        ({"outer_size": 500}, r"outer batch .*; expected at least 508"),
    ],
)
def test_impossible_settings(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        buffers(path, **changes)
