"""Several processes take the steps of one: the same losses, gradients and parameters.

Real processes with gloo, forked from a server that has imported everything but trained nothing.
"""

import itertools
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from offline_meta_rl import cli
from tests.methods import tiny

STEPS = 3


def run_in_new_process(arguments: list[str]) -> int | None:
    """Run the command in a process of its own; return how it exited."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.methods.tiny"])
    process = context.Process(target=cli.main, args=(arguments,))
    process.start()
    process.join(timeout=500)
    return process.exitcode


def record(method: str, data_path: Path, folder: Path, tasks: int, processes: int) -> list[Any]:
    """Train with so many processes; return what each of them recorded."""
    recorder = {
        "class_path": "tests.methods.tiny.RecordSteps",
        "init_args": {"path": str(folder / "record")},
    }
    settings = tiny.config(method, data_path, max_steps=STEPS, callbacks=[recorder])
    settings["data"]["init_args"]["batches"]["tasks"] = tasks
    if processes > 1:
        settings["trainer"] |= {"strategy": "ddp_fork", "devices": processes}
    tiny.write(settings, folder)
    assert run_in_new_process(tiny.command(folder)) == 0
    return [torch.load(f"{folder}/record.{rank}") for rank in range(processes)]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("method", tiny.ON_TASK_BUFFERS)
@pytest.mark.parametrize(("tasks", "processes"), [(5, 2), (2, 3)])
def test_processes_share_the_batch_of_one(
    method: str, tasks: int, processes: int, data_path: Path, tmp_path: Path
) -> None:
    (one,) = record(method, data_path, tmp_path / "one", tasks, 1)
    ranks = record(method, data_path, tmp_path / "many", tasks, processes)
    assert all(one["gradients"])
    assert all(one["metrics"])
    for step in range(STEPS):
        shares = [rank["tasks"][step] for rank in ranks]
        assert sorted(itertools.chain(*shares)) == sorted(one["tasks"][step])
        assert len(shares[-1]) < len(one["tasks"][step])
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], one["gradients"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rank["metrics"], one["metrics"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rank["parameters"], one["parameters"], rtol=0, atol=1e-6)
        assert tiny.difference(rank["parameters"], ranks[0]["parameters"]) is None


@pytest.mark.parametrize("method", ["BeliefFilter", "ReflectiveExplorer"])
def test_processes_share_each_stage_of_the_reflective_explorer(
    method: str, data_path: Path, tmp_path: Path
) -> None:
    # Five rows for two processes.
    runs = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        recorder = {
            "class_path": "tests.methods.tiny.RecordSteps",
            "init_args": {"path": str(folder / "record")},
        }
        settings = tiny.config(method, data_path, max_steps=STEPS, callbacks=[recorder])
        arguments = settings["data"]["init_args"]
        arguments["batch_size"] = arguments["beliefs"]["batch_size"] = 5
        if processes > 1:
            settings["trainer"] |= {"strategy": "ddp_fork", "devices": processes}
        tiny.write(settings, folder)
        assert run_in_new_process(tiny.command(folder)) == 0
        runs[processes] = [torch.load(f"{folder}/record.{rank}") for rank in range(processes)]
    (one,) = runs[1]
    assert [bool(gradients) for gradients in one["gradients"]] == [True] * STEPS
    for rank in runs[2]:
        torch.testing.assert_close(rank["gradients"], one["gradients"], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(rank["metrics"], one["metrics"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rank["parameters"], one["parameters"], rtol=0, atol=1e-5)
        assert tiny.difference(rank["parameters"], runs[2][0]["parameters"]) is None


def test_both_stages_run_in_several_processes(data_path: Path, tmp_path: Path) -> None:
    settings = tiny.config("ReflectiveExplorer", data_path, max_steps=STEPS)
    settings["model"]["init_args"] |= {"filter_from": None, "filter_steps": 2}
    settings["trainer"] |= {"strategy": "ddp_fork", "devices": 2}
    tiny.write(settings, tmp_path)
    assert run_in_new_process(tiny.command(tmp_path)) == 0
    assert tiny.last(tmp_path / "filter")["global_step"] == 2
    assert tiny.last(tmp_path)["global_step"] == STEPS
    assert len(list((tmp_path / "filter" / "beliefs").glob("*.pt"))) == 1


def test_online_buffer_refuses_several_processes(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.Trainer.world_size", 2)
    with pytest.raises(ValueError, match=r"in one process, found 2. Set --trainer.devices=1"):
        tiny.fit(tiny.config("SAC", data_path), tmp_path)
