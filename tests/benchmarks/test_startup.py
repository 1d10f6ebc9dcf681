"""How long the command takes to answer."""

import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.record import record
from tests.helpers import make_dataset


def seconds(*command: str) -> float:
    """Return the best of three wall times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_light_commands_answer_in_a_second(tmp_path: Path) -> None:
    dataset = str(make_dataset(tmp_path / "data", num_tasks=40))
    commands = {
        "help": ["--help"],
        "data_info": ["data", "info", dataset],
        "data_validate_help": ["data", "validate", "--help"],
        "experiment_list": ["experiment", "list"],
    }
    found = {name: seconds("-m", "offline_meta_rl", *each) for name, each in commands.items()}
    record("startup_light", **{f"{name}_seconds": value for name, value in found.items()})
    assert max(found.values()) <= 1.0


def test_help_of_training_takes_at_most_twice_the_imports() -> None:
    imports = seconds("-c", "import lightning, torchrl")
    answer = seconds("-m", "offline_meta_rl", "fit", "--help")
    record("startup", help_seconds=answer, imports_seconds=imports, ratio=answer / imports)
    assert answer <= 2 * imports
