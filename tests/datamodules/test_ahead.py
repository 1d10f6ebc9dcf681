"""Batches made ahead: order, how far ahead, errors, and an end of the thread in every case."""

import threading
import time

import pytest

from datamodules.loaders import made_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("made_ahead")]


@pytest.mark.parametrize("depth", [0, 1, 4, 100])
def test_all_items_in_order(depth: int) -> None:
    assert list(made_ahead(lambda number: 2 * number, range(3, 20), depth)) == list(range(6, 40, 2))
    assert not threads()


def test_no_more_is_made_ahead_than_asked_for() -> None:
    made: list[int] = []
    items = made_ahead(lambda number: made.append(number) or number, range(100), 3)  # type: ignore[func-returns-value]
    for expected in range(5):
        assert next(items) == expected
        deadline = time.monotonic() + 10
        while len(made) < expected + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert made == list(range(expected + 4))
    items.close()
    assert not threads()


def test_items_are_made_while_others_are_used() -> None:
    makers = set()
    items = made_ahead(lambda number: makers.add(threading.get_ident()), range(3), 1)
    list(items)
    assert len(makers) == 1
    assert threading.get_ident() not in makers


def test_an_error_comes_where_its_item_was_due() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ValueError("row 7 is damaged")
        return number

    items = made_ahead(make, range(10), 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="row 7 is damaged"):
        next(items)
    assert not threads()


def test_closing_does_not_wait_for_what_has_not_begun() -> None:
    started, release = threading.Event(), threading.Event()
    made = []

    def make(number: int) -> int:
        started.set()
        release.wait(10)
        made.append(number)
        return number

    items = made_ahead(make, range(100), 50)
    release.set()
    assert next(items) == 0
    release.clear()
    started.clear()
    started.wait(10)
    begun = len(made) + 1
    threading.Timer(0.05, release.set).start()
    items.close()
    assert len(made) <= begun + 1
    assert not threads()
