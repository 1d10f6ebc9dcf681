"""Two drawers and a Sawyer: open the one that is rewarded, which no image shows.

The realistic task of the Reflective Explorer (Rafailov et al., 2021, section 4): images, reward 1
while the target drawer is open, otherwise 0; the hand starts nearer the left drawer. The paper's
own scene is not public; this one is composed of Meta-World's parts (``envs/sawyer/scene.py``).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from offline_meta_rl.envs.base import (
    Actions,
    Array,
    Bools,
    EngineState,
    StepResult,
    generator_from,
)
from offline_meta_rl.envs.sawyer.script import hook
from offline_meta_rl.envs.sawyer.simulator import (
    IMAGE_SIZE,
    START_NOISE,
    SawyerSimulator,
    settled_physics,
)
from offline_meta_rl.envs.scripted import ScriptedFamily

OPEN = 0.10
"""Metres by which an open drawer is open."""


class TwoDrawerSawyer(ScriptedFamily):
    """Task 0 rewards the left drawer (of the robot, -x), task 1 the right one."""

    name = "two_drawer_sawyer"
    env_id = "offline_meta_rl/TwoDrawerSawyer-v0"
    num_tasks = 2
    horizon = 25
    observation_size = 3 * IMAGE_SIZE * IMAGE_SIZE
    observation_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    observation_dtype = "uint8"
    action_size = 3
    script_version = 2  # the start has moved since 1
    script_noise = 0.1
    batch_size = 200
    nearest = 0  # drawer: the hand starts in front of the left one
    splits: ClassVar = {"default": ((0, 1), (0, 1))}

    def task_parameters(self, seed: int) -> Array:
        """The index of the drawer that is rewarded, [2, 1], whatever the seed."""
        return np.array([[0.0], [1.0]])

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The drawer as a one-hot vector, [N, 2]."""
        return np.eye(2, dtype=np.float32)[parameters[:, 0].astype(np.int64)]

    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> "TwoDrawerSawyerEngine":
        """Return the engine; by default it simulates and renders on one thread per core."""
        return TwoDrawerSawyerEngine(self, parameters, seed=seed, num_threads=num_threads)

    def script(self, state: NDArray[np.float32], parameters: Array) -> Array:
        """Hook the drawer by its handle; see ``envs/sawyer/script.py``."""
        return hook(state, parameters[:, 0].astype(np.int64))


class TwoDrawerSawyerEngine:
    """N robots, one per row of ``parameters`` [N, 1].

    MuJoCo simulates and renders without holding Python's lock, so threads share the work; each has
    one simulator, which takes up the environments of its share in turn.

    Args:
        family: The task family.
        parameters: Index of the rewarded drawer of every environment, [N, 1].
        seed: Seed of the hand's initial positions.
        num_threads: Threads that simulate and render; None for one per core.
        images: Draw observations; without, they stay black.

    Attributes:
        opening: How far the drawers are open, [N, 2] metres.

    Raises:
        ImportError: ``metaworld`` is not installed.
        RuntimeError: Images cannot be rendered; names what to install.
    """

    def __init__(
        self,
        family: TwoDrawerSawyer,
        parameters: Array,
        *,
        seed: int,
        num_threads: int | None = None,
        images: bool = True,
    ) -> None:
        self.family = family
        self.parameters = np.asarray(parameters, dtype=np.float64)
        self.target = self.parameters[:, 0].astype(np.int64)
        self.num_envs = len(self.parameters)
        physics_size = len(settled_physics())
        self.physics: Array = np.zeros((self.num_envs, physics_size))
        self.opening: Array = np.zeros((self.num_envs, 2))
        self.hand: Array = np.zeros((self.num_envs, 3))
        self.elapsed: NDArray[np.int64] = np.zeros(self.num_envs, dtype=np.int64)
        self._images = images
        self._observation = np.zeros((self.num_envs, *family.observation_shape), dtype=np.uint8)
        self._generator = generator_from(seed)
        threads = max(1, min(num_threads or os.cpu_count() or 1, self.num_envs))
        # A camera belongs to one thread, so every simulator has a pool of one.
        self._simulators = [SawyerSimulator() for _ in range(threads)]
        self._pools = [ThreadPoolExecutor(1, f"sawyer-{index}") for index in range(threads)]

    @property
    def opened(self) -> Bools:
        """Which drawers are open far enough for the reward of their task, [N, 2]."""
        return self.opening > OPEN

    def state(self) -> NDArray[np.float32]:
        """Position of the hand and openings of both drawers, metres, [N, 5]; not for the agent."""
        return np.concatenate([self.hand, self.opening], axis=1).astype(np.float32)

    def reset(self, mask: Bools | None = None) -> NDArray[np.uint8]:
        """Close the drawers of ``mask`` (all if None), hand near its start; return images."""
        rows = np.flatnonzero(np.ones(self.num_envs, dtype=bool) if mask is None else mask)
        noise = torch.rand(len(rows), 3, generator=self._generator, dtype=torch.float64)
        offset = np.zeros((self.num_envs, 3))
        offset[rows] = START_NOISE * (2.0 * noise.numpy() - 1.0)
        self._advance(rows, lambda simulator, row: simulator.start(offset[row]), fresh=True)
        self.elapsed[rows] = 0
        return self._observation.copy()

    def step(self, action: Actions) -> StepResult:
        """Move every hand by its action [N, 3], clipped to [-1, 1], times 0.03 m."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        diverged = np.zeros(self.num_envs, dtype=bool)

        def move(simulator: SawyerSimulator, row: int) -> None:
            diverged[row] = simulator.move(clipped[row])

        everyone = np.arange(self.num_envs)
        self._advance(everyone, move)
        self.elapsed += 1
        reward = self.opened[everyone, self.target].astype(np.float64)
        return StepResult(
            observation=self._observation.copy(),
            reward=reward,
            terminated=np.zeros(self.num_envs, dtype=bool),
            truncated=diverged | (self.elapsed >= self.family.horizon),
            diverged=diverged,
            reward_terms={"task": reward},
        )

    def _advance(
        self,
        rows: NDArray[np.int64],
        change: Callable[[SawyerSimulator, int], None] | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        """Change the environments ``rows``, each from its own state, and look at them.

        Args:
            rows: Indices of environments.
            change: Changes a simulator's state for an environment; None to look only.
            fresh: ``change`` does not depend on the state before.
        """

        def work(simulator: SawyerSimulator, share: NDArray[np.int64]) -> None:
            for row in share:
                if not fresh:
                    simulator.physics = self.physics[row]
                if change is not None:
                    change(simulator, row)
                self.physics[row] = simulator.physics
                self.opening[row], self.hand[row] = simulator.opening, simulator.hand
                if self._images:
                    self._observation[row] = simulator.image()

        shares = np.array_split(rows, len(self._pools))
        jobs = [
            pool.submit(work, simulator, share)
            for pool, simulator, share in zip(self._pools, self._simulators, shares, strict=True)
        ]
        for job in jobs:
            # Raises here what went wrong in the thread.
            job.result()

    def state_dict(self) -> EngineState:
        """Simulator states, clocks and the generator of initial positions, as tensors."""
        return {
            "physics": torch.from_numpy(self.physics.copy()),
            "elapsed": torch.from_numpy(self.elapsed.copy()),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: EngineState) -> None:
        """Continue where ``state_dict`` was taken."""
        self.physics = state["physics"].numpy().copy()
        self.elapsed = state["elapsed"].numpy().copy()
        self._generator.set_state(state["generator"])
        self._advance(np.arange(self.num_envs))

    def close(self) -> None:
        """Free the cameras and stop the threads."""
        for pool, simulator in zip(self._pools, self._simulators, strict=True):
            # In its own thread, which the camera's OpenGL context belongs to.
            pool.submit(simulator.close)
            pool.shutdown()
