"""Reference returns of every task: the yardsticks that normalised returns are measured with.

Each is the mean undiscounted return of a fixed policy over ``EPISODES`` episodes in the task.
Shapes: T tasks, N environments, A action size, P numbers that describe a task.
"""

from collections.abc import Callable, Sequence
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.behaviour.policy import BehaviourPolicy, acting, load_behaviour
from offline_meta_rl.common.progress import Advance, no_progress
from offline_meta_rl.data.description import References
from offline_meta_rl.envs.base import Array, TaskFamily
from offline_meta_rl.evaluation.rollout import Act, run_episodes

EPISODES = 10


class Measurement(TypedDict):
    """Keyword arguments of every measurement.

    Attributes:
        seed: Seed of initial states and random actions.
        task_seed: Seed of the task parameters.
        num_threads: Threads of the simulator; None for one per core.
        tasks: Indices of the tasks to measure; None for all.
    """

    seed: int
    task_seed: int
    num_threads: NotRequired[int | None]
    tasks: NotRequired[Sequence[int] | None]


def uniform_actor(num_envs: int, action_size: int, generator: torch.Generator) -> Act:
    """Return a policy that draws every action uniformly from [-1, 1]."""

    def act(_: NDArray[np.float32]) -> NDArray[np.float32]:
        action: NDArray[np.float32] = torch.rand(num_envs, action_size, generator=generator).numpy()
        return 2.0 * action - 1.0

    return act


def mean_returns(
    family: TaskFamily,
    act_for: Callable[[Array], Act],
    *,
    on_state: bool = False,
    **settings: Unpack[Measurement],
) -> Array:
    """Return the mean return [T] of a policy over episodes in every task, all as one batch.

    Args:
        family: The task family.
        act_for: Returns the policy for rows with these task parameters [T * episodes, P].
        on_state: Whether the policy is a script, which is given the engine's state.
        settings: Tasks, seeds and threads of the measurement.
    """
    tasks = settings.get("tasks")
    chosen = slice(None) if tasks is None else list(tasks)
    every = family.task_parameters(settings["task_seed"])
    parameters = np.repeat(every[chosen], EPISODES, axis=0)
    engine = family.make_engine(
        parameters, seed=settings["seed"], num_threads=settings.get("num_threads")
    )
    episodes = run_episodes(engine, act_for(parameters), family.horizon, on_state=on_state)
    engine.close()
    # A diverged simulation says nothing about the policy, so its return is left out.
    usable = np.where(episodes.diverged, np.nan, episodes.returns)
    mean: Array = np.nanmean(usable.reshape(-1, EPISODES), axis=1)
    return mean


def random_returns(family: TaskFamily, **settings: Unpack[Measurement]) -> Array:
    """Return the mean return [T] of uniform random actions; see ``mean_returns``."""
    generator = torch.Generator().manual_seed(settings["seed"])
    return mean_returns(
        family,
        lambda parameters: uniform_actor(len(parameters), family.action_size, generator),
        **settings,
    )


def still_returns(family: TaskFamily, **settings: Unpack[Measurement]) -> Array:
    """Return the mean return [T] of zero actions; see ``mean_returns``."""

    def still(parameters: Array) -> Act:
        zero = np.zeros((len(parameters), family.action_size), dtype=np.float32)
        return lambda _: zero

    return mean_returns(family, still, **settings)


def shipped_returns(family: TaskFamily, **settings: Unpack[Measurement]) -> Array | None:
    """Return the mean return [T] of the best behaviour that ships; None where none ships."""
    try:
        behaviour = load_behaviour(family)
    except ValueError:
        return None
    best = len(behaviour.stages) - 1
    return mean_returns(
        family,
        lambda rows: acting(behaviour, np.full(len(rows), best), rows, stochastic=False),
        on_state=behaviour.sees_state,
        **settings,
    )


def reference_returns(
    family: TaskFamily,
    behaviour: BehaviourPolicy,
    *,
    seed: int,
    task_seed: int,
    num_threads: int | None = None,
    advance: Advance = no_progress,
) -> References:
    """Return what random actions, standing still and each stage's mean action reach, [T] each.

    Args:
        family: The task family.
        behaviour: Its behaviour policy.
        seed: Seed of initial states and random actions.
        task_seed: Seed of the task parameters.
        num_threads: Threads of the simulator; None for one per core.
        advance: Called after each policy.

    Returns:
        ``random``, ``standing_still``, ``best_behaviour``: lists [T]; ``stages``: stage -> [T].
    """
    common = Measurement(seed=seed, task_seed=task_seed, num_threads=num_threads)
    random = random_returns(family, **common)
    advance()
    standing = still_returns(family, **common)
    advance()
    stages: dict[str, list[float]] = {}
    for index, name in enumerate(behaviour.stages):

        def stage_policy(parameters: Array, stage: int = index) -> Act:
            rows = np.full(len(parameters), stage)
            return acting(behaviour, rows, parameters, stochastic=False)

        on_state = behaviour.sees_state
        stages[name] = mean_returns(family, stage_policy, on_state=on_state, **common).tolist()
        advance()
    found: References = {
        "random": random.tolist(),
        "standing_still": standing.tolist(),
        "best_behaviour": stages[behaviour.stages[-1]],
    }
    # A copy of another type: what may hold lists and tables is not what holds lists alone.
    found["stages"] = {**stages}
    return found
