"""What has become of a run, read from its folder; a lock keeps two processes out of one run.

``run.json`` says which run it is and with what settings, ``status.json`` how its last process
ended. A run is running while its lock is held, by whichever process: a lock ends with the process,
however that ends.
"""

import json
import secrets
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from offline_meta_rl.common.files import write_json
from offline_meta_rl.experiments.plan import INTERRUPTED_CODES, Run

TAIL_LINES = 12


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
    code = read_json(run.folder / "status.json").get("exit_code")
    if code == 0 and all((run.folder / name).is_file() for name in run.results):
        return State.FINISHED
    if code is None or code < 0 or code in INTERRUPTED_CODES:
        return State.INTERRUPTED
    return State.FAILED


def try_lock(folder: Path, *, shared: bool = False) -> IO[str] | None:
    """Take a run's lock; None if another process has it. Closing the file gives it back.

    Args:
        folder: of the run.
        shared: only look; several processes may do that at once.
    """
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
        ValueError: other settings; shows the difference.
    """
    path = run.folder / "run.json"
    content = {**run.identity, "label": run.label, "method": run.method, "steps": run.steps}
    content |= {"settings": run.settings(), "results": run.results[-1], "id": secrets.token_hex(4)}
    if path.is_file():
        before = read_json(path)
        check_settings(run, before["settings"])
        content["id"] = before["id"]
    write_json(path, content)
    status = read_json(run.folder / "status.json")
    write_json(run.folder / "status.json", {**status, "exit_code": None})
    return str(content["id"])


def check_settings(run: Run, before: Any) -> None:
    """Check that a run's settings are those that it was begun with.

    Raises:
        ValueError: they differ; shows where.
    """
    now = json.loads(json.dumps(run.settings()))
    if now == before:
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
    before = read_json(run.folder / "status.json").get("seconds") or 0.0
    write_json(run.folder / "status.json", {"exit_code": exit_code, "seconds": before + seconds})


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's content; nothing if it is not there.

    Raises:
        ValueError: it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). Delete it or restore it.") from error
    return content


def last_lines(run: Run, count: int = TAIL_LINES) -> str:
    """Return the end of a run's log."""
    path = run.folder / "log.txt"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (the log is empty)"


def measured_speeds(runs: Sequence[Run]) -> dict[str, float]:
    """Return ``family/arm`` -> outer steps a second of finished runs, evaluations included."""
    speeds: dict[str, list[float]] = {}
    for run in runs:
        status = read_json(run.folder / "status.json")
        if status.get("exit_code") == 0 and status.get("seconds"):
            speeds.setdefault(f"{run.family}/{run.arm}", []).append(run.steps / status["seconds"])
    return {key: sum(values) / len(values) for key, values in speeds.items()}
