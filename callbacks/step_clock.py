"""Counts outer steps per second of training, without the time spent evaluating."""

import time
from collections.abc import Callable


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
