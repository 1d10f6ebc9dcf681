"""Online fine-tuning of all held-out tasks at once (MACAW, section 5, Table 1).

A meta-trained method adapts to some offline data of every task, and goes on from there: collect an
episode, update, and so on. The environments of all tasks are one engine, their agents one batch of
tensors, their replays one block; nothing is shared between tasks. Everything random comes from
seeds, and ``state_dict`` is all that the rest depends on. Shapes: T tasks, E episodes, H steps, B
transitions, P numbers that describe a task, O/A observation/action size.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.common.provenance import derived_seed
from offline_meta_rl.envs.base import Array, Engine, TaskFamily
from offline_meta_rl.evaluation.rollout import Episodes, run_episodes
from offline_meta_rl.finetuning.learner import OnlineLearner
from offline_meta_rl.finetuning.replay import OnlineReplay, with_returns
from offline_meta_rl.finetuning.settings import FineTuningSettings
from offline_meta_rl.finetuning.summary import Point


class FineTuning:
    """Fine-tunes the agents of T tasks; call ``advance`` until ``done``.

    Args:
        learner: The agents, adapted already.
        family: Makes the environments.
        parameters: Task parameters, [T, P].
        settings: The schedule.
        discount: gamma, per step.
        context: What the agents adapted on, with the learner's fields, [T, B]; needed only if it
            stays in the replay.
        num_threads: Threads of the simulator; None for one per core.

    Raises:
        ValueError: Kinds of update the learner does not have, or no update would ever be taken.

    Attributes:
        episodes: Episodes collected in each task so far.
        steps: Environment steps collected so far, [T].
        updates_taken: Kind -> updates so far.
        diverged: Episodes in which the simulator diverged; they are dropped, [T].
        curve: One point for each evaluation.
        metrics: What the last updates reported, means over tasks.
    """

    def __init__(
        self,
        learner: OnlineLearner,
        family: TaskFamily,
        parameters: Array,
        settings: FineTuningSettings,
        *,
        discount: float,
        context: TensorDict | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.learner, self.family, self.settings = learner, family, settings
        self.num_tasks, self.discount = len(parameters), discount
        self.updates = settings.updates_of(learner.updates)
        settings.check_updates(family.horizon)
        self.replay = OnlineReplay(
            self.num_tasks,
            settings.replay_size,
            learner.fields,
            observation_size=family.observation_size,
            action_size=family.action_size,
            device="cpu" if context is None else context.device or "cpu",
        )
        if settings.keep_context:
            assert context is not None
            self.replay.add(dict(context), torch.ones(context.batch_size, dtype=torch.bool))
        self.parameters, self.num_threads = parameters, num_threads
        # Engines and seeds of their own, so that evaluating more often does not change what is
        # collected.
        self.explorers = self._engine(1, derived_seed(settings.seed, 0))
        self.evaluators = self._engine(settings.evaluation_episodes, derived_seed(settings.seed, 1))
        self.generator = torch.Generator().manual_seed(derived_seed(settings.seed, 2))
        self.episodes = 0
        self.steps: Tensor = torch.zeros(self.num_tasks, dtype=torch.int64)
        self.diverged: Tensor = torch.zeros(self.num_tasks, dtype=torch.int64)
        self.updates_taken = dict.fromkeys(self.updates, 0)
        self.curve: list[Point] = []
        self.metrics: dict[str, float] = {}

    @property
    def done(self) -> bool:
        """Whether every task has its environment steps and the last point is on the curve."""
        measured = bool(self.curve) and self.curve[-1]["episodes"] == self.episodes
        return self._complete and measured

    @property
    def _complete(self) -> bool:
        return bool((self.steps >= self.settings.environment_steps).all())

    def advance(self) -> None:
        """Evaluate if it is time; then collect an episode of every task and update.

        Once all tasks have their steps there is only the last evaluation.

        Raises:
            FloatingPointError: An agent's actions or losses are not finite.
        """
        if self._complete or self.episodes % self.settings.evaluate_every == 0:
            self.curve.append(
                {
                    "episodes": self.episodes,
                    "steps": self.steps.tolist(),
                    "returns": self.mean_action_returns(self.evaluators),
                }
            )
        if not self._complete:
            self._collect()
            # Diverged episodes are dropped, so one task may have fewer rows than the others.
            enough = int(self.replay.size.min()) >= self.settings.batch_size
            if self.episodes > self.settings.warmup_episodes and enough:
                self._update()

    def compare(self) -> list[list[float]]:
        """Return returns of ``comparison_episodes`` with mean actions, [T, E].

        Initial states are the same at every call, and nothing else depends on a call.
        """
        count, seed = self.settings.comparison_episodes, derived_seed(self.settings.seed, 3)
        engine = self._engine(count, seed)
        try:
            return self.mean_action_returns(engine)
        finally:
            engine.close()

    def mean_action_returns(self, engine: Engine) -> list[list[float]]:
        """Return the returns of one episode in each environment, [T, E]; NaN where it diverged."""
        episodes = self._run(engine, noise=False)
        returns = np.where(episodes.diverged, np.nan, episodes.returns)
        rows: list[list[float]] = returns.reshape(self.num_tasks, -1).tolist()
        return rows

    def close(self) -> None:
        """Release the simulators."""
        self.explorers.close()
        self.evaluators.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly here, as tensors and plain types."""
        return {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "generator": self.generator.get_state(),
            "episodes": self.episodes,
            "steps": self.steps.clone(),
            "diverged": self.diverged.clone(),
            "updates_taken": dict(self.updates_taken),
            "curve": [point.copy() for point in self.curve],
            "metrics": dict(self.metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.episodes = state["episodes"]
        self.steps, self.diverged = state["steps"].clone(), state["diverged"].clone()
        self.updates_taken = dict(state["updates_taken"])
        self.curve = [point.copy() for point in state["curve"]]
        self.metrics = dict(state["metrics"])

    def _collect(self) -> None:
        """Collect one noisy episode of every task; those that diverged are not kept."""
        episodes = self._run(self.explorers, noise=True)
        length = torch.from_numpy(episodes.lengths)
        diverged = torch.from_numpy(episodes.diverged)
        arrays = {
            "observation": episodes.observation,
            "action": episodes.action,
            "reward": episodes.reward,
            "next_observation": episodes.next_observation,
            "terminated": episodes.terminated,
        }
        # The engine's arrays are [H, T, ...]; replays have the task first.
        rows = with_returns(
            {name: torch.from_numpy(array).transpose(0, 1) for name, array in arrays.items()},
            length,
            self.discount,
        )
        # Neither padding nor episodes in which the simulator diverged.
        kept = (torch.arange(len(episodes.reward)) < length[:, None]) & ~diverged[:, None]
        rows = {name: rows[name] for name in self.learner.fields}
        self.replay.add(rows, kept)
        self.learner.observe(rows, kept)
        self.episodes += 1
        self.steps += length
        self.diverged += diverged

    def _update(self) -> None:
        """Take the updates that follow an episode, each on a fresh batch of every task."""
        found: dict[str, Tensor] = {}
        for kind, count in self.updates.items():
            if not count:
                continue
            # Once for all updates of this kind, such as advantages under a value function that is
            # not updated meanwhile.
            extra = self.learner.prepare(kind, self.replay)
            for rows in self._batches(count):
                batch = self.replay.gather(rows, self.learner.reads[kind], extra)
                found |= self.learner.update(kind, batch, self.generator)
            self.updates_taken[kind] += count
            self._check(found)
        self.metrics = {name: float(value.mean()) for name, value in found.items()}

    def _batches(self, count: int) -> Tensor:
        """Return the rows of ``count`` batches, [count, T, B], where the replay lies."""
        rows = self.replay.draw((count, self.settings.batch_size), self.generator)
        return rows.to(next(iter(self.replay.columns.values())).device)

    def _run(self, engine: Engine, *, noise: bool) -> Episodes:
        return run_episodes(engine, self._act(noise), self.family.horizon)

    def _act(self, noise: bool) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        size = self.family.action_size

        def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
            inputs = torch.from_numpy(observation).unflatten(0, (self.num_tasks, -1))
            drawn = None
            if noise:
                drawn = torch.randn(*inputs.shape[:2], size, generator=self.generator)
            action = self.learner.act(inputs, drawn).to("cpu", torch.float32)
            # Caught here: MuJoCo takes controls that are not finite for 0 and goes on.
            self._check({"action": action.sum(dim=(1, 2))})
            found: NDArray[np.float32] = action.flatten(0, 1).numpy()
            return found

        return act

    def _check(self, metrics: Mapping[str, Tensor]) -> None:
        """Stop at a number that is not finite.

        Raises:
            FloatingPointError: Names what it is, the tasks and the episode.
        """
        for name, value in metrics.items():
            bad = (~torch.isfinite(value)).nonzero().flatten().tolist()
            if bad:
                raise FloatingPointError(
                    f"{name} is not finite after {self.episodes} episodes at positions {bad} of "
                    f"the {self.num_tasks} fine-tuned tasks. Expected finite numbers: lower the "
                    "learning rates (--finetune.learner) and go on from the last saved state, or "
                    "start again with --finetune.fresh=true."
                )

    def _engine(self, episodes: int, seed: int) -> Engine:
        rows = np.repeat(self.parameters, episodes, axis=0)
        return self.family.make_engine(rows, seed=seed, num_threads=self.num_threads)

    @property
    def _parts(self) -> dict[str, "_HasState"]:
        return {
            "learner": self.learner,
            "replay": self.replay,
            "explorers": self.explorers,
            "evaluators": self.evaluators,
        }


class _HasState(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
