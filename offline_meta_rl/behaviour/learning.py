"""Behaviour agents while they learn: what agents and replays ask of each other, and who learned.

``methods.sac.SAC`` is a set of agents, ``OnlineBuffer`` and ``LifetimeBuffers`` are replays. A
class of your own needs no base class: it must have the members of the protocols here. Shapes: N
agents, E environments of each, O observation size (with the task's features where agents are told
the task), A action size, P numbers that describe a task.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offline_meta_rl.data.lifetimes import LifetimeStorage
from offline_meta_rl.networks.actors import BehaviourActor

if TYPE_CHECKING:  # of simulators; agents can be loaded without any
    from offline_meta_rl.behaviour.references import Measurement
    from offline_meta_rl.envs.base import Array, TaskFamily

SHARE = 0.1
CRITERION = (
    "mean return of the last 10 % of episodes above that of the first 10 % by more than half of "
    "the range from random actions to the best behaviour that ships"
)


@runtime_checkable
class ActsInEnvironments(Protocol):
    """Agents that fill a replay."""

    @property
    def hparams(self) -> Mapping[str, object]:
        """Their settings, which a dataset of their lifetimes keeps."""

    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions [N, E, A] for observations [N, E, O]; without noise the mean actions."""


@runtime_checkable
class HasBehaviourActor(Protocol):
    """One agent for all tasks, of which snapshots can be taken."""

    def behaviour_actor(self) -> BehaviourActor:
        """Return a copy of its actor, on the CPU."""


@runtime_checkable
class ServesAgents(Protocol):
    """A replay of N agents.

    Attributes:
        num_agents: N.
        family: The tasks that the agents are in.
        task_seed: Seed of the task parameters.
    """

    num_agents: int
    family: "TaskFamily"
    task_seed: int


@runtime_checkable
class ServesLifetimes(ServesAgents, Protocol):
    """Replays that keep everything that the one agent of each task ever saw.

    Attributes:
        tasks: Indices of the agents' tasks in the family, [N].
        parameters: Of these tasks, [N, P].
        seed: Seed of initial states, noise and the replays' draws.
        env_steps: Steps so far in each task.
        storage: What was kept; None before training.
    """

    tasks: Sequence[int]
    parameters: "Array"
    seed: int
    env_steps: int
    storage: LifetimeStorage | None

    @property
    def evaluation(self) -> "Measurement":
        """How the reference returns of these tasks are measured."""


class TaskReport(TypedDict):
    """How one agent fared.

    Attributes:
        episodes: How many.
        first: Mean return of the first 10 % of them; None without an episode.
        last: Mean return of the last 10 %.
        random: Mean return of random actions in the task.
        shipped: Mean return of the best behaviour that ships; None where none does.
        learned: By ``CRITERION``; None where it cannot be told.
    """

    episodes: int
    first: float | None
    last: float | None
    random: float
    shipped: float | None
    learned: bool | None


class LifetimeReport(TypedDict):
    """How all agents fared.

    Attributes:
        criterion: In words.
        failed: Tasks whose agent did not learn.
        unknown: Tasks of which it cannot be told.
        tasks: Task -> its report.
    """

    criterion: str
    failed: list[int]
    unknown: list[int]
    tasks: dict[int, TaskReport]


def task_report(returns: NDArray[np.float64], random: float, shipped: float | None) -> TaskReport:
    """Return how one agent fared.

    Args:
        returns: Of its episodes, in order of time, [E].
        random: Mean return of random actions in its task.
        shipped: Mean return of the best behaviour that ships; None where none does.
    """
    # The mean of a tenth is less noisy than single episodes, and still early or late.
    count = max(1, round(SHARE * len(returns)))
    known = len(returns) > 0
    first = float(returns[:count].mean()) if known else None
    last = float(returns[-count:].mean()) if known else None
    learned = None
    if first is not None and last is not None and shipped is not None:
        learned = last - first > 0.5 * (shipped - random)
    return {
        "episodes": len(returns),
        "first": first,
        "last": last,
        "random": random,
        "shipped": shipped,
        "learned": learned,
    }


def lifetime_report(
    tasks: Sequence[int],
    returns: Sequence[NDArray[np.float64]],
    random: Sequence[float],
    shipped: Sequence[float] | None,
) -> LifetimeReport:
    """Return the reports of all tasks, and which agents failed or cannot be judged.

    Args:
        tasks: Their indices in the family.
        returns: Of each task's episodes, in order of time.
        random: Mean return of random actions in each task.
        shipped: Of the best behaviour that ships; None where none does.
    """
    best = [None] * len(tasks) if shipped is None else list(shipped)
    reports = {
        task: task_report(*numbers)
        for task, numbers in zip(tasks, zip(returns, random, best, strict=True), strict=True)
    }
    return {
        "criterion": CRITERION,
        "failed": [task for task, report in reports.items() if report["learned"] is False],
        "unknown": [task for task, report in reports.items() if report["learned"] is None],
        "tasks": reports,
    }
