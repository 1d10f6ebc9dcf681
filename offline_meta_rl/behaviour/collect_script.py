"""Collect the episodes of a script, block by block: images of a whole task may not fit in memory.

Shapes: N environments of a block, E episodes, P numbers that describe a task.
"""

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.policy import acting
from offline_meta_rl.behaviour.scripted import ScriptedBehaviour
from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.data.manifest import TRANSITION_KEYS
from offline_meta_rl.data.writer import DatasetWriter
from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import Episodes, run_episodes

ATTEMPTS = 50  # blocks in a row without a usable episode


def script_blocks(
    family: ScriptedFamily,
    parameters: Array,
    *,
    seed: int,
    transitions_per_stage: int,
    num_threads: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[TaskBlock]:
    """Yield the episodes of one task, ``family.batch_size`` environments at a time.

    Args:
        family: with a script.
        parameters: of the task, [P].
        seed: of initial states and noise; the same seed gives the same data.
        transitions_per_stage: at least so many transitions, in whole episodes.
        num_threads: of the simulator; None for one per core.
        advance: called after each block with its number of episodes.

    Raises:
        RuntimeError: the simulation diverges in every episode of 50 blocks.
    """
    behaviour = ScriptedBehaviour(family)
    lacking, number, failures = transitions_per_stage, 0, 0
    while lacking > 0:
        of_engine, of_noise = np.random.SeedSequence((seed, number)).generate_state(2)
        rows = np.tile(parameters, (min(family.batch_size, ceil(lacking / family.horizon)), 1))
        engine = family.make_engine(rows, seed=int(of_engine), num_threads=num_threads)
        generator = torch.Generator().manual_seed(int(of_noise))
        stages = np.zeros(len(rows), dtype=np.int64)
        act = acting(behaviour, stages, rows, stochastic=True, generator=generator)
        episodes = run_episodes(engine, act, family.horizon, on_state=True)
        engine.close()
        usable = np.flatnonzero(~episodes.diverged)
        number += 1
        failures = 0 if len(usable) else failures + 1
        if failures == ATTEMPTS:
            raise RuntimeError(
                f"{family.name}: the simulation diverged in every episode of {ATTEMPTS} blocks, "
                f"{lacking} transitions are missing. Check the task's parameters."
            )
        if len(usable):
            yield _block(episodes, usable)
            lacking -= int(episodes.lengths[usable].sum())
            advance(len(usable))


def _block(episodes: Episodes, usable: NDArray[np.int64]) -> TaskBlock:
    """Return some episodes of a rollout [H, N], one after another."""
    length = episodes.lengths[usable]
    columns = {
        key: np.concatenate(
            [getattr(episodes, key)[: episodes.lengths[index], index] for index in usable]
        )
        for key in TRANSITION_KEYS
    }
    return TaskBlock(columns, np.zeros(len(usable), dtype=np.int64), length)


def script_success(writer: DatasetWriter) -> list[float]:
    """Return the share of each task's episodes that were rewarded at their last step, [T]."""
    shares = []
    for task in range(writer.num_tasks):
        last = np.cumsum(writer.read(task, "length")) - 1
        shares.append(float((writer.read(task, "reward")[last] > 0.0).mean()))
    return shares
