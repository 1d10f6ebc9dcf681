"""Row numbers of batches: without replacement, uniform, the right part of the data."""

import numpy as np
import pytest

from datamodules.sampling.rows import (
    Buffer,
    draw_rows,
    draw_tasks,
    draw_window,
    first_distinct,
    make_buffer,
)
from offline_meta_rl.data.contracts import BufferSlice
from offline_meta_rl.data.dataset import TaskDataset
from tests.helpers import STAGES, make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TaskDataset:
    return TaskDataset.open(make_dataset(tmp_path_factory.mktemp("sampling") / "dataset"))


def buffer_of(*sizes: int) -> Buffer:
    """Return a buffer with rows 1000 * task + position."""
    rows = np.concatenate([1000 * task + np.arange(size) for task, size in enumerate(sizes)])
    size = np.array(sizes)
    return Buffer(rows, np.cumsum(size) - size, size)


def test_first_distinct_keeps_order() -> None:
    values = np.array([[7, 3, 7, 7, 2, 3, 9], [1, 1, 1, 1, 1, 1, 2], [5, 4, 3, 2, 1, 0, 5]])
    kept, complete = first_distinct(values, 3)
    assert complete.tolist() == [True, False, True]
    assert kept[[0, 2]].tolist() == [[7, 3, 2], [5, 4, 3]]


def test_first_distinct_equals_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    for high in (5, 50, 2**40):
        values = rng.integers(0, high, (20, 33))
        kept, complete = first_distinct(values, 12)
        for row in range(20):
            expected = list(dict.fromkeys(values[row].tolist()))
            assert complete[row] == (len(expected) >= 12)
            if complete[row]:
                assert kept[row].tolist() == expected[:12]


@pytest.mark.parametrize("sizes", [(40, 12), (12, 12), (900, 13)])
def test_draws_are_distinct_and_from_the_right_task(sizes: tuple[int, int]) -> None:
    buffer = buffer_of(*sizes)
    tasks = np.array([1, 0, 1])
    for seed in range(20):
        rows = draw_rows(np.random.default_rng(seed), buffer, tasks, 12)
        for index, task in enumerate(tasks):
            assert len(set(rows[index])) == 12
            assert set(rows[index]) <= set(buffer.rows_of(task))


@pytest.mark.parametrize("size", [6, 9, 40])
def test_draws_are_uniform_over_ordered_samples(size: int) -> None:
    # 6 and 9 rows are drawn task by task now and then, 40 rows hardly ever.
    buffer = buffer_of(size, size)
    rng = np.random.default_rng(1)
    drawn = np.concatenate(
        [draw_rows(rng, buffer, np.zeros(100, dtype=np.int64), 5) for _ in range(100)]
    )
    for position in range(5):
        counts = np.bincount(drawn[:, position], minlength=size)
        expected = len(drawn) / size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < size - 1 + 5 * np.sqrt(2 * (size - 1))


@pytest.mark.parametrize("size", [10, 13, 200])
def test_taken_rows_are_left_out(size: int) -> None:
    buffer = buffer_of(size)
    tasks = np.zeros(30, dtype=np.int64)
    rng = np.random.default_rng(2)
    taken = draw_rows(rng, buffer, tasks, 4)
    rows = draw_rows(rng, buffer, tasks, 6, taken)
    for index in range(30):
        assert len({*rows[index], *taken[index]}) == 10


def test_windows_are_neighbouring_rows_from_every_start() -> None:
    buffer = buffer_of(8, 5)
    tasks = np.repeat([0, 1], 200)
    rows = draw_window(np.random.default_rng(0), buffer, tasks, 5)
    assert (np.diff(rows, axis=1) == 1).all()
    assert set(rows[:200, 0]) == {0, 1, 2, 3}
    assert set(rows[200:, 0]) == {1000}


def test_tasks_of_an_update_differ_and_come_up_equally_often() -> None:
    train = np.array([3, 5, 8, 9])
    tasks = draw_tasks(np.random.default_rng(0), train, 4000, 2)
    assert (tasks[:, 0] != tasks[:, 1]).all()
    counts = np.bincount(tasks.ravel())[train]
    assert abs(counts - 2000).max() < 200
    assert draw_tasks(np.random.default_rng(0), train, 2, None).tolist() == [train.tolist()] * 2


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (BufferSlice("first", 10), slice(0, 10)),
        (BufferSlice("last", 10), slice(-10, None)),
        (BufferSlice("middle", 10), None),
        (BufferSlice("middle", 10, centre=0.0), slice(0, 10)),
    ],
)
def test_slices(dataset: TaskDataset, part: BufferSlice, expected: slice | None) -> None:
    buffer = make_buffer(dataset, part)
    for task in range(3):
        rows = np.arange(*dataset.task_rows(task))
        found = buffer.rows_of(task)
        if expected is not None:
            assert found.tolist() == rows[expected].tolist()
        else:
            assert found.tolist() == list(range(found[0], found[0] + 10))
            assert abs(found.mean() - rows.mean()) <= 0.5


def test_stages_by_name(dataset: TaskDataset) -> None:
    buffer = make_buffer(dataset, ["poor", "expert"])
    episodes = dataset.episodes
    for task in range(3):
        expected = [
            row
            for t, stage, start, length in zip(
                *(episodes[key].tolist() for key in ("task", "stage", "start", "length")),
                strict=True,
            )
            if t == task and STAGES[stage] in ("poor", "expert")
            for row in range(start, start + length)
        ]
        assert buffer.rows_of(task).tolist() == expected


def test_stride(dataset: TaskDataset) -> None:
    buffer = make_buffer(dataset, BufferSlice("first", 10), stride=4)
    for task in range(3):
        start = dataset.task_rows(task)[0]
        assert buffer.rows_of(task).tolist() == [start, start + 4, start + 8]


def test_unknown_stage(dataset: TaskDataset) -> None:
    with pytest.raises(ValueError, match=r"Unknown stages \['best'\]: expected .* out of \['poor'"):
        make_buffer(dataset, ["poor", "best"])
    with pytest.raises(ValueError, match="expected stage first, middle or last, found 'end'"):
        make_buffer(dataset, BufferSlice("end", 5))


def test_slice_longer_than_the_data(dataset: TaskDataset) -> None:
    with pytest.raises(ValueError, match=r"Slice of task 0: expected a size from 1 to its \d+"):
        make_buffer(dataset, BufferSlice("first", 10_000))


def test_stride_below_one(dataset: TaskDataset) -> None:
    with pytest.raises(ValueError, match="stride: expected at least 1, found 0"):
        make_buffer(dataset, stride=0)
