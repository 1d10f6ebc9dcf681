"""The progress bar of the tools."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, where it disturbs no output, if that is a terminal.

    Yields:
        A function that advances the bar by one.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        # What is printed meanwhile goes above the bar, unless it goes into a file or a pipe.
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


class StepClock:
    """Speed since the last reading.

    Args:
        now: returns seconds; another clock can be given to test.
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
