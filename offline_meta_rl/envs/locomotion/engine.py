"""Steps many MuJoCo environments of one family at once, on a C++ thread pool inside MuJoCo.

``mujoco.rollout`` returns states only, so observations, rewards and ends are array arithmetic of
the family over the states before and after each step. MuJoCo resets a state that diverged by itself
inside a step; the engine sees that in the returned time and reports the environment as diverged.
"""

import os
from typing import ClassVar, Protocol

import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout
from numpy.typing import NDArray

from offline_meta_rl.envs.base import (
    Actions,
    Array,
    Bools,
    EngineState,
    StepResult,
    generator_from,
)


class MujocoDynamics(Protocol):
    """What the engine asks of a family; ``LocomotionFamily`` documents each member."""

    horizon: ClassVar[int]
    frame_skip: ClassVar[int]
    per_task_model: ClassVar[bool]

    def model(self, parameters: Array) -> mujoco.MjModel:
        """Return the model of one task, given its parameters [P]."""

    def initial_state(self, qpos0: Array, uniform: Array, normal: Array) -> tuple[Array, Array]:
        """Return initial (qpos [N, nq], qvel [N, nv])."""

    def observation(self, qpos: Array, qvel: Array) -> NDArray[np.float32]:
        """Return observations [N, O]."""

    def fallen(self, qpos: Array, qvel: Array) -> Bools:
        """Return where the body has fallen, [N]."""

    def reward_terms(
        self, qpos_before: Array, qpos_after: Array, action: Array, parameters: Array, dt: float
    ) -> dict[str, Array]:
        """Return the summands of the reward, [N] each."""

    def reward(self, terms: dict[str, Array]) -> Array:
        """Add up the summands, [N]."""


class MujocoEngine:
    """N environments of one family, one per row of ``parameters``.

    Args:
        family: The task family.
        parameters: Task parameters [N, P].
        seed: Seed of the initial states.
        num_threads: Threads of the pool; None for one per core.
    """

    def __init__(
        self,
        family: MujocoDynamics,
        parameters: Array,
        *,
        seed: int,
        num_threads: int | None = None,
    ) -> None:
        self.family = family
        self.parameters = np.asarray(parameters, dtype=np.float64)
        self.num_envs = len(self.parameters)
        self.models = self._models()
        model = self.models[0]
        self.num_positions, self.num_velocities = model.nq, model.nv
        self.dt = model.opt.timestep * family.frame_skip
        threads = min(num_threads or os.cpu_count() or 1, self.num_envs)
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)
        state_size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        # FULLPHYSICS is (time, qpos, qvel); none of these models has actuator state or plugins.
        self.state: Array = np.zeros((self.num_envs, state_size))
        self.warmstart: Array = np.zeros((self.num_envs, model.nv))
        self.elapsed: NDArray[np.int64] = np.zeros(self.num_envs, dtype=np.int64)
        self._generator = generator_from(seed)

    def _models(self) -> list[mujoco.MjModel]:
        if not self.family.per_task_model:
            return [self.family.model(self.parameters[0])] * self.num_envs
        # Episodes of one task share its model; compiling one is slow.
        by_parameters: dict[bytes, mujoco.MjModel] = {}
        models = []
        for row in self.parameters:
            key = row.tobytes()
            if key not in by_parameters:
                by_parameters[key] = self.family.model(row)
            models.append(by_parameters[key])
        return models

    @property
    def qpos(self) -> Array:
        """Positions [N, nq], a view of the state."""
        return self.state[:, 1 : 1 + self.num_positions]

    @property
    def qvel(self) -> Array:
        """Velocities [N, nv], a view of the state."""
        return self.state[:, 1 + self.num_positions : 1 + self.num_positions + self.num_velocities]

    def reset(self, mask: Bools | None = None) -> NDArray[np.float32]:
        """Start a new episode where ``mask`` is true (everywhere if None); return [N, O]."""
        if mask is None:
            mask = np.ones(self.num_envs, dtype=bool)
        count, width = int(mask.sum()), self.num_positions + self.num_velocities
        if count:
            noise = torch.rand(count, width, generator=self._generator, dtype=torch.float64)
            normal = torch.randn(
                count, self.num_velocities, generator=self._generator, dtype=torch.float64
            )
            qpos, qvel = self.family.initial_state(
                self.models[0].qpos0, 2.0 * noise.numpy() - 1.0, normal.numpy()
            )
            self.state[mask] = 0.0
            self.qpos[mask], self.qvel[mask] = qpos, qvel
            self.elapsed[mask] = 0
        return self.family.observation(self.qpos, self.qvel)

    def step(self, action: Actions) -> StepResult:
        """Take one action [N, A], clipped to [-1, 1], in every environment."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        # The action is held for all simulator steps of one environment step.
        control = np.repeat(clipped[:, None], self.family.frame_skip, axis=1)
        models = self.models if self.family.per_task_model else self.models[0]
        states, _ = self._rollout.rollout(
            models, self._data, self.state, control, initial_warmstart=self.warmstart
        )
        before, time = self.qpos.copy(), self.state[:, 0].copy()
        self.state = states[:, -1].copy()
        self.elapsed += 1
        terms = self.family.reward_terms(before, self.qpos, clipped, self.parameters, self.dt)
        # MuJoCo resets a bad state inside the step, time included: the clock then stands behind.
        diverged = self.state[:, 0] < time + 0.5 * self.dt
        # The state after such a reset is not the fall of a body.
        terminated = self.family.fallen(self.qpos, self.qvel) & ~diverged
        return StepResult(
            observation=self.family.observation(self.qpos, self.qvel),
            reward=self.family.reward(terms),
            terminated=terminated,
            truncated=(diverged | (self.elapsed >= self.family.horizon)) & ~terminated,
            diverged=diverged,
            reward_terms=terms,
        )

    def state_dict(self) -> EngineState:
        """Simulator states, clocks and the generator of initial states, as tensors."""
        return {
            "state": torch.from_numpy(self.state.copy()),
            "elapsed": torch.from_numpy(self.elapsed.copy()),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: EngineState) -> None:
        """Continue where ``state_dict`` was taken."""
        self.state = state["state"].numpy().copy()
        self.elapsed = state["elapsed"].numpy().copy()
        self._generator.set_state(state["generator"])

    def close(self) -> None:
        """Stop the thread pool."""
        self._rollout.close()
