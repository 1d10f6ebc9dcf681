"""Conservative Q-learning on the buffers of many tasks at once (Kumar et al., 2020).

One policy for all tasks; it does not adapt. With ``tell_task`` it is told which task it is in, else
it learns what is good on average. Defaults are the formula of The Reflective Explorer (section
3.7); see ``offline_meta_rl.losses.cql``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from offline_meta_rl.losses.cql import CQLSettings, draw_cql_noise
from offline_meta_rl.methods.cql_agent import (
    FIELDS,
    NETWORK,
    AgentLearning,
    CQLAgent,
    CQLModule,
    row_weights,
)
from offline_meta_rl.networks.policy import BatchedPolicy
from offline_meta_rl.networks.stacked import HiddenLayers, of_tasks

AGENT_NAMES = {
    "width": "network.width",
    "depth": "network.depth",
    "actor_learning_rate": "learning.actor_learning_rate",
    "critic_learning_rate": "learning.critic_learning_rate",
    "target_update": "learning.target_update",
    "discount": "losses.discount",
    "conservative_weight": "losses.conservatism.weight",
    "conservative_form": "losses.conservatism.form",
    "conservative_temperature": "losses.conservatism.temperature",
    "num_actions": "losses.conservatism.num_actions",
    "importance_weights": "losses.conservatism.importance_weights",
    "entropy_weight": "losses.entropy_weight",
    "min_log_std": "losses.min_log_std",
}
"""Settings of an agent in earlier versions, old name -> new one."""


class CQL(CQLModule):
    """Multi-task conservative Q-learning for continuous actions in [-1, 1].

    It learns from the outer batches of TaskBuffers, whose ``fields`` must be observation, action,
    reward, next_observation and terminated, and ``task`` with ``tell_task``. Nothing follows a
    terminated episode; what follows a truncated one counts.

    Args:
        observation_size: O.
        action_size: A.
        num_tasks: Tasks of the dataset.
        tell_task: Append the task's index to the observation, as a one-hot code; else one policy
            has to do for all tasks.
        network: Hidden layers of actor and critics.
        losses: Discount, conservative term, entropy of the actor.
        learning: Learning rates, and how fast the target critics follow.
        compile: Compile the losses; falls back to eager with a warning.
        clip_gradient_norm: Largest norm of the whole gradient; None for no clipping.
    """

    renamed: ClassVar[Mapping[str, str]] = {**AGENT_NAMES, "one_hot_tasks": "tell_task"}

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        num_tasks: int | None = None,
        tell_task: bool = False,
        network: HiddenLayers = NETWORK,
        losses: CQLSettings = CQLSettings(),
        learning: AgentLearning = AgentLearning(),
        compile: bool = False,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(learning, clip_gradient_norm)
        self.save_hyperparameters()
        self.observation_size, self.action_size = observation_size, action_size
        if tell_task and num_tasks is None:
            raise ValueError(
                "tell_task: expected num_tasks too, the length of the code, found none. Pass the "
                "dataset's number of tasks."
            )
        self.code_size = (num_tasks or 0) if tell_task else 0
        agent = CQLAgent(observation_size + self.code_size, action_size, network, losses)
        self.use(agent, compile=compile)

    @classmethod
    def upgrade(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take the number of tasks out of ``one_hot_tasks``, which said both before."""
        if "one_hot_tasks" not in given:
            return given
        tasks = int(given["one_hot_tasks"])
        return {**given, "one_hot_tasks": tasks > 0, "num_tasks": tasks or None}

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of actor and critics on the transitions of all tasks of the batch.

        Args:
            batch: ``outer``: FIELDS of every task, [T, R, ...]; ``weight`` [T].

        Returns:
            The losses and what else is logged, [] each; see ``cql_losses``.
        """
        outer = batch["outer"]
        return self.update(self.transitions(outer), outer["action"].shape, self.task_weight(batch))

    def transitions(self, batch: TensorDict) -> dict[str, Tensor]:
        """Return the transitions [T, R] of all tasks as one batch [T * R], conditioned on tasks."""
        pooled = {name: batch[name].flatten(0, 1) for name in FIELDS}
        if self.code_size:
            # One policy for all tasks, so the task is part of what it sees, now and at the next
            # step.
            code = F.one_hot(batch["task"].flatten(0, 1), self.code_size)
            code = code.to(pooled["observation"].dtype)
            for name in ("observation", "next_observation"):
                pooled[name] = torch.cat([pooled[name], code], dim=-1)
        return pooled

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Return the one policy for every task of the contexts [T, B]; nothing is learned.

        With ``tell_task`` the contexts' field ``task`` says which task it is told. The policy
        has the mean action alone.

        Raises:
            ValueError: Contexts without ``task``, with ``tell_task``.
        """
        task = None
        if self.code_size:
            if "task" not in context.keys():
                raise ValueError(
                    "This policy is told its task: expected contexts with the field task, found "
                    f"{sorted(context.keys())}. Add task to --data.init_args.fields."
                )
            task = context["task"][:, 0]
        layers = of_tasks(self.agent.actor.layers(), self.observation_size, len(context), task)
        weights, biases = [weight for weight, _ in layers], [bias[:, 0] for _, bias in layers]
        # The network also returns the standard deviations; the mean action does without.
        weights[-1] = weights[-1][..., : self.action_size]
        biases[-1] = biases[-1][..., : self.action_size]
        return BatchedPolicy(weights, biases, sigma=0.0)

    @torch.no_grad()
    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the losses on ``query`` [T, B] of held-out tasks, always with the same noise."""
        weight = torch.full((len(query),), 1.0 / len(query), device=self.device)
        batch, shape = self.transitions(query), query["action"].flatten(0, 1).shape
        noise = draw_cql_noise(
            shape,
            self.agent.settings.conservatism,
            device=self.device,
            # The same noise each time, so that a change of the loss is one of the parameters.
            generator=torch.Generator(self.device).manual_seed(0),
        )
        return self.agent.losses(batch, noise, row_weights(weight, query.shape[1]))

    @property
    def context_fields(self) -> tuple[str, ...]:
        """The task's index if the policy sees it; observations give the number of tasks."""
        return ("observation", *(["task"] if self.code_size else []))

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What training needs of the data."""
        return (*FIELDS, *(["task"] if self.code_size else []))
