"""Keeps what a benchmark measured, as JSON beside what it was measured on."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from offline_meta_rl.common.provenance import code_commit


def record(name: str, **figures: Any) -> None:
    """Print the figures and write them to ``<folder>/<name>.json``.

    The folder is ``OFFLINE_META_RL_BENCHMARKS`` or ``runs/benchmarks``.
    """
    folder = Path(os.environ.get("OFFLINE_META_RL_BENCHMARKS", "runs/benchmarks"))
    folder.mkdir(parents=True, exist_ok=True)
    where = {
        "commit": code_commit(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    result = {**figures, "measured_on": where}
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    print(f"\n{name}: " + ", ".join(shown))
