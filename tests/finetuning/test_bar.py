"""What a fine-tuning shows while it runs: a bar on a terminal, lines elsewhere, or nothing."""

import io

import pytest
from rich.console import Console

from offline_meta_rl.finetuning import bar as module
from offline_meta_rl.finetuning.bar import FineTuningBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_where_there_is_no_terminal(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), width=60)
    with FineTuningBar(1000, console=console) as bar:
        for second, steps in ((0.0, 0), (0.5, 100), (5.0, 400), (31.5, 700), (40.0, 1000)):
            clock[0] = 100.0 + second
            bar.show([steps, steps + 20], -3.25 if steps else None, last=steps == 1000)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "fine-tuning: 400/1000 environment steps  160 steps/s  return -3.25",
        "fine-tuning: 1000/1000 environment steps  50 steps/s  return -3.25",
    ]


def test_a_bar_on_a_terminal(clock: list[float]) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with FineTuningBar(1000, console=console) as bar:
        bar.show([0, 0], None)
        clock[0] += 10.0
        bar.show([500, 600], 1.5)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "fine-tuning: environment steps" in shown
    assert "500/1000" in shown
    assert "110 steps/s  return 1.5" in shown


def test_nothing_if_it_is_not_wanted(clock: list[float]) -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        with FineTuningBar(10, enabled=False, console=console) as bar:
            clock[0] += 100.0
            bar.show([10], 1.0, last=True)
        assert isinstance(console.file, io.StringIO)
        assert console.file.getvalue() == ""


def test_output_stays_free_of_it(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with FineTuningBar(10) as bar:
        bar.show([10], 1.0, last=True)
    out, said = capsys.readouterr()
    assert not out
    assert "10/10" in said
