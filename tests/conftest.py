"""Settings of all tests: one thread, nothing written outside temporary folders, no network.

Without ``-m``, tests that take minutes, need a GPU or measure speed are left out, unless they are
asked for by name; ``pytest tests/benchmarks`` measures.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from pathlib import Path

import pytest
import torch

from offline_meta_rl.envs.rendering import use_working_gl

torch.set_num_threads(1)
use_working_gl(display=False)  # where nothing works, tests that render are skipped

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep datasets and Weights & Biases files below the test's own folder."""
    folder = tmp_path / "data"
    monkeypatch.setenv("OFFLINE_META_RL_DATA", str(folder))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return folder


@pytest.fixture(scope="session")
def shared_data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for datasets that several tests share."""
    return tmp_path_factory.mktemp("shared_data")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark benchmarks by their folder; leave out what was not asked for."""
    benchmarks = ROOT / "tests" / "benchmarks"
    for item in items:
        if benchmarks in item.path.parents:
            item.add_marker(pytest.mark.benchmark)
    named = any("::" in argument for argument in config.args)
    if config.option.markexpr or named:
        return
    left_out = {"slow", "gpu", "benchmark"}
    if any("benchmarks" in argument for argument in config.args):
        left_out.remove("benchmark")
    out = [item for item in items if left_out & {mark.name for mark in item.iter_markers()}]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
