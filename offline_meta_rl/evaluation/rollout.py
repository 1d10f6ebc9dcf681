"""Run one episode in each of many environments, with the policies of all tasks as one batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array, Bools, Engine
from offline_meta_rl.envs.scripted import StateEngine

Act = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Maps observations [N, O], or images, to actions [N, A]; environment n is always row n."""


@dataclass(frozen=True)
class Episodes:
    """One episode of each of N environments, padded to H steps.

    Attributes:
        returns: undiscounted return of each episode, [N].
        lengths: steps of each episode, [N].
        diverged: where the simulator diverged; such an episode is not to be used, [N].
        observation: [H, N, O], or images [H, N, C, h, w]; ``next_observation`` alike.
        action: [H, N, A].
        reward: [H, N].
        terminated: [H, N] bool; ``truncated`` alike.
    """

    returns: Array
    lengths: NDArray[np.int64]
    diverged: Bools
    observation: NDArray[Any]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    next_observation: NDArray[Any]
    terminated: Bools
    truncated: Bools


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
        act: policies of all environments, [N, O] -> [N, A].
        horizon: the family's horizon H.
        on_state: the policy is a script, which is given the engine's state in place of images.

    Returns:
        The episodes; rows past an episode's length are padding.
    """
    observation = engine.reset()
    running = np.ones(engine.num_envs, dtype=bool)
    diverged = np.zeros(engine.num_envs, dtype=bool)
    lengths = np.zeros(engine.num_envs, dtype=np.int64)
    returns = np.zeros(engine.num_envs)
    steps: list[tuple[NDArray[Any], ...]] = []
    for _ in range(horizon):
        seen = cast(StateEngine, engine).state() if on_state else observation
        action = np.clip(act(seen), -1.0, 1.0)
        result = engine.step(action)
        returns += np.where(running, result.reward, 0.0)
        lengths += running
        diverged |= running & result.diverged
        steps.append(
            (
                observation,
                action,
                result.reward.astype(np.float32),
                result.observation,
                result.terminated,
                result.truncated,
            )
        )
        ended = result.terminated | result.truncated
        running &= ~ended
        if not running.any():
            break
        # A reset keeps fallen bodies from costing simulator time; their rows are padding.
        observation = engine.reset(ended) if ended.any() else result.observation
    arrays = (np.stack(column) for column in zip(*steps, strict=True))
    return Episodes(returns, lengths, diverged, *arrays)
