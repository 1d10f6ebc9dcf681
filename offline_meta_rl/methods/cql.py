"""Conservative Q-learning on the buffers of many tasks at once (Kumar et al., 2020).

One policy for all tasks; it does not adapt. With ``one_hot_tasks`` it is told which task it is in,
else it learns what is good on average. Constructor defaults are the formula of The Reflective
Explorer (section 3.7); see ``cql_losses``.
"""

from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from offline_meta_rl.losses.cql import CQLNoise, CQLSettings, draw_noise
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.methods.checks import check_one_hot_tasks
from offline_meta_rl.methods.cql_agent import CQLAgent, total_loss
from offline_meta_rl.networks.policy import BatchedPolicy
from offline_meta_rl.networks.stacked import of_tasks

FIELDS = ("observation", "action", "reward", "next_observation", "terminated")


class CQL(MetaModule):
    """Multi-task conservative Q-learning for continuous actions in [-1, 1].

    It learns from the outer batches of TaskBuffers, whose ``fields`` must be observation, action,
    reward, next_observation and terminated, and ``task`` with ``one_hot_tasks``. Nothing follows a
    terminated episode; what follows a truncated one counts.

    Args:
        observation_size: O.
        action_size: A.
        one_hot_tasks: number of the dataset's tasks, to append a task's one-hot index to the
            observation; 0 for a policy that is not told the task.
        width: of every hidden layer.
        depth: hidden layers of actor and critics.
        actor_learning_rate: of Adam.
        critic_learning_rate: of Adam.
        discount: per step.
        target_update: share of the critics that moves into the targets at each update.
        conservative_weight: of the conservative term; 0 leaves it out.
        conservative_form: ``uniform`` (the paper's) or ``logsumexp`` (CQL(H)).
        conservative_temperature: of ``logsumexp``; CQL(H) has 1.
        num_actions: sampled actions in each group.
        importance_weights: subtract log densities inside ``logsumexp``.
        entropy_weight: of the actor's log density in its loss.
        min_log_std: floor of the logarithm of the actor's standard deviation.
        compile: compile the losses; falls back to eager with a warning.
        clip_gradient_norm: largest norm of the whole gradient; None for no clipping.
    """

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        one_hot_tasks: int = 0,
        width: int = 256,
        depth: int = 2,
        actor_learning_rate: float = 1e-4,
        critic_learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update: float = 0.005,
        conservative_weight: float = 1.0,
        conservative_form: Literal["uniform", "logsumexp"] = "uniform",
        conservative_temperature: float = 1.0,
        num_actions: int = 10,
        importance_weights: bool = False,
        entropy_weight: float = 0.0,
        min_log_std: float = -20.0,
        compile: bool = False,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(clip_gradient_norm=clip_gradient_norm)
        self.save_hyperparameters()
        self.agent = CQLAgent(
            observation_size + one_hot_tasks,
            action_size,
            width=width,
            depth=depth,
            target_update=target_update,
            settings=CQLSettings(
                discount=discount,
                weight=conservative_weight,
                form=conservative_form,
                temperature=conservative_temperature,
                num_actions=num_actions,
                importance_weights=importance_weights,
                entropy_weight=entropy_weight,
                min_log_std=min_log_std,
            ),
        )
        self._losses = self.compiled(self.agent.losses, compile)

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of actor and critics on the transitions of all tasks of the batch.

        Args:
            batch: ``outer``: FIELDS of every task, [T, B]; ``weight`` [T].
        """
        outer, weight = batch["outer"], self.task_weight(batch)
        losses = self._losses(
            self.transitions(outer), self._noise(outer, weight), row_weights(outer, weight)
        )
        parameters = pytree.tree_leaves(self.agent.learned())
        gradients = torch.autograd.grad(total_loss(losses), parameters)
        metrics = {name: value.detach() for name, value in losses.items()}
        metrics = self.apply_gradients(parameters, list(gradients), metrics)
        self.agent.update_targets()
        return metrics

    def transitions(self, batch: TensorDict) -> dict[str, Tensor]:
        """Return the transitions [T, B] of all tasks as one batch [T * B], conditioned on tasks."""
        pooled = {name: batch[name].flatten(0, 1) for name in FIELDS}
        tasks = self.hparams.one_hot_tasks
        if tasks:
            code = F.one_hot(batch["task"].flatten(0, 1), tasks).to(pooled["observation"].dtype)
            for name in ("observation", "next_observation"):
                pooled[name] = torch.cat([pooled[name], code], dim=-1)
        return pooled

    def adapt_tasks(self, context: TensorDict, num_steps: int = 1) -> BatchedPolicy:
        """Return the one policy for every task of the contexts [T, B]; nothing is learned.

        With ``one_hot_tasks`` the contexts' field ``task`` says which task it is told. The policy
        has the mean action alone.

        Raises:
            ValueError: contexts without ``task``, with ``one_hot_tasks``.
        """
        task = None
        if self.hparams.one_hot_tasks:
            if "task" not in context.keys():
                raise ValueError(
                    "This policy is told its task: expected contexts with the field task, found "
                    f"{sorted(context.keys())}. Add task to --data.init_args.fields."
                )
            task = context["task"][:, 0]
        layers = of_tasks(
            self.agent.actor.layers(), self.hparams.observation_size, len(context), task
        )
        weights, biases = [weight for weight, _ in layers], [bias[:, 0] for _, bias in layers]
        action_size = self.hparams.action_size
        weights[-1], biases[-1] = weights[-1][..., :action_size], biases[-1][..., :action_size]
        return BatchedPolicy(weights, biases, sigma=0.0)

    @torch.no_grad()
    def held_out_losses(self, context: TensorDict, query: TensorDict) -> dict[str, Tensor]:
        """Return the losses on transitions of held-out tasks, always with the same noise."""
        weight = torch.full((len(query),), 1.0 / len(query), device=self.device)
        batch, shape = self.transitions(query), query["action"].flatten(0, 1).shape
        generator = torch.Generator(self.device).manual_seed(0)
        noise = draw_noise(shape, self.agent.settings, device=self.device, generator=generator)
        return self.agent.losses(batch, noise, row_weights(query, weight))

    @property
    def context_fields(self) -> tuple[str, ...]:
        """What tells the task, if the policy is told; observations say how many there are."""
        return ("observation", *(["task"] if self.hparams.one_hot_tasks else []))

    @property
    def batch_fields(self) -> tuple[str, ...]:
        """What training needs of the data."""
        return (*FIELDS, *(["task"] if self.hparams.one_hot_tasks else []))

    def setup(self, stage: str) -> None:
        """Check the number of tasks too.

        Raises:
            ValueError: with what was expected, what was found and the fix.
        """
        super().setup(stage)
        trainer: Any = self.trainer
        tasks = self.hparams.one_hot_tasks
        if tasks:
            check_one_hot_tasks(trainer.datamodule, tasks)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam; actor and critics are its parameter groups."""
        rates = self.hparams
        groups = [
            {"params": self.agent.actor.parameters(), "lr": rates.actor_learning_rate},
            {"params": self.agent.critics.parameters(), "lr": rates.critic_learning_rate},
        ]
        return torch.optim.Adam(groups, fused=True)

    def _noise(self, outer: TensorDict, weight: Tensor) -> CQLNoise:
        """Draw the noise of the whole batch and keep that of this process's tasks."""
        num_tasks, mine = self.share_of_tasks(weight)
        noise = draw_noise(
            (num_tasks, *outer["action"].shape[1:]),
            self.agent.settings,
            device=self.device,
            generator=self.noise_generator(),
        )
        return CQLNoise(*(values[mine].flatten(0, 1) for values in noise))


def row_weights(batch: TensorDict, weight: Tensor) -> Tensor:
    """Return the weight of each row's loss, [T * B], from that of each task, [T]."""
    num_tasks, num_rows = batch.batch_size
    return (weight / num_rows)[:, None].expand(num_tasks, num_rows).flatten()
