"""MACAW's outer step: closed form and factored gradients against a plain loop over the tasks.

Both sides do the same step at the sizes of half-cheetah velocity (5 tasks, batches of 256, 4.9
million parameters, second order) with the same threads, dtype and data; Adam is on neither side.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from offline_meta_rl.methods.macaw import Macaw
from tests.benchmarks.record import record
from tests.helpers import build
from tests.references import macaw as reference

TASKS, ROWS = 5, 256


def milliseconds(step: Callable[[], object], repeats: int) -> float:
    """Median wall time of one call after two warm-up calls."""
    times = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        step()
        if repeat >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


@pytest.mark.usefixtures("threads")
def test_outer_step_against_plain_loop() -> None:
    module = build(Macaw, observation_size=20, action_size=6)
    inner, outer = (reference.random_batch(TASKS, ROWS, 20, 6) for _ in range(2))
    weight = torch.full((TASKS,), 1 / TASKS)
    parameters = module.meta_parameters()
    compiled = torch.compile(module.outer_gradient)

    def plain() -> dict[str, torch.Tensor]:
        return reference.meta_gradient(module, inner, outer)

    start = time.perf_counter()
    gradient, _ = compiled(parameters, inner, outer, weight)
    compile_seconds = time.perf_counter() - start
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    expected = plain()
    pairs = zip(pytree.tree_leaves(parameters), pytree.tree_leaves(gradient), strict=True)
    difference = max(
        (
            (found - expected[names[id(p)]]).norm() / expected[names[id(p)]].norm().clamp_min(1e-12)
        ).item()
        for p, found in pairs
    )
    # Interleaved, so that another busy process slows all three alike.
    rounds = [
        (
            milliseconds(plain, 3),
            milliseconds(lambda: module.outer_gradient(parameters, inner, outer, weight), 9),
            milliseconds(lambda: compiled(parameters, inner, outer, weight), 9),
        )
        for _ in range(3)
    ]
    plain_ms, eager_ms, compiled_ms = (sorted(column)[1] for column in zip(*rounds, strict=True))
    record(
        Path(__file__).stem,
        threads=torch.get_num_threads(),
        plain_ms=plain_ms,
        eager_ms=eager_ms,
        compiled_ms=compiled_ms,
        eager_ratio=plain_ms / eager_ms,
        compiled_ratio=plain_ms / compiled_ms,
        compile_seconds=compile_seconds,
        relative_gradient_difference=difference,
    )
    assert difference <= 1e-5
    assert plain_ms / eager_ms >= 5
    assert plain_ms / compiled_ms >= 9
