"""What agents and their replays may ask of each other while behaviour agents train.

``methods.sac.SAC`` is a set of agents, ``OnlineBuffer`` and ``LifetimeBuffers`` are replays. A
class of your own needs no base class: it must have the members named here. Shapes: N agents, E
environments of each, O observation size (with the task's features where agents are told the task),
A action size, P numbers that describe a task.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from offline_meta_rl.data.lifetimes import LifetimeStorage
from offline_meta_rl.networks.actors import BehaviourActor

if TYPE_CHECKING:  # of simulators; agents can be loaded without any
    from offline_meta_rl.behaviour.references import Measurement
    from offline_meta_rl.envs.base import Array, TaskFamily


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
