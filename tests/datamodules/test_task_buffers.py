"""Batches of TaskBuffers: contents, determinism, processes, resuming, clear errors."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensordict import TensorDict

from datamodules import OnlineBuffer, TaskBuffers
from datamodules.sampling.tasks import Batches
from offline_meta_rl.behaviour.collection import Collection
from offline_meta_rl.data.contracts import BufferSlice
from offline_meta_rl.data.dataset import TaskDataset
from tests.helpers import make_dataset, task_buffers

FIELDS = ["observation", "action", "reward", "return_to_go"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task_buffers") / "dataset"
    return make_dataset(folder, num_tasks=7, test_tasks=(2, 5))


def buffers(path: Path, *, stage: str | None = None, **changes: Any) -> TaskBuffers:
    settings: dict[str, Any] = {"inner_size": 8, "outer_size": 12, "fields": FIELDS}
    data = task_buffers(path, **(settings | changes))
    data.prepare_data()
    data.setup(stage)
    return data


def rows_of(data: TaskBuffers, batch: TensorDict) -> np.ndarray[Any, Any]:
    """Find the rows of transitions by their rewards, which all differ."""
    reward = data.dataset.transitions["reward"]
    order = torch.argsort(reward)
    found = order[torch.searchsorted(reward[order], batch["reward"].contiguous())]
    assert torch.equal(reward[found], batch["reward"])
    return found.numpy()


def equal(first: TensorDict, second: TensorDict) -> bool:
    return bool((first == second).all())


def test_batch_holds_rows_of_its_tasks(path: Path) -> None:
    data = buffers(path)
    batch = data.batch(0)
    assert batch.batch_size == (1, 5)
    assert batch["task"].dtype == torch.int64
    assert set(batch["task"][0].tolist()) == {0, 1, 3, 4, 6}
    assert batch["weight"].tolist() == [[pytest.approx(0.2)] * 5]
    returns = data.dataset.returns_to_go(0.99)
    for name, size in (("inner", 8), ("outer", 12)):
        part = batch[name]
        assert part.batch_size == (1, 5, size)
        assert sorted(part.keys()) == sorted(FIELDS)
        rows = rows_of(data, part)
        for index, task in enumerate(batch["task"][0].tolist()):
            start, stop = data.dataset.task_rows(task)
            assert ((start <= rows[0, index]) & (rows[0, index] < stop)).all()
        assert torch.equal(part["observation"], data.dataset.transitions["observation"][rows])
        assert torch.equal(part["action"], data.dataset.transitions["action"][rows])
        assert torch.equal(part["return_to_go"], returns[rows])


@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_inner_and_outer_batches_are_disjoint(path: Path, contiguous: bool, stride: int) -> None:
    data = buffers(path, contiguous=contiguous, stride=stride)
    for step in range(20):
        batch = data.batch(step)
        inner, outer = rows_of(data, batch["inner"])[0], rows_of(data, batch["outer"])[0]
        for task in range(5):
            assert len({*inner[task], *outer[task]}) == 20
        if contiguous:
            assert (np.diff(inner, axis=1) == stride).all()
        starts = np.array([data.dataset.task_rows(t)[0] for t in batch["task"][0].tolist()])
        assert ((outer - starts[:, None]) % stride == 0).all()


def test_overlap_is_possible_when_asked_for(path: Path) -> None:
    data = buffers(path, disjoint=False, inner_size=60, outer_size=60)
    batch = data.batch(0)
    inner, outer = rows_of(data, batch["inner"])[0], rows_of(data, batch["outer"])[0]
    for task in range(5):
        assert len(set(inner[task])) == len(set(outer[task])) == 60
        assert set(inner[task]) & set(outer[task])


def test_slices_of_inner_and_outer_data(path: Path) -> None:
    data = buffers(path, inner_slice=BufferSlice("first", 8), outer_slice=["expert"])
    batch = data.batch(3)
    inner, outer = rows_of(data, batch["inner"])[0], rows_of(data, batch["outer"])[0]
    episodes = data.dataset.episodes
    stage = np.repeat(episodes["stage"].numpy(), episodes["length"].numpy())
    for index, task in enumerate(batch["task"][0].tolist()):
        start = data.dataset.task_rows(task)[0]
        assert sorted(inner[index]) == list(range(start, start + 8))
        assert (stage[outer[index]] == 3).all()


def test_same_batch_for_the_same_seed_and_step(path: Path) -> None:
    data = buffers(path)
    assert equal(data.batch(4), buffers(path).batch(4))
    assert equal(data.batch(4), buffers(path, device="disk").batch(4))
    assert not equal(data.batch(4)["inner"], data.batch(5)["inner"])
    assert not equal(data.batch(4)["inner"], buffers(path, seed=1).batch(4)["inner"])


@pytest.mark.parametrize(("tasks", "processes"), [(5, 2), (2, 3), (None, 2)])
def test_shards_of_all_processes_are_the_global_batch(
    path: Path, tasks: int | None, processes: int
) -> None:
    data = buffers(path, tasks=tasks, updates=2)
    whole = data.batch(7)
    assert whole.batch_size == (2, tasks or 5)
    shards = [data.batch(7, rank=rank, world_size=processes) for rank in range(processes)]
    assert sum(shard.batch_size[1] for shard in shards) == (tasks or 5)
    for rank, shard in enumerate(shards):
        assert equal(shard, whole[:, rank::processes])
    weight = sum(float(shard["weight"][0].sum()) for shard in shards)
    assert weight == pytest.approx(1.0)


def test_loader_reads_the_rank_from_the_trainer(path: Path) -> None:
    data = buffers(path, tasks=2, steps_per_epoch=3)
    data.trainer = SimpleNamespace(global_rank=2, world_size=3)  # type: ignore[assignment]
    batches = list(data.train_dataloader())
    assert [batch.batch_size for batch in batches] == [(1, 0)] * 3
    assert batches[0]["inner", "observation"].shape == (1, 0, 8, 4)


def test_contexts_depend_on_seed_and_task_alone(path: Path) -> None:
    data = buffers(path)
    contexts = data.context([5, 2], 10, seed=3)
    assert contexts.batch_size == (2, 10)
    assert equal(contexts[1], data.context([2], 10, seed=3)[0])
    assert not equal(contexts, data.context([5, 2], 10, seed=4))
    for index, task in enumerate((5, 2)):
        start, stop = data.dataset.task_rows(task)
        rows = rows_of(data, contexts)[index]
        assert len(set(rows)) == 10
        assert ((start <= rows) & (rows < stop)).all()
    poor = data.context([2], 5, seed=0, fields=["terminated", "reward"], slice=["poor"])
    assert sorted(poor.keys()) == ["reward", "terminated"]
    assert rows_of(data, poor).max() < data.dataset.task_rows(2)[0] + 40


def test_held_out_items(path: Path) -> None:
    data = buffers(path)
    (item,) = data.val_dataloader()
    assert item.batch_size == (2,)
    assert item["task"].tolist() == [2, 5]
    assert item["weight"].tolist() == [0.5, 0.5]
    assert equal(item["context"], data.context([2, 5], 8, seed=0))
    context, query = rows_of(data, item["context"]), rows_of(data, item["query"])
    for task in range(2):
        assert len({*context[task], *query[task]}) == 20
    assert equal(item, next(iter(data.test_dataloader())))
    (without_query,) = data.predict_dataloader()
    assert sorted(without_query.keys()) == ["context", "task", "weight"]


class Recorder(lightning.LightningModule):
    """Trains one number; remembers the tasks and rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def training_step(self, batch: TensorDict, batch_idx: int) -> torch.Tensor:
        self.seen.append(float(batch["outer", "reward"].sum()) + float(batch["task"].sum()))
        return self.number

    def validation_step(self, batch: TensorDict, batch_idx: int) -> None:
        assert batch["task"].tolist() == [2, 5]
        assert batch["query"].batch_size == (2, 12)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(path: Path, root: Path, max_steps: int, checkpoint: Path | None = None) -> list[float]:
    module = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(root, filename="{step}", every_n_train_steps=4, save_top_k=-1)],
    )
    data = task_buffers(
        path,
        inner_size=8,
        outer_size=12,
        fields=FIELDS,
        steps_per_epoch=6,
        inner_slice=BufferSlice("first", 40),
    )
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory")
def test_resuming_within_an_epoch_goes_on_with_the_next_batch(path: Path, tmp_path: Path) -> None:
    seen = fit(path, tmp_path / "whole", 10)
    assert len(set(seen)) == 10
    assert fit(path, tmp_path / "first", 4) == seen[:4]
    checkpoint = tmp_path / "first" / "step=4.ckpt"
    assert torch.load(checkpoint, weights_only=True)["TaskBuffers"]["batches_served"] == 4
    assert fit(path, tmp_path / "first", 10, checkpoint) == seen[4:]


def test_missing_dataset_with_collecting_off(tmp_path: Path) -> None:
    data = TaskBuffers(env="point_robot", path=str(tmp_path / "nowhere"), collect=False)
    with pytest.raises(FileNotFoundError, match=r"No dataset at .*collecting is off.*--data.path"):
        data.prepare_data()


def test_missing_dataset_is_collected_and_used_again(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "env": "point_robot",
        "collection": Collection(transitions_per_stage=40),
        "batches": Batches(inner_size=8, outer_size=8),
    }
    data = TaskBuffers(**settings)
    data.prepare_data()
    data.setup("fit")
    assert data.path.parent == data_root
    assert data.batch(0)["inner", "observation"].shape[:3] == (1, 5, 8)
    assert data.family.name == "point_robot"
    monkeypatch.setattr("offline_meta_rl.behaviour.collect.collect", None)
    again = TaskBuffers(**settings)
    again.prepare_data()
    again.setup("fit")
    assert again.dataset.checksum == data.dataset.checksum


def test_unknown_environment() -> None:
    with pytest.raises(ValueError, match=r"Unknown environment 'ant': expected one of \['ant_dir'"):
        TaskBuffers(env="ant").prepare_data()


def test_dataset_of_another_environment(path: Path) -> None:
    data = TaskBuffers(env="ant_dir", path=str(path))
    with pytest.raises(ValueError, match=r"is of point_robot \(.*\), expected ant_dir"):
        data.setup()
    env = "offline_meta_rl/PointRobot-v0"
    by_id = task_buffers(path, env=env, inner_size=8, outer_size=8)
    by_id.setup("fit")


def test_unknown_split(path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown split 'hard': expected one of \['all'"):
        buffers(path, split="hard")


@pytest.mark.parametrize("task", [-1, 7])
def test_unknown_task(path: Path, task: int) -> None:
    with pytest.raises(ValueError, match=f"Unknown task {task}: expected 0 to 6"):
        buffers(path).context([task], 4, seed=0)


def test_unknown_field(path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown fields \['returns'\]: expected some of"):
        buffers(path, fields=["observation", "returns"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_size": 500}, "inner batch from; expected at least 500"),
        ({"outer_size": 500}, "outer batch .*; expected at least 508"),
        ({"stride": 20}, "inner batch from; expected at least 8"),
        (
            {"inner_slice": BufferSlice("first", 16), "outer_slice": BufferSlice("first", 16)},
            "has 16 transitions to draw the outer batch .* expected at least 20",
        ),
        ({"tasks": 6}, "batches.tasks: expected 1 to 5, .* found 6"),
        ({"inner_size": 0}, "inner_size: expected at least 1, found 0"),
    ],
)
def test_batches_larger_than_the_data(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        buffers(path, **changes)


def test_slices_that_do_not_overlap_need_no_spare_rows(path: Path) -> None:
    parts = {"inner_slice": BufferSlice("first", 8), "outer_slice": BufferSlice("last", 12)}
    buffers(path, **parts).batch(0)


def test_context_larger_than_the_data(path: Path) -> None:
    with pytest.raises(ValueError, match=r"Task 2 has \d+ transitions to draw the context from"):
        buffers(path).context([2], 1000, seed=0)


def test_damage_of_a_memory_mapped_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    file = copy / "transitions" / "action.bin"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr("offline_meta_rl.data.stored.VERIFY_AT_OPEN_BYTES", 0)
    data = buffers(copy, device="disk")
    with pytest.raises(ValueError, match=r"action\.bin: chunk 0: expected checksum"):
        data.batch(0)


def test_intervals_that_several_updates_in_a_batch_cannot_meet(path: Path) -> None:
    data = buffers(path, updates=4)
    checkpoints = ModelCheckpoint(every_n_train_steps=6)
    for max_steps, message in (
        (10, "trainer.max_steps: expected a multiple of the 4 updates of a batch, found 10"),
        (8, "every_n_train_steps of ModelCheckpoint: expected a multiple of .* found 6"),
    ):
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            max_steps=max_steps, checkpoint_callbacks=[checkpoints]
        )
        with pytest.raises(ValueError, match=message):
            data.setup("fit")


def test_package_exports_both_datamodules() -> None:
    assert issubclass(OnlineBuffer, lightning.LightningDataModule)
    assert issubclass(TaskBuffers, lightning.LightningDataModule)
    assert TaskDataset.open is not None
