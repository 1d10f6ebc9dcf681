"""Agents of all tasks stacked, against one agent after another.

Both sides do the same updates: same maths, sizes, data, dtype, threads, fused Adam. The sequential
side is ``tests.references.sac``: ordinary linear layers, one backward pass, multi-tensor targets.
Rounds are interleaved, so that another busy process slows both alike.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from offline_meta_rl.methods.sac import SAC
from offline_meta_rl.networks.stacked import HiddenLayers
from tests.benchmarks.record import record
from tests.references.sac import ReferenceAgent, random_batch

OBSERVATION_SIZE, ACTION_SIZE = 20, 6  # of the half-cheetah


def stacked(num_tasks: int, width: int, rows: int, device: str) -> Callable[[], object]:
    """Return a function that updates all agents at once."""
    module = SAC(
        agents="per_task",
        num_tasks=num_tasks,
        observation_size=OBSERVATION_SIZE,
        action_size=ACTION_SIZE,
        network=HiddenLayers(width, depth=2),
    ).to(device)
    optimizer = module.configure_optimizers()
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    module.optimizers = lambda: optimizer  # type: ignore[assignment, method-assign]
    module.lr_schedulers = list  # type: ignore[assignment, method-assign]
    tensors = random_batch(num_tasks, rows, OBSERVATION_SIZE, ACTION_SIZE)
    batch = TensorDict(tensors, batch_size=[num_tasks, rows]).to(device)
    return lambda: module.outer_step(batch)


def sequential(num_tasks: int, width: int, rows: int, device: str) -> Callable[[], object]:
    """Return a function that updates one agent after another."""
    agents = [
        ReferenceAgent(OBSERVATION_SIZE, ACTION_SIZE, width, device=device)
        for _ in range(num_tasks)
    ]
    tensors = random_batch(num_tasks, rows, OBSERVATION_SIZE, ACTION_SIZE)
    batches = [
        {key: value[task].to(device) for key, value in tensors.items()} for task in range(num_tasks)
    ]

    def update() -> None:
        for agent, batch in zip(agents, batches, strict=True):
            agent.update(batch, torch.randn(2, rows, ACTION_SIZE, device=device))

    return update


def updates_per_second(
    update: Callable[[], object], repeats: int, device: str
) -> tuple[float, float]:
    """Return the rate of calls by the clock and by processor time, after one to warm up."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    update()
    synchronise()
    begin = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        update()
    synchronise()
    end = time.perf_counter(), time.process_time()
    return repeats / (end[0] - begin[0]), repeats / (end[1] - begin[1])


def compare(
    name: str, *, num_tasks: int, width: int, rows: int, repeats: int, device: str
) -> float:
    """Record task-updates per second of both sides; return their ratio by the clock.

    Processor time tells on a busy machine, whose clock also counts the time of others; with one
    thread and no device both mean the same.
    """
    size = (num_tasks, width, rows, device)
    sides = {"stacked": stacked(*size), "sequential": sequential(*size)}
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(3):
        for side, update in sides.items():
            rates[side].append(updates_per_second(update, repeats, device))
    clock, processor = (
        {side: num_tasks * sorted(pair[kind] for pair in found)[1] for side, found in rates.items()}
        for kind in range(2)
    )
    record(
        f"{Path(__file__).stem}_{name}",
        tasks=num_tasks,
        width=width,
        batch=rows,
        device=device,
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        stacked_task_updates_per_second=clock["stacked"],
        sequential_task_updates_per_second=clock["sequential"],
        ratio=clock["stacked"] / clock["sequential"],
        stacked_task_updates_per_processor_second=processor["stacked"],
        sequential_task_updates_per_processor_second=processor["sequential"],
        ratio_of_processor_time=processor["stacked"] / processor["sequential"],
    )
    return clock["stacked"] / clock["sequential"]


@pytest.mark.usefixtures("threads")
def test_small_agents() -> None:
    ratio = compare("64_wide", num_tasks=20, width=64, rows=64, repeats=10, device="cpu")
    assert ratio >= 4


@pytest.mark.usefixtures("threads")
def test_wide_agents() -> None:
    compare("256_wide", num_tasks=20, width=256, rows=256, repeats=1, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_wide_agents_on_a_gpu() -> None:
    ratio = compare("gpu", num_tasks=50, width=256, rows=256, repeats=20, device="cuda")
    assert ratio >= 10
