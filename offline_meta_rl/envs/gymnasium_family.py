"""Task families from outside: any gymnasium id whose ``gymnasium.make(id, task=i)`` is task i."""

from collections.abc import Mapping
from typing import Any, SupportsInt

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from numpy.typing import NDArray

from offline_meta_rl.envs.base import (
    Actions,
    Array,
    Bools,
    Engine,
    EngineState,
    StepResult,
    TaskFamily,
)

TaskSplit = tuple[tuple[int, ...], tuple[int, ...]]
"""(train tasks, test tasks)."""

VectorEnv = gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]

NO_STATE = (
    "The state of a gymnasium environment cannot be saved in a checkpoint. Train a behaviour agent "
    "of such a family without interruption, or bring a dataset of your own."
)


class GymnasiumFamily(TaskFamily):
    """A registered environment as a task family; its one task parameter is the task's index.

    Args:
        env_id: Gymnasium id, or ``module:Id`` to import the module that registers it.
        num_tasks: Number of tasks; None to ask the environment's attribute ``num_tasks``.
        splits: Split name -> (train tasks, test tasks); None to ask the environment's attribute
            ``splits``, or else train and test on every task.
        kwargs: Further arguments of ``gymnasium.make``.
        version: Raised whenever rewards or dynamics change; None to ask the environment's attribute
            ``version``, or else 1.

    Raises:
        ValueError: If the environment has no time limit, its spaces are not flat boxes, its actions
            are unbounded, or the number of tasks is not known.
    """

    def __init__(
        self,
        env_id: str,
        *,
        num_tasks: int | None = None,
        splits: Mapping[str, TaskSplit] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        version: int | None = None,
    ) -> None:
        self.kwargs = dict(kwargs or {})
        self._make_id = env_id
        # Made once, to ask what only an environment knows.
        env = gymnasium.make(env_id, task=0, **self.kwargs)
        num_tasks = num_tasks or _number(env, "num_tasks") or 0
        version = version or _number(env, "version") or 1
        declared = _attribute(env, "splits")
        horizon = env.spec.max_episode_steps if env.spec is not None else None
        sizes = [_flat_size(space) for space in (env.observation_space, env.action_space)]
        env.close()
        for what, value in (
            ("max_episode_steps where it is registered", horizon),
            ("an attribute num_tasks, or num_tasks as an argument", num_tasks),
            ("one-dimensional Box observation and action spaces", all(sizes)),
        ):
            if not value:
                raise ValueError(f"{env_id} is no task family yet: expected {what}, found none.")
        everything = tuple(range(num_tasks))
        if not splits:
            own = declared if isinstance(declared, Mapping) else None
            splits = own or {"default": (everything, everything)}
        # These are class variables of the built-in families; here each instance has its own.
        vars(self).update(
            name=env_id.rsplit(":", 1)[-1].replace("/", "_"),
            env_id=env_id.rsplit(":", 1)[-1],
            version=version,
            num_tasks=len(everything),
            horizon=horizon,
            observation_size=sizes[0],
            action_size=sizes[1],
            splits=dict(splits),
        )

    def task_parameters(self, seed: int) -> Array:
        """The task indices, [T, 1], whatever the seed."""
        return np.arange(self.num_tasks, dtype=np.float64)[:, None]

    def task_features(self, parameters: Array) -> NDArray[np.float32]:
        """The task as a one-hot vector, [N, T]."""
        return np.eye(self.num_tasks, dtype=np.float32)[parameters[:, 0].astype(np.int64)]

    def make_env(self, task: int) -> VectorEnv:
        """Return one task, its actions rescaled to [-1, 1] where they are not."""
        env: VectorEnv = gymnasium.make(self._make_id, task=task, **self.kwargs)
        box = env.action_space
        assert isinstance(box, spaces.Box)
        if (box.low != -1.0).any() or (box.high != 1.0).any():
            env = RescaleAction(env, np.float32(-1.0), np.float32(1.0))
        return env

    def make_engine(
        self, parameters: Array, *, seed: int, num_threads: int | None = None
    ) -> Engine:
        """Return an engine that steps one environment after the other."""
        return GymnasiumEngine(self, parameters, seed=seed)


class GymnasiumEngine:
    """N environments, one per row of ``parameters`` [N, 1], stepped in turn."""

    def __init__(self, family: GymnasiumFamily, parameters: Array, *, seed: int) -> None:
        self.num_envs = len(parameters)
        self._envs = [family.make_env(int(row[0])) for row in parameters]
        self._seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(self.num_envs)]
        self._observation = np.zeros((self.num_envs, family.observation_size), dtype=np.float32)
        self._started = False

    def reset(self, mask: Bools | None = None) -> NDArray[np.float32]:
        """Start a new episode where ``mask`` is true (everywhere if None); return [N, O]."""
        for index, env in enumerate(self._envs):
            if mask is None or mask[index] or not self._started:
                # Gymnasium: a seed at the first reset only; later ones go on with the environment's
                # generator.
                seed = None if self._started else self._seeds[index]
                self._observation[index], _ = env.reset(seed=seed)
        self._started = True
        return self._observation.copy()

    def step(self, action: Actions) -> StepResult:
        """Take one action [N, A], clipped to [-1, 1], in every environment."""
        clipped = np.clip(action, -1.0, 1.0).astype(np.float32)
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        for index, env in enumerate(self._envs):
            result = env.step(clipped[index])
            self._observation[index], reward[index] = result[0], result[1]
            terminated[index], truncated[index] = result[2], result[3]
        # Numbers that are not finite are the only sign of divergence that every simulator gives.
        diverged = ~(np.isfinite(self._observation).all(axis=1) & np.isfinite(reward))
        terminated &= ~diverged
        return StepResult(
            observation=self._observation.copy(),
            reward=reward,
            terminated=terminated,
            truncated=(truncated | diverged) & ~terminated,
            diverged=diverged,
            reward_terms={"task": reward},
        )

    def state_dict(self) -> EngineState:
        """Refuse: gymnasium has no way to read an environment's state.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(NO_STATE)

    def load_state_dict(self, state: EngineState) -> None:
        """Refuse, as ``state_dict`` does.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(NO_STATE)

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()


def _attribute(env: gymnasium.Env, name: str) -> object:
    """Return an attribute of the environment inside its wrappers; None if it has none."""
    inner = env.unwrapped
    return inner.get_wrapper_attr(name) if inner.has_wrapper_attr(name) else None


def _number(env: gymnasium.Env, name: str) -> int | None:
    """Return such an attribute where it is a whole number."""
    value = _attribute(env, name)
    return int(value) if isinstance(value, SupportsInt) else None


def _flat_size(space: spaces.Space) -> int | None:
    """Return the size of a one-dimensional box, None for any other space."""
    return space.shape[0] if isinstance(space, spaces.Box) and len(space.shape) == 1 else None
