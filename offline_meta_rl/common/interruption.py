"""Stopping a long task by a signal, after its state is written."""

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(Exception):
    """A run was stopped by a signal after its state was written.

    Args:
        done: What was done, as in "step 12".
        resume: The command that continues from there.
        signal_number: The signal that stopped it.
    """

    def __init__(self, done: str, resume: str, signal_number: int) -> None:
        super().__init__(f"Interrupted after {done}; the state is saved. Resume with\n    {resume}")
        self.done, self.signal_number = done, signal_number


def resume_command(subcommand: str, checkpoint: Path) -> str:
    """Return the command that continues from a checkpoint."""
    return f"lightning {subcommand} --ckpt_path {shlex.quote(str(checkpoint))}"


class StopRequest:
    """Notes that the process is asked to stop; a second signal ends it at once.

    Args:
        unit: What is finished first, for the message.

    Attributes:
        received: Number of the signal; None before there was one.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.received: int | None = None
        self._previous: dict[int, Handler] = {}

    def install(self) -> None:
        """Take over the signals."""
        self.received = None
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        print(f"\nStopping at the end of this {self.unit}; once more to stop at once.", flush=True)
