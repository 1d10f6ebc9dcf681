"""What has become of a run, read from its folder; a lock keeps two processes out of one run.

``run.json`` says which run it is and with what settings, ``status.json`` how its last process
ended. A run is running while its lock is held, by whichever process: a lock ends with the process,
however that ends.
"""

import secrets
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, TypedDict, cast

from offline_meta_rl.common.files import read_json, write_json
from offline_meta_rl.experiments.plan import INTERRUPTED_CODES, Run, RunSettings

TAIL_LINES = 12


class Status(TypedDict, total=False):
    """Content of ``status.json``.

    Attributes:
        exit_code: Of the last process; None while it runs, or where it ended without a word.
        seconds: Of all processes of the run together.
    """

    exit_code: int | None
    seconds: float


class State(StrEnum):
    """What has become of a run."""

    WAITING = "waiting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


def state_of(run: Run) -> State:
    """Return what has become of a run."""
    if not (run.folder / "run.json").is_file():
        return State.WAITING
    lock = try_lock(run.folder, shared=True)
    if lock is None:
        return State.RUNNING
    lock.close()
    code = _status(run).get("exit_code")
    if code == 0 and all((run.folder / name).is_file() for name in run.results):
        return State.FINISHED
    if code is None or code < 0 or code in INTERRUPTED_CODES:
        return State.INTERRUPTED
    return State.FAILED


def try_lock(folder: Path, *, shared: bool = False) -> IO[str] | None:
    """Take a run's lock; None if another process has it. Closing the file gives it back.

    Args:
        folder: Folder of the run.
        shared: Only look; several processes may do that at once.
    """
    # Not filelock: the process that trains inherits this open file, and with it the lock. So the
    # run stays locked if its runner is killed, and is not started a second time on the same
    # checkpoints. And whoever only looks must not take the lock away from a runner.
    import fcntl  # POSIX only

    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "run.lock", "w")  # noqa: SIM115 - open as long as the lock is held
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def begin(run: Run) -> str:
    """Write down which run this is; check that it is continued with the settings it had.

    Returns:
        The run's id, for trackers: the same after a resume.

    Raises:
        ValueError: Other settings; shows the difference.
    """
    check_begun(run)
    path = run.folder / "run.json"
    name = read_json(path).get("id") or secrets.token_hex(4)
    content = {
        **run.identity,
        "label": run.label,
        "method": run.method,
        "steps": run.steps,
        "settings": run.settings(),
        "results": run.results[-1],
        "id": name,
    }
    write_json(path, content)
    write_json(run.folder / "status.json", {**_status(run), "exit_code": None})
    return str(name)


def check_begun(run: Run) -> None:
    """Check that a run's settings are those that it was begun with, if it was.

    Raises:
        ValueError: They differ; shows where.
    """
    before = cast(RunSettings | None, read_json(run.folder / "run.json").get("settings"))
    if before is None:
        return
    now = run.settings()
    if before == now:
        return
    changed = [
        name
        for name in {**before["configs"], **now["configs"]}
        if before["configs"].get(name) != now["configs"].get(name)
    ]
    old = {part for command in before["commands"] for part in command}
    new = {part for command in now["commands"] for part in command}
    parts = [f"then {' '.join(sorted(old - new))}"] if old - new else []
    parts += [f"now {' '.join(sorted(new - old))}"] if new - old else []
    parts += [f"changed configs: {', '.join(sorted(changed))}"] if changed else []
    raise ValueError(
        f"{run.name} was begun with other settings ({'; '.join(parts)}). Expected the same ones. "
        f"Delete {run.folder}, or give another --root."
    )


def end(run: Run, exit_code: int, seconds: float) -> None:
    """Write down how a run's process ended; seconds add up over resumes."""
    before = _status(run).get("seconds") or 0.0
    write_json(run.folder / "status.json", {"exit_code": exit_code, "seconds": before + seconds})


def _status(run: Run) -> Status:
    return cast(Status, read_json(run.folder / "status.json"))


def last_lines(run: Run, count: int = TAIL_LINES) -> str:
    """Return the end of a run's log."""
    path = run.folder / "log.txt"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (the log is empty)"


def measured_speeds(runs: Sequence[Run]) -> dict[str, float]:
    """Return ``family/arm`` -> outer steps a second of finished runs, evaluations included."""
    speeds: dict[str, list[float]] = {}
    for run in runs:
        status = _status(run)
        seconds = status.get("seconds")
        if status.get("exit_code") == 0 and seconds:
            speeds.setdefault(f"{run.family}/{run.arm}", []).append(run.steps / seconds)
    return {key: sum(values) / len(values) for key, values in speeds.items()}
