"""Doors instead of drawers: the smallest hidden task that takes exploration, and who solves it."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline_meta_rl.envs.base import Array, Bools, StepResult, TaskFamily


class Doors(TaskFamily):
    """An action picks a door from the second step on; one door is rewarded, in each step again.

    Action a in [-1, 1] picks door 0 below -0.5, the last door above 0.5, others in between.
    """

    name = "doors"
    env_id = "tests/Doors-v0"
    num_tasks = 2
    horizon = 4
    observation_shape = (1, 2, 2)
    observation_size = 4
    observation_dtype = "uint8"
    action_size = 1
    nearest = 0
    splits: ClassVar = {"default": ((0, 1), (0, 1))}

    def task_parameters(self, seed: int) -> Array:
        return np.arange(self.num_tasks, dtype=np.float64)[:, None]

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        return parameters.astype(np.float32)

    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> "DoorsEngine":
        return DoorsEngine(self, parameters, seed)


class DoorsEngine:
    """One row of doors per row of ``parameters``; pictures show noise and the step."""

    def __init__(self, family: Doors, parameters: Array, seed: int) -> None:
        self.family, self.num_envs = family, len(parameters)
        self.target = parameters[:, 0].astype(np.int64)
        self.rng = np.random.default_rng(seed)
        self.closed = False

    def reset(self, mask: Bools | None = None) -> NDArray[np.uint8]:
        assert mask is None
        self.elapsed = 0
        self.opened = np.zeros((self.num_envs, self.family.num_tasks), dtype=bool)
        return self.images()

    def images(self) -> NDArray[np.uint8]:
        pictures = self.rng.integers(0, 9, (self.num_envs, 1, 2, 2), dtype=np.uint8)
        return pictures + np.uint8(10 * self.elapsed)

    def step(self, action: NDArray[np.floating[Any]]) -> StepResult:
        assert action.shape == (self.num_envs, 1)
        self.elapsed += 1
        door = np.clip(np.round((action[:, 0] + 1) / 2 * (self.family.num_tasks - 1)), 0, None)
        if self.elapsed > 1:
            self.opened[np.arange(self.num_envs), door.astype(np.int64)] = True
        reward = self.opened[np.arange(self.num_envs), self.target].astype(np.float64)
        never = np.zeros(self.num_envs, dtype=bool)
        done = np.full(self.num_envs, self.elapsed >= self.family.horizon)
        return StepResult(self.images(), reward, never, done, never, {"task": reward})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        self.closed = True


class DoorExplorer:
    """Tries door 0, and the other one once it has seen an episode without a reward.

    Its belief is (probability that the target is door 1, reward of this episode, noise seen).

    Args:
        remembers: carry what was learned across episodes.
    """

    noise_size = 3
    action_size = 1

    def __init__(self, *, remembers: bool = True) -> None:
        self.remembers = remembers
        self.seen: list[tuple[Tensor, ...]] = []

    def begin(self, count: int) -> tuple[Tensor, ...]:
        return torch.full((count,), 0.5), torch.zeros(count), torch.zeros(count)

    def observe(
        self,
        state: tuple[Tensor, ...],
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        noise: Tensor,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        self.seen.append((observation, action, reward, noise))
        first = observation.flatten(1).float().mean(dim=1) < 10
        probability, rewarded, steps = state
        tried = first & (steps > 0) & (probability == 0.5)
        if self.remembers:
            probability = torch.where(tried, torch.where(rewarded > 0, 0.0, 1.0), probability)
        rewarded = torch.where(first, torch.zeros(()), torch.maximum(rewarded, reward))
        state = (probability, rewarded, steps + 1)
        return state, torch.stack([probability, rewarded, noise[:, 0]], dim=1)

    def act(self, belief: Tensor, noise: Tensor | None) -> Tensor:
        mean = torch.where(belief[:, :1] > 0.5, 1.0, -1.0)
        return mean if noise is None else (mean + 5.0 * noise).clamp(-1.0, 1.0)
