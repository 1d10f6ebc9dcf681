"""Run one episode in each of many environments, with the policies of all tasks as one batch.

Shapes: N environments, H steps of the longest episode, O/A observation/action size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.data.blocks import Columns
from offline_meta_rl.envs.base import Array, Bools, Engine, Observations, StepResult
from offline_meta_rl.envs.scripted import StateEngine

Act = Callable[[NDArray], NDArray[np.float32]]
"""Maps observations [N, O], or images, to actions [N, A]; environment n is always row n."""


@dataclass(frozen=True)
class Episodes:
    """One episode of each of N environments, padded to H steps.

    Attributes:
        returns: Undiscounted return of each episode, [N].
        lengths: Steps of each episode, [N].
        diverged: Where the simulator diverged; such an episode is not to be used, [N].
        observation: [H, N, O], or images [H, N, C, h, w]; ``next_observation`` alike.
        action: [H, N, A].
        reward: [H, N].
        terminated: [H, N] bool; ``truncated`` alike.
    """

    returns: Array
    lengths: NDArray[np.int64]
    diverged: Bools
    observation: NDArray
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    next_observation: NDArray
    terminated: Bools
    truncated: Bools

    def columns(self, index: int) -> Columns:
        """Return one environment's episode as a dataset stores it, without padding, [L, ...]."""
        every: Columns = {
            "observation": self.observation,
            "action": self.action,
            "reward": self.reward,
            "next_observation": self.next_observation,
            "terminated": self.terminated,
            "truncated": self.truncated,
        }
        return {name: array[: self.lengths[index], index] for name, array in every.items()}


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread: idle threads of its pool spin, and starve the simulator's.

    Two threads made a rollout of 40 ants three to eight times slower on two busy cores, and gain
    nothing for policies of this size.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_torch_thread()
def run_episodes(engine: Engine, act: Act, horizon: int, *, on_state: bool = False) -> Episodes:
    """Run one episode in every environment of ``engine``.

    Environments whose episode has ended keep being stepped with the others (their rows are padding)
    so that policies with one set of weights per row stay one batch.

    Args:
        engine: N environments; it is reset first.
        act: Policies of all environments, [N, O] -> [N, A].
        horizon: The family's horizon H.
        on_state: The policy is a script, which is given the engine's state in place of images.

    Returns:
        The episodes; rows past an episode's length are padding.

    Raises:
        TypeError: ``on_state`` with an engine that does not tell its state.
    """
    state = _state_of(engine) if on_state else None
    observation = engine.reset()
    running = np.ones(engine.num_envs, dtype=bool)
    diverged = np.zeros(engine.num_envs, dtype=bool)
    lengths = np.zeros(engine.num_envs, dtype=np.int64)
    returns = np.zeros(engine.num_envs)
    observations: list[Observations] = []
    actions: list[NDArray[np.float32]] = []
    results: list[StepResult] = []
    for _ in range(horizon):
        # Policies may leave [-1, 1] with their noise. What is stored is what the simulator saw.
        action = np.clip(act(state() if state else observation), -1.0, 1.0)
        result = engine.step(action)
        # Ended environments are still stepped; what they pay is padding.
        returns += np.where(running, result.reward, 0.0)
        lengths += running
        diverged |= running & result.diverged
        observations.append(observation)
        actions.append(action)
        results.append(result)
        ended = result.terminated | result.truncated
        running &= ~ended
        if not running.any():
            break
        # A reset keeps fallen bodies from costing simulator time; their rows are padding.
        observation = engine.reset(ended) if ended.any() else result.observation
    return Episodes(
        returns,
        lengths,
        diverged,
        observation=np.stack(observations),
        action=np.stack(actions),
        reward=np.stack([result.reward for result in results]).astype(np.float32),
        next_observation=np.stack([result.observation for result in results]),
        terminated=np.stack([result.terminated for result in results]),
        truncated=np.stack([result.truncated for result in results]),
    )


def _state_of(engine: Engine) -> Callable[[], NDArray[np.float32]]:
    """Return the function that reads an engine's state."""
    if not isinstance(engine, StateEngine):
        raise TypeError(
            "A script acts on the simulator's state: expected an engine with state(), found "
            f"{type(engine).__name__}. Use a policy that acts on observations."
        )
    return engine.state
