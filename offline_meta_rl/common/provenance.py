"""Where a result comes from: the commit of the code and the seed of the run."""

import os
import subprocess
from pathlib import Path


def code_commit() -> str | None:
    """Return the commit of the checkout that this code runs from; None if it is not one."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        tracked = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "provenance.py"],
            capture_output=True,
            timeout=10,
        )
        if tracked.returncode != 0:
            return None
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def global_seed() -> int | None:
    """Return the seed that Lightning's ``seed_everything`` recorded; None without one."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return int(seed) if seed else None
