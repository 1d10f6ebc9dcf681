"""Shows how far a fine-tuning is: a bar on a terminal, otherwise a line now and then."""

import time

from rich.console import Console
from rich.progress import TextColumn

from offline_meta_rl.common.progress import bars_on


class FineTuningBar:
    """Environment steps of the slowest task, steps per second of all tasks, the mean return.

    Args:
        total: Environment steps that every task shall have.
        enabled: False shows nothing.
        line_seconds: Seconds between two lines where there is no terminal.
        console: Where to draw. By default standard error, so that output stays readable.
    """

    def __init__(
        self,
        total: int,
        *,
        enabled: bool = True,
        line_seconds: float = 30.0,
        console: Console | None = None,
    ) -> None:
        self.total, self.enabled = total, enabled
        self.console = console or Console(stderr=True)
        self.line_seconds = line_seconds
        self._next_line = time.monotonic() + min(1.0, line_seconds)
        self._first: tuple[float, int] | None = None
        status = TextColumn("{task.fields[status]}")
        self._bar = bars_on(self.console, status, show=enabled)
        self._task = self._bar.add_task(
            "[bold]fine-tuning: environment steps", total=total, status=""
        )

    def __enter__(self) -> "FineTuningBar":
        """Open the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar."""
        self._bar.stop()

    def show(self, steps: list[int], mean_return: float | None, *, last: bool = False) -> None:
        """Show the state.

        Args:
            steps: Environment steps of each task.
            mean_return: Mean return of the latest evaluation; None before the first.
            last: Print a line whatever the time.
        """
        now = time.monotonic()
        # Speed is counted from here on: a resumed fine-tuning starts with steps that cost it no
        # time.
        self._first = self._first or (now, sum(steps))
        status = "" if mean_return is None else f"return {mean_return:.4g}"
        if now > self._first[0] and sum(steps) > self._first[1]:
            speed = (sum(steps) - self._first[1]) / (now - self._first[0])
            status = f"{speed:.0f} steps/s  {status}"
        self._bar.update(self._task, completed=min(min(steps), self.total), status=status)
        if self.enabled and not self.console.is_terminal and (last or now >= self._next_line):
            self._next_line = now + self.line_seconds
            line = f"fine-tuning: {min(steps)}/{self.total} environment steps  {status}"
            self.console.print(line, soft_wrap=True, highlight=False)
