"""Windows of chunks: every row is drawn equally often, none twice, all from the seed."""

from typing import Any

import numpy as np
import pytest

from datamodules.sampling.chunks import Chunks, make_chunks
from datamodules.sampling.rows import Buffer
from datamodules.sampling.tasks import Batches, TaskSampler


def buffer_of(*sizes: int) -> Buffer:
    """Return a buffer with rows 10_000 * task + 2 * position."""
    rows = [10_000 * task + 2 * np.arange(size) for task, size in enumerate(sizes)]
    size = np.array(sizes)
    return Buffer(np.concatenate(rows), np.cumsum(size) - size, size)


def sampler_of(buffer: Buffer, outer: Buffer | None = None, **changes: Any) -> TaskSampler:
    """Return a sampler of 10 + 6 rows of all tasks, or others, from windows of 4 chunks of 16."""
    settings = {"size": 16, "per_task": 4, "seed": 0} | changes
    outer = outer or buffer
    chunks = make_chunks(buffer, outer, batch_sizes=(10, 6), share=1.0, **settings)
    return TaskSampler(
        dataset=None,  # type: ignore[arg-type]
        train_tasks=list(range(len(buffer.size))),
        inner=buffer,
        outer=outer,
        seed=settings["seed"],
        batches=Batches(tasks=None, inner_size=10, outer_size=6),
        chunks=chunks,
    )


def assert_uniform(counts: np.ndarray[Any, Any], share: np.ndarray[Any, Any]) -> None:
    """Check that counts have their shares of the sum, five standard deviations of chi square."""
    expected = counts.sum() * share
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < len(counts) - 1 + 5 * np.sqrt(2 * (len(counts) - 1))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 100, 163])
def test_chunks_are_all_rows_in_nearly_equal_parts(size: int) -> None:
    chunks = Chunks(buffer_of(5, size), 16, 4, 1.0, 0)
    parts = [chunks.rows(1, chunk) for chunk in range(chunks.count(1))]
    assert np.concatenate(parts).tolist() == chunks.buffer.rows_of(1).tolist()
    lengths = {len(part) for part in parts}
    assert max(lengths) <= 16
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("count", "width"), [(5, 4), (7, 4), (8, 4), (9, 8), (50, 4), (40, 1)])
def test_every_chunk_is_in_the_window_equally_long(count: int, width: int) -> None:
    chunks = Chunks(buffer_of(16 * count), 16, width, 16.0, 0)  # one chunk further in each step
    epochs = 30
    windows = np.stack([chunks.window(0, step) for step in range(epochs * count)])
    assert all(len(set(window)) == width for window in windows)
    present = np.bincount(windows.ravel(), minlength=count)
    # Those at the very start and end are cut short by less than a window.
    assert abs(present - epochs * width).max() <= width
    following = windows[1:]
    new = np.array([len(set(b) - set(a)) for a, b in zip(windows, following, strict=False)])
    assert set(new) <= {0, 1}  # 0 where the chunk that leaves comes again at once
    assert new.mean() > 0.5


def test_order_is_random_and_changes() -> None:
    chunks = Chunks(buffer_of(16 * 50, 16 * 50), 16, 4, 16.0, 0)
    passes = [
        tuple(int(chunks.window(task, 50 * epoch + step)[0]) for step in range(50))
        for task in range(2)
        for epoch in range(3)
    ]
    assert len(set(passes)) == 6
    other = Chunks(chunks.buffer, 16, 4, 16.0, 1)
    assert [tuple(other.window(0, step)) for step in range(9)] != [
        tuple(chunks.window(0, step)) for step in range(9)
    ]


def test_small_tasks_are_in_the_window_whole() -> None:
    chunks = Chunks(buffer_of(64, 63), 16, 4, 16.0, 0)
    for task in range(2):
        assert chunks.window_size(task) == chunks.buffer.size[task]
        rows = chunks.windows(np.array([task]), 17).rows
        assert rows.tolist() == chunks.buffer.rows_of(task).tolist()


@pytest.mark.parametrize("apart", [False, True], ids=["one order", "two orders"])
def test_every_row_is_drawn_equally_often(apart: bool) -> None:
    sizes = (40 * 16 - 7, 40 * 16)  # chunks of the first task are of 15 and 16 rows
    sampler = sampler_of(buffer_of(*sizes), buffer_of(*sizes) if apart else None)
    assert sampler.chunks is not None
    assert (sampler.chunks[0] is sampler.chunks[1]) != apart
    # An epoch is 40 * 16 / 10 steps at the slowest.
    batches = [sampler.batch(step) for step in range(40 * 64)]
    for name in ("inner", "outer"):
        rows = np.concatenate([getattr(batch, name)[0] for batch in batches], axis=1)
        for task, size in enumerate(sizes):
            counts = np.bincount((rows[task] - 10_000 * task) // 2, minlength=size)
            bounds = sampler.chunks[0].bounds(task)
            assert_uniform(counts, np.full(size, 1 / size))
            assert_uniform(np.add.reduceat(counts, bounds[:-1]), np.diff(bounds) / size)


def test_rows_of_a_batch_are_of_the_windows_chunks_and_disjoint() -> None:
    sampler = sampler_of(buffer_of(40 * 16, 30 * 16))
    assert sampler.chunks is not None
    chunks = sampler.chunks[0]
    held = []
    for step in range(100):
        batch = sampler.batch(step)
        for task in range(2):
            rows = np.concatenate([batch.inner[0, task], batch.outer[0, task]])
            assert len(set(rows)) == 16
            position = (rows - 10_000 * task) // 2
            mine = set(np.searchsorted(chunks.bounds(task), position, side="right") - 1)
            assert mine <= set(chunks.window(task, step))
            held.append(len(mine))
    # Of 16 rows spread over 4 chunks, hardly ever is one chunk without any.
    assert np.mean(held) > 3.8


def test_a_window_that_cannot_fill_a_batch() -> None:
    sampler_of(buffer_of(640), size=8, per_task=2).check()
    with pytest.raises(
        ValueError,
        match=r"Task 0: 3 chunks of 5 transitions hold 15 of its 640, expected at least 16 to draw "
        r"the outer batch \(disjoint from the inner one\) from\. Increase --data\.chunk_size or",
    ):
        sampler_of(buffer_of(640), size=5, per_task=3).check()
    with pytest.raises(ValueError, match=r"2 chunks of 4 .* at least 10 to draw the inner batch"):
        sampler_of(buffer_of(640), size=4, per_task=2).check()
