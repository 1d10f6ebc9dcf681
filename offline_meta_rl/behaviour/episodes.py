"""Episodes of a behaviour policy: rolled out task by task, cut into whole ones, joined to blocks.

A staged policy's episodes of one task are collected together, so that every stage gets its share.
A script's come block by block: images of a whole task may not fit in memory. Shapes: N environments
of a rollout, P numbers that describe a task.
"""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.policy import BehaviourPolicy, acting
from offline_meta_rl.behaviour.scripted import ScriptedBehaviour
from offline_meta_rl.common.provenance import derived_seed
from offline_meta_rl.data.blocks import Columns, TaskBlock
from offline_meta_rl.data.description import TRANSITION_KEYS
from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.envs.scripted import ScriptedFamily
from offline_meta_rl.evaluation.rollout import Episodes, run_episodes

MAX_ENVIRONMENTS = 64  # of one stage at a time
ROUNDS = 50
ATTEMPTS = 50  # blocks in a row without a usable episode


class Episode(NamedTuple):
    """One whole episode and the stage it comes from; ``columns`` as in a dataset, [L, ...]."""

    stage: int
    columns: Columns

    @property
    def length(self) -> int:
        """Steps L."""
        return len(self.columns["reward"])


def usable_episodes(episodes: Episodes, stages: NDArray[np.int64]) -> list[Episode]:
    """Cut a rollout [H, N] into its episodes, dropping those in which the simulator diverged.

    Args:
        episodes: One of each environment.
        stages: Stage of each environment's policy, [N].
    """
    return [
        Episode(int(stages[index]), episodes.columns(int(index)))
        for index in np.flatnonzero(~episodes.diverged)
    ]


def block_of(episodes: Sequence[Episode]) -> TaskBlock:
    """Return episodes of one task as a block, one after another."""
    return TaskBlock(
        {key: np.concatenate([e.columns[key] for e in episodes]) for key in TRANSITION_KEYS},
        stage=[episode.stage for episode in episodes],
        length=[episode.length for episode in episodes],
    )


def collect_task(
    family: TaskFamily,
    behaviour: BehaviourPolicy,
    parameters: Array,
    *,
    seed: int,
    transitions_per_stage: int | Sequence[int],
    num_threads: int | None = None,
) -> list[Episode]:
    """Collect one task's episodes, ordered by stage, poor to expert.

    Args:
        family: The task family.
        behaviour: Its behaviour policy.
        parameters: Parameters of the task, [P].
        seed: Seed of initial states and actions; the same seed gives the same data.
        transitions_per_stage: At least so many transitions of every stage, or of each one.
        num_threads: Threads of the simulator; None for one per core.

    Raises:
        RuntimeError: A stage yields no usable episode in 50 rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    collected: list[list[Episode]] = [[] for _ in behaviour.stages]
    count = np.zeros(len(behaviour.stages), dtype=np.int64)
    quotas = np.broadcast_to(transitions_per_stage, count.shape)
    for number in range(ROUNDS):
        wanted = [
            _episodes_wanted(quotas[stage] - count[stage], found, family.horizon)
            for stage, found in enumerate(collected)
        ]
        if not any(wanted):
            return [episode for found in collected for episode in found]
        stages = np.repeat(np.arange(len(wanted)), wanted)
        # The episodes of all stages run side by side, as one batch of environments.
        rows = np.tile(parameters, (len(stages), 1))
        engine = family.make_engine(rows, seed=derived_seed(seed, number), num_threads=num_threads)
        act = acting(behaviour, stages, rows, stochastic=True, generator=generator)
        for episode in usable_episodes(run_episodes(engine, act, family.horizon), stages):
            collected[episode.stage].append(episode)
            count[episode.stage] += episode.length
        engine.close()
    raise RuntimeError(
        f"Collected {count.tolist()} transitions by stage in {ROUNDS} rounds of {family.name}, "
        f"expected {transitions_per_stage} each: the simulation diverges. Check the task's "
        "parameters."
    )


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
        family: A task family with a script.
        parameters: Parameters of the task, [P].
        seed: Seed of initial states and noise; the same seed gives the same data.
        transitions_per_stage: At least so many transitions, in whole episodes.
        num_threads: Threads of the simulator; None for one per core.

    Raises:
        RuntimeError: The simulation diverges in every episode of 50 blocks.
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


def _episodes_wanted(lacking: int, found: list[Episode], horizon: int) -> int:
    """Return how many episodes will probably fill what a stage lacks, a few too many."""
    if not found:
        # Nothing is known yet: full episodes need the fewest, so none is too many.
        return min(ceil(lacking / horizon), MAX_ENVIRONMENTS)
    mean_length = np.mean([episode.length for episode in found])
    return min(max(0, ceil(1.1 * lacking / mean_length)), MAX_ENVIRONMENTS)
