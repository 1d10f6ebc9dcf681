"""Steps one environment per task while a behaviour agent trains, and serves its replay.

Each batch of the loader first takes one step in every environment with the agent's current noisy
policy, then draws the replay for the updates. The reward the *agent* sees may differ from the
family's true reward: an ant paid for being alive, or charged in full for its first clumsy moves,
learns to stand still. The replay keeps the summands, so that all of it is weighed alike.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from datamodules.preparation import check_vector_family
from offline_meta_rl.behaviour.shaping import RewardShaping
from offline_meta_rl.data.contracts import DataSizes
from offline_meta_rl.envs import FAMILIES


class OnlineBuffer(lightning.LightningDataModule):
    """Replay of one task-conditioned agent in all tasks of a family.

    Args:
        family: short name of the task family.
        seed: of initial states, warm-up actions and the replay's draws.
        task_seed: of the task parameters.
        envs_per_task: environments for each task.
        capacity: transitions kept.
        batch_size: transitions per update.
        updates_per_step: updates for each step taken in all environments.
        warmup_steps: steps in all environments with uniform random actions before training.
        steps_per_epoch: batches Lightning calls an epoch.
        alive_bonus: of the reward the agent sees; None for the family's.
        control_cost: of the reward the agent sees, when annealing starts; None for the family's.
        anneal_steps: steps in all environments until the control cost is the family's own.
        fall_penalty: taken off the reward the agent sees where an episode terminates.
        height_weight: of the term ``height`` in the reward the agent sees, where there is one.
        relabel: share of each batch whose task is drawn anew, with the reward it would have paid:
            what was seen on the way to one goal teaches the others. Only where all tasks move
            alike, and the reward depends on them through the torso's velocity.
        num_threads: of the simulator's pool; None for one per core.
    """

    observation: torch.Tensor

    if TYPE_CHECKING:
        hparams: Any  # Lightning's type has no attributes

    def __init__(
        self,
        *,
        family: str,
        seed: int = 0,
        task_seed: int = 0,
        envs_per_task: int = 1,
        capacity: int = 1_000_000,
        batch_size: int = 256,
        updates_per_step: int = 6,
        warmup_steps: int = 100,
        steps_per_epoch: int = 1000,
        alive_bonus: float | None = None,
        control_cost: float | None = None,
        anneal_steps: int = 0,
        fall_penalty: float = 0.0,
        height_weight: float = 0.0,
        relabel: float = 0.0,
        num_threads: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.family = FAMILIES[family]
        check_vector_family(self.family)
        if relabel and getattr(self.family, "per_task_model", True):
            raise ValueError(
                f"relabel: the tasks of {family} do not differ in a reward for velocity alone, so "
                "one task's transitions say nothing about another's. Set relabel to 0."
            )
        self.parameters = np.repeat(self.family.task_parameters(task_seed), envs_per_task, axis=0)
        self.task_features = torch.from_numpy(self.family.task_features(self.parameters))
        self.engine = self.family.make_engine(self.parameters, seed=seed, num_threads=num_threads)
        self.replay = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity), batch_size=batch_size * updates_per_step
        )
        self.shape = (updates_per_step, batch_size)
        self.shaping = RewardShaping(
            self.family, alive_bonus, control_cost, anneal_steps, fall_penalty, height_weight
        )
        self.env_steps = 0

    def setup(self, stage: str | None = None) -> None:
        """Check that one process trains.

        Raises:
            ValueError: several processes; each would fill a replay of its own.
        """
        found = self.trainer.world_size if self.trainer else 1
        if found > 1:
            raise ValueError(
                f"OnlineBuffer simulates and keeps its replay in one process, found {found}. "
                "Set --trainer.devices=1."
            )

    def sizes(self) -> DataSizes:
        """Return the sizes of what the environments give and take."""
        return self.family.sizes()

    @property
    def task_feature_size(self) -> int:
        """F, how many numbers tell the agent its task."""
        return int(self.task_features.shape[1])

    def reward(self, terms: TensorDict) -> torch.Tensor:
        """Return the reward the agent sees now for stored reward terms [...], float32."""
        return self.shaping.reward(terms, self.env_steps)

    def draw_tasks_anew(self, batch: TensorDict) -> None:
        """Give a share of the transitions another task, and the reward's term for it, in place."""
        family: Any = self.family
        terms = batch["next", "reward_terms"]
        chosen = torch.rand(batch.shape) < self.hparams.relabel
        task = torch.randint(len(self.parameters), (int(chosen.sum()),))
        velocity = torch.cat([terms["velocity_x"][chosen], terms["velocity_y"][chosen]], dim=-1)
        reward = family.task_reward(velocity.numpy(), self.parameters[task.numpy()])
        terms["task"][chosen] = torch.from_numpy(reward).float()[:, None]
        for part in (batch, batch["next"]):
            part["task_features"][chosen] = self.task_features[task]

    @torch.no_grad()
    def step(self) -> None:
        """Take one step in every environment and put it into the replay."""
        if self.env_steps < self.hparams.warmup_steps:
            action = 2 * torch.rand(self.engine.num_envs, self.family.action_size) - 1
        else:
            trainer: Any = self.trainer
            actor = trainer.lightning_module.actor
            action = actor.act(self.observation, self.task_features, stochastic=True)
        result = self.engine.step(action.numpy())
        following = torch.from_numpy(result.observation)
        ended = result.terminated | result.truncated
        transitions = TensorDict(
            {
                "observation": self.observation,
                "task_features": self.task_features,
                "action": action,
                "next": {
                    "observation": following,
                    "task_features": self.task_features,
                    "reward_terms": {
                        name: torch.from_numpy(term).float()[:, None]
                        for name, term in result.reward_terms.items()
                    },
                    "terminated": torch.from_numpy(result.terminated)[:, None],
                    "done": torch.from_numpy(ended)[:, None],
                },
            },
            batch_size=[self.engine.num_envs],
        )
        self.replay.extend(transitions[torch.from_numpy(~result.diverged)])
        self.observation = torch.from_numpy(self.engine.reset(ended)) if ended.any() else following
        self.env_steps += 1

    def train_dataloader(self) -> "OnlineBuffer":
        """The datamodule is its own loader."""
        return self

    def __len__(self) -> int:
        """Batches in an epoch."""
        return int(self.hparams.steps_per_epoch)

    def __iter__(self) -> Iterator[TensorDict]:
        """Yield batches [updates_per_step, batch_size] for ever."""
        if self.env_steps == 0:
            self.observation = torch.from_numpy(self.engine.reset())
        while self.env_steps < self.hparams.warmup_steps:
            self.step()
        for _ in range(len(self)):
            self.step()
            batch = self.replay.sample().reshape(*self.shape)
            if self.hparams.relabel:
                self.draw_tasks_anew(batch)
            reward = self.reward(batch["next"].pop("reward_terms"))
            batch["next", "reward"] = self.shaping.penalise_falls(
                reward, batch["next", "terminated"]
            )
            yield batch

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
