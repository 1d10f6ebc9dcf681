"""PEARL's outer step on all tasks at once, against a loop over the tasks.

Both sides do the same step from the same parameters: same losses, data, dtype, threads, fused Adam,
no compilation. They are compared in their gradient first. Rounds are interleaved, so that another
busy process slows both alike.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.utils import _pytree as pytree

from offline_meta_rl.losses.pearl import PearlNoise, pearl_losses, total_loss
from offline_meta_rl.methods.pearl import FIELDS, Pearl
from offline_meta_rl.networks.context_encoder import context_rows
from tests.benchmarks.pearl_loop import PearlLoop
from tests.benchmarks.record import record
from tests.helpers import build
from tests.references.sac import random_batch

SIZES = {
    "paper": {"observation_size": 20, "action_size": 6},
    "small": {"observation_size": 2, "action_size": 2, "width": 64, "depth": 2}
    | {"encoder_width": 64, "encoder_depth": 2},
}


def detached(module: Pearl) -> Pearl:
    """Let a method take outer steps without a trainer."""
    optimizer = module.configure_optimizers()
    trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0)
    module._trainer = trainer  # type: ignore[assignment]
    module.optimizers = lambda: optimizer  # type: ignore[assignment, method-assign]
    module.lr_schedulers = list  # type: ignore[assignment, method-assign]
    return module


def relative_difference(module: Pearl, loop: PearlLoop, batch: TensorDict) -> float:
    """Return by how much the norms of both sides' gradients differ, relative to their size."""
    outer, weight = batch["outer"], batch["weight"]
    latent = torch.randn(len(weight), module.hparams.latent_size).to(outer.device)
    noise = PearlNoise(latent, torch.randn_like(outer["action"]))
    rows = context_rows(batch["inner"], module.context_fields)
    learned, targets = module.learned(), module.target_value.layers()
    losses = pearl_losses(learned, targets, rows, outer, noise, weight, module.settings)
    found = torch.autograd.grad(total_loss(losses), pytree.tree_leaves(learned))
    expected = torch.autograd.grad(loop.loss(batch["inner"], outer, noise), loop.learned)
    sizes = [torch.cat([g.flatten() for g in side]).norm() for side in (found, expected)]
    return float((sizes[0] - sizes[1]).abs() / sizes[1])


def seconds(step: Callable[[], object], repeats: int, device: str) -> tuple[float, float]:
    """Return seconds of one call by the clock and by processor time, after one to warm up."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    step()
    synchronise()
    start = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    synchronise()
    end = time.perf_counter(), time.process_time()
    return (end[0] - start[0]) / repeats, (end[1] - start[1]) / repeats


def compare(name: str, *, tasks: int, rows: int, repeats: int, device: str = "cpu") -> float:
    """Record the times of both sides; return their ratio: by processor time, on a GPU by the clock.

    Processor time tells on a busy machine, whose clock also counts the time of others.
    """
    options: dict[str, Any] = SIZES[name]
    module = detached(build(Pearl, **options).to(device))
    loop = PearlLoop(module)
    size = (tasks, rows, options["observation_size"], options["action_size"])
    parts = {
        part: TensorDict(random_batch(*size), batch_size=[tasks, rows])
        for part in ("inner", "outer")
    }
    batch = TensorDict({**parts, "weight": torch.full((tasks,), 1 / tasks)}, batch_size=[tasks])
    batch = batch.to(device)
    difference = relative_difference(module, loop, batch)
    inner, outer = ({key: part[key] for key in FIELDS} for part in (batch["inner"], batch["outer"]))

    def loop_step() -> None:
        generator = module.noise_generator()
        loop.step(inner, outer, module._draw(tasks, batch["outer"], generator))

    rounds = [
        (
            seconds(loop_step, repeats, device),
            seconds(lambda: module.outer_step(batch), repeats, device),
        )
        for _ in range(3)
    ]
    (loop_clock, loop_work), (clock, work) = (
        [sorted(each[side][kind] for each in rounds)[1] for kind in range(2)] for side in range(2)
    )
    record(
        f"{Path(__file__).stem}_{name}" + ("" if device == "cpu" else "_gpu"),
        **options,
        device=device,
        tasks=tasks,
        batch=rows,
        threads=torch.get_num_threads(),
        load_of_the_machine=os.getloadavg()[0],
        loop_ms=1e3 * loop_clock,
        batched_ms=1e3 * clock,
        ratio=loop_clock / clock,
        loop_processor_ms=1e3 * loop_work,
        batched_processor_ms=1e3 * work,
        ratio_of_processor_time=loop_work / work,
        relative_gradient_difference=difference,
    )
    assert difference <= 1e-4
    return loop_work / work if device == "cpu" else loop_clock / clock


@pytest.mark.usefixtures("threads")
def test_networks_of_the_paper() -> None:
    """Wide layers keep a processor busy either way: at most as much work, no more is asked."""
    assert compare("paper", tasks=16, rows=256, repeats=2) >= 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_of_the_paper_on_a_gpu() -> None:
    assert compare("paper", tasks=16, rows=256, repeats=20, device="cuda") >= 3.0


@pytest.mark.usefixtures("threads")
def test_small_networks() -> None:
    assert compare("small", tasks=16, rows=64, repeats=20) >= 2.0
