"""Progress bars of everything that is not training, and the clock that measures training."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, count: int = 1) -> None:
        """Move on by ``count`` of the bar's total."""


def no_progress(count: int = 1) -> None:
    """Show nothing, where nobody asked for a bar."""


class Bars:
    """Bars below each other; see ``progress_bars``."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def add(self, label: str, total: int | None) -> Advance:
        """Add a bar that stays; a total of None means that nobody knows it."""
        task = self._progress.add_task(label, total=total)
        return lambda count=1: self._progress.advance(task, count)

    @contextlib.contextmanager
    def passing(self, label: str, total: int | None) -> Iterator[Advance]:
        """Show a bar for one part of the work, gone when the part is done."""
        task = self._progress.add_task(label, total=total)
        yield lambda count=1: self._progress.advance(task, count)
        self._progress.remove_task(task)


def bars_on(console: Console, *more: ProgressColumn, show: bool = True) -> Progress:
    """Return rich's bars as they look here: label, bar, count, time left.

    Args:
        console: Where to draw; nothing is drawn if it is no terminal.
        more: Columns behind those.
        show: False draws nothing.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *more,
        console=console,
        disable=not (show and console.is_terminal),
        # What is printed meanwhile goes above the bar, unless it goes into a file or a pipe.
        redirect_stdout=sys.stdout.isatty(),
    )


@contextlib.contextmanager
def progress_bars() -> Iterator[Bars]:
    """Show bars on standard error, where they disturb no output, if that is a terminal."""
    with bars_on(Console(stderr=True)) as progress:
        yield Bars(progress)


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Advance]:
    """Show one such bar."""
    with progress_bars() as bars:
        yield bars.add(label, total)


class StepClock:
    """Speed since the last reading.

    Args:
        now: Clock in seconds; tests give another.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to count at ``step``."""
        self.step = step
        self.started = self.now()
        self.paused_at: float | None = None

    def pause(self) -> None:
        """Stop the clock: something else than training begins."""
        if self.paused_at is None:
            self.paused_at = self.now()

    def resume(self) -> None:
        """Let the clock go on."""
        if self.paused_at is not None:
            self.started += self.now() - self.paused_at
            self.paused_at = None

    def seconds(self) -> float:
        """Return the seconds of training since the last reading."""
        return (self.paused_at if self.paused_at is not None else self.now()) - self.started

    def read(self, step: int) -> float:
        """Return steps per second since the last reading, and begin the next one."""
        speed = (step - self.step) / max(self.seconds(), 1e-9)
        self.step = step
        self.started += self.seconds()
        return speed


class Stopwatch:
    """Seconds by the clock and of the processor since a run began; a resumed run adds its own.

    Args:
        before: What ``seconds`` returned when the run was interrupted.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._before = dict(before) if before else {"wall_time": 0.0, "processor_time": 0.0}
        self._started: dict[str, float] | None = None

    def start(self) -> None:
        """Begin to count."""
        self._started = _now()

    def seconds(self) -> dict[str, float]:
        """Return ``wall_time`` and ``processor_time`` until now."""
        if self._started is None:
            return dict(self._before)
        now = _now()
        return {name: self._before[name] + now[name] - self._started[name] for name in now}


def _now() -> dict[str, float]:
    return {"wall_time": time.perf_counter(), "processor_time": time.process_time()}
