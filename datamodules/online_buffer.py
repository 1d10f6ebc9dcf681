"""Steps one environment per task while a behaviour agent trains, and serves its replay.

Each batch of the loader first takes one step in every environment with the agent's current noisy
policy, then draws the replay for the updates. The reward the *agent* sees may differ from the
family's true reward: an ant paid for being alive, or charged in full for its first clumsy moves,
learns to stand still. The replay keeps the summands, so that all of it is weighed alike.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from datamodules.preparation import check_vector_family
from datamodules.replay import Replay, ReplayModule, agents_of, check_one_process
from offline_meta_rl.behaviour.shaping import ShapedReward, Shaping
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.envs import FAMILIES
from offline_meta_rl.envs.base import StepResult, TaskFamily
from offline_meta_rl.envs.locomotion.family import LocomotionFamily


class OnlineBuffer(ReplayModule):
    """Replay of one task-conditioned agent in all tasks of a family; see ``SAC``.

    Args:
        family: Short name of the task family.
        seed: Seed of initial states, warm-up actions and the replay's draws.
        task_seed: Seed of the task parameters.
        envs_per_task: Environments for each task.
        capacity: Transitions that the replay keeps.
        replay: How the replay is filled and drawn from.
        shaping: The reward that the agent sees.
        relabel: Share of each batch whose task is drawn anew, with the reward it would have paid:
            what was seen on the way to one goal teaches the others. Only where all tasks move
            alike, and the reward depends on them through the torso's velocity.
        steps_per_epoch: Batches Lightning calls an epoch.
        num_threads: Threads of the simulator's pool; None for one per core.

    Raises:
        ValueError: The family's observations are images, or its tasks cannot be relabelled.
    """

    num_agents = 1
    observation: Tensor

    def __init__(
        self,
        *,
        family: str,
        seed: int = 0,
        task_seed: int = 0,
        envs_per_task: int = 1,
        capacity: int = 1_000_000,
        replay: Replay = Replay(updates_per_step=6, warmup_steps=100),
        shaping: Shaping = Shaping(),
        relabel: float = 0.0,
        steps_per_epoch: int = 1000,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(steps_per_epoch)
        self.save_hyperparameters()
        self.family = FAMILIES[family]
        check_vector_family(self.family)
        self.relabelled = _relabelled(self.family) if relabel else None
        self.parameters = np.repeat(self.family.task_parameters(task_seed), envs_per_task, axis=0)
        self.task_features = torch.from_numpy(self.family.task_features(self.parameters))
        self.engine = self.family.make_engine(self.parameters, seed=seed, num_threads=num_threads)
        self.settings, self.relabel, self.task_seed = replay, relabel, task_seed
        self.replay = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity),
            batch_size=replay.batch_size * replay.updates_per_step,
        )
        self.shaped = ShapedReward(self.family, shaping)

    def setup(self, stage: str | None = None) -> None:
        """Check that one process trains.

        Raises:
            ValueError: Several processes; each would fill a replay of its own.
        """
        if self.trainer is not None:
            check_one_process(self.trainer, "OnlineBuffer")

    def sizes(self) -> DataSizes:
        """Return the sizes of the family's observations, actions and task features."""
        return self.family.sizes()

    @property
    def task_feature_size(self) -> int:
        """F, how many numbers tell the agent its task."""
        return int(self.task_features.shape[1])

    @torch.no_grad()
    def step(self) -> None:
        """Take one step in every environment and put it into the replay."""
        size = (self.engine.num_envs, self.family.action_size)
        if self.env_steps < self.settings.warmup_steps:
            action = 2 * torch.rand(size) - 1
        else:
            seen = torch.cat([self.observation, self.task_features], dim=1)
            action = agents_of(self.trainer).act(seen[None], torch.randn(1, *size))[0]
        result = self.engine.step(action.numpy())
        # Without steps that diverged: the simulator reset the state by itself inside them.
        self.replay.extend(self._transitions(action, result)[torch.from_numpy(~result.diverged)])
        ended = result.terminated | result.truncated
        following = self.engine.reset(ended) if ended.any() else result.observation
        self.observation = torch.from_numpy(following)
        self.env_steps += 1

    def _transitions(self, action: Tensor, result: StepResult) -> TensorDict:
        """Return the step that was just taken as the replay keeps it, [environments]."""
        terms = result.reward_terms.items()
        columns = {
            "observation": self.observation,
            "task_features": self.task_features,
            "action": action,
            "next_observation": torch.from_numpy(result.observation),
            "terminated": torch.from_numpy(result.terminated),
            "reward_terms": {name: torch.from_numpy(term).float() for name, term in terms},
        }
        return TensorDict(columns, batch_size=[self.engine.num_envs])

    def batch(self) -> TensorDict:
        """Draw transitions [U, 1, B] for U updates of the one agent, with the reward it sees now.

        The task's features are the last numbers of an observation.
        """
        drawn = self.replay.sample()
        if self.relabelled is not None:
            self.draw_tasks_anew(drawn, self.relabelled)
        reward = self.shaped.reward(drawn["reward_terms"], self.env_steps)
        told = drawn["task_features"]
        columns = {
            "observation": torch.cat([drawn["observation"], told], dim=1),
            "action": drawn["action"],
            "reward": self.shaped.penalise_falls(reward, drawn["terminated"]),
            "next_observation": torch.cat([drawn["next_observation"], told], dim=1),
            "terminated": drawn["terminated"],
        }
        shape = (self.settings.updates_per_step, 1, self.settings.batch_size)
        return TensorDict(columns, batch_size=[len(told)]).reshape(*shape)

    def draw_tasks_anew(self, drawn: TensorDict, family: LocomotionFamily) -> None:
        """Give a share of transitions [B] another task, and its term of the reward, in place."""
        terms = drawn["reward_terms"]
        chosen = torch.rand(drawn.shape) < self.relabel
        task = torch.randint(len(self.parameters), (int(chosen.sum()),))
        velocity = torch.stack([terms["velocity_x"][chosen], terms["velocity_y"][chosen]], dim=1)
        # The other summands of the reward do not depend on the task.
        reward = family.task_reward(velocity.numpy(), self.parameters[task.numpy()])
        terms["task"][chosen] = torch.from_numpy(reward).float()
        drawn["task_features"][chosen] = self.task_features[task]

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield an epoch's batches [updates_per_step, 1, batch_size], each after one step."""
        if self.env_steps == 0:
            self.observation = torch.from_numpy(self.engine.reset())
        while self.env_steps < self.settings.warmup_steps:
            self.step()
        for _ in range(len(self)):
            self.step()
            yield self.batch()

    def state_dict(self) -> dict[str, Any]:
        """Replay, simulator and clocks."""
        return {
            "env_steps": self.env_steps,
            "observation": self.observation,
            "engine": self.engine.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self.env_steps = state_dict["env_steps"]
        self.observation = state_dict["observation"]
        self.engine.load_state_dict(state_dict["engine"])
        self.replay.load_state_dict(state_dict["replay"])


def _relabelled(family: TaskFamily) -> LocomotionFamily:
    """Return the family, if the reward of one task's transitions can be computed for another.

    Raises:
        ValueError: Its tasks differ in more than a reward for velocity.
    """
    if not isinstance(family, LocomotionFamily) or family.per_task_model:
        raise ValueError(
            f"relabel: the tasks of {family.name} do not differ in a reward for velocity alone, so "
            "one task's transitions say nothing about another's. Set relabel to 0."
        )
    return family
