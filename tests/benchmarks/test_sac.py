"""One agent's update against the same update with TorchRL's SACLoss and SoftUpdate.

Both sides: sizes of half-cheetah velocity with the task's feature, 256 wide, 256 transitions,
float32, squared errors, fused Adam, the same number of threads. Rounds are interleaved, and the
ratio is the median over rounds, so that another busy process slows both alike.
"""

import os
import statistics
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
from tests.benchmarks.torchrl_sac import TorchRLAgent, as_torchrl
from tests.references.sac import random_batch

OBSERVATION_SIZE, FEATURES, ACTION_SIZE = 20, 1, 6
WIDTH, ROWS, ROUNDS, REPEATS = 256, 256, 15, 20


def ours(batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Return a function that updates our agent, through its outer step."""
    module = SAC(
        observation_size=OBSERVATION_SIZE,
        task_feature_size=FEATURES,
        action_size=ACTION_SIZE,
        network=HiddenLayers(WIDTH, depth=2),
    )
    optimizer = module.configure_optimizers()
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    module.optimizers = lambda: optimizer  # type: ignore[assignment, method-assign]
    module.lr_schedulers = list  # type: ignore[assignment, method-assign]
    stacked = TensorDict(batch, batch_size=[1, ROWS])
    return lambda: module.outer_step(stacked)


def torchrl(batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Return a function that updates TorchRL's agent."""
    agent = TorchRLAgent(OBSERVATION_SIZE + FEATURES, ACTION_SIZE, WIDTH)
    rows = as_torchrl({name: column[0] for name, column in batch.items()})
    return lambda: agent.update(rows)


def milliseconds(update: Callable[[], object]) -> float:
    """Return what an update takes by the clock."""
    begin = time.perf_counter()
    for _ in range(REPEATS):
        update()
    return 1e3 * (time.perf_counter() - begin) / REPEATS


@pytest.mark.parametrize("number", [1, 2])
def test_update(number: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    batch = random_batch(1, ROWS, OBSERVATION_SIZE + FEATURES, ACTION_SIZE)
    sides = {"ours": ours(batch), "torchrl": torchrl(batch)}
    for update in sides.values():
        milliseconds(update)
    rounds = [{side: milliseconds(update) for side, update in sides.items()} for _ in range(ROUNDS)]
    torch.set_num_threads(before)
    ratios = sorted(found["torchrl"] / found["ours"] for found in rounds)
    record(
        f"{Path(__file__).stem}_{number}_threads",
        width=WIDTH,
        batch=ROWS,
        threads=number,
        rounds=ROUNDS,
        load_of_the_machine=os.getloadavg()[0],
        ours_milliseconds=statistics.median(found["ours"] for found in rounds),
        torchrl_milliseconds=statistics.median(found["torchrl"] for found in rounds),
        ratio=statistics.median(ratios),
        lowest_ratio=ratios[0],
        highest_ratio=ratios[-1],
    )
    assert statistics.median(ratios) > 1.0
