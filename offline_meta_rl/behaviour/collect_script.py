"""Collect the episodes of a script, block by block: images of a whole task may not fit in memory.

Shapes: N environments of a block, P numbers that describe a task.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
import torch

from offline_meta_rl.behaviour.episodes import block_of, usable_episodes
from offline_meta_rl.behaviour.policy import acting
from offline_meta_rl.behaviour.scripted import ScriptedBehaviour
from offline_meta_rl.data.blocks import TaskBlock
from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import run_episodes

ATTEMPTS = 50  # blocks in a row without a usable episode


def script_blocks(
    family: ScriptedFamily,
    parameters: Array,
    *,
    seed: int,
    transitions_per_stage: int,
    num_threads: int | None = None,
) -> Iterator[TaskBlock]:
    """Yield the episodes of one task, ``family.batch_size`` environments at a time.

    Args:
        family: with a script.
        parameters: of the task, [P].
        seed: of initial states and noise; the same seed gives the same data.
        transitions_per_stage: at least so many transitions, in whole episodes.
        num_threads: of the simulator; None for one per core.

    Raises:
        RuntimeError: the simulation diverges in every episode of 50 blocks.
    """
    behaviour = ScriptedBehaviour(family)
    lacking, number, failures = transitions_per_stage, 0, 0
    while lacking > 0:
        # Seeds of their own for each block: it is the same whatever came before it.
        of_engine, of_noise = np.random.SeedSequence((seed, number)).generate_state(2)
        rows = np.tile(parameters, (min(family.batch_size, ceil(lacking / family.horizon)), 1))
        engine = family.make_engine(rows, seed=int(of_engine), num_threads=num_threads)
        generator = torch.Generator().manual_seed(int(of_noise))
        stages = np.zeros(len(rows), dtype=np.int64)
        act = acting(behaviour, stages, rows, stochastic=True, generator=generator)
        found = usable_episodes(run_episodes(engine, act, family.horizon, on_state=True), stages)
        engine.close()
        number += 1
        failures = 0 if found else failures + 1
        if failures == ATTEMPTS:
            raise RuntimeError(
                f"{family.name}: the simulation diverged in every episode of {ATTEMPTS} blocks, "
                f"{lacking} transitions are missing. Check the task's parameters."
            )
        if found:
            yield block_of(found)
            lacking -= sum(episode.length for episode in found)
