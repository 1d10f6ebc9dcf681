"""Where data and results come from: commit of the code, seeds, versions of packages."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


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


def derived_seed(*numbers: int) -> int:
    """Mix numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def package_versions(*packages: str) -> dict[str, str | None]:
    """Return the installed version of each package; None where there is none."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
