"""How long the command takes to answer."""

import subprocess
import sys
import time

from tests.benchmarks.record import record


def seconds(*command: str) -> float:
    """Return the best of three wall times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_takes_at_most_twice_the_imports() -> None:
    imports = seconds("-c", "import lightning, torchrl")
    answer = seconds("-m", "offline_meta_rl", "--help")
    record("startup", help_seconds=answer, imports_seconds=imports, ratio=answer / imports)
    assert answer <= 2 * imports
