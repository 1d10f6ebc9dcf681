"""One soft actor-critic for each task, all trained at once: lifetime replays come from them.

As in the data of MACAW (Mitchell et al., 2021), every task has an agent of its own, from scratch,
that never hears of the other tasks. Parameters and Adam's moments are stacked over tasks; Adam acts
on each element by itself, so each agent learns exactly as it would alone (test).
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offline_meta_rl.losses.sac import Agents, gaussian, sac_losses
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks.stacked import StackedMLP


class PerTaskSAC(MetaModule):
    """T independent soft actor-critics (Haarnoja et al., 2018, arXiv 1812.05905).

    Gradients are not clipped: the norm of the whole gradient would tie the agents together.

    Args:
        num_tasks: T.
        observation_size: O.
        action_size: A; actions lie in [-1, 1].
        hidden_size: width of the two hidden layers of actors and critics.
        learning_rate: Adam's, for actors, critics and temperatures.
        discount: per step.
        target_update: share of the critics that moves into the targets at each update.
        initial_temperature: weight of the entropy at first.
        target_entropy: that the temperatures steer to; None for -A.
        compile: compile the losses; falls back to eager with a warning.
        compile_mode: of ``torch.compile``.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        observation_size: int,
        action_size: int,
        hidden_size: int = 256,
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update: float = 0.005,
        initial_temperature: float = 1.0,
        target_entropy: float | None = None,
        compile: bool = False,
        compile_mode: str = "default",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.target_entropy = -float(action_size) if target_entropy is None else target_entropy
        hidden = [hidden_size, hidden_size]
        critic_sizes = [observation_size + action_size, *hidden, 1]
        self.actors = StackedMLP(num_tasks, [observation_size, *hidden, 2 * action_size])
        self.critics = StackedMLP(2 * num_tasks, critic_sizes)
        self.targets = StackedMLP(2 * num_tasks, critic_sizes).requires_grad_(False)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperature = nn.Parameter(torch.full((num_tasks,), initial_temperature).log())
        self._losses = self.compiled(self.losses, compile, compile_mode)

    def agents(self) -> Agents:
        """Return all that is learned."""
        return Agents(self.actors.layers(), self.critics.layers(), self.log_temperature)

    def losses(
        self, agents: Agents, targets: Any, batch: dict[str, Tensor], noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of every agent, [T] each; see ``sac_losses``."""
        return sac_losses(
            agents,
            targets,
            batch,
            noise,
            discount=self.hparams.discount,
            target_entropy=self.target_entropy,
        )

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of every agent on its own transitions [T, B].

        Args:
            batch: observation, action, reward, next_observation, terminated of every task.
        """
        agents = self.agents()
        noise = torch.randn(
            2, *batch["action"].shape, device=self.device, dtype=agents.log_temperature.dtype
        )
        losses = self._losses(agents, self.targets.layers(), dict(batch), noise)
        total = losses["critic"].sum() + losses["actor"].sum() + losses["temperature"].sum()
        parameters = pytree.tree_leaves(agents)
        gradients = torch.autograd.grad(total, parameters)
        metrics = {name: value.detach().mean() for name, value in losses.items()}
        metrics["temperature"] = self.log_temperature.detach().exp().mean()
        metrics = self.apply_gradients(parameters, list(gradients), metrics)
        torch._foreach_lerp_(
            list(self.targets.parameters()),
            [parameter.detach() for parameter in self.critics.parameters()],
            self.hparams.target_update,
        )
        return metrics

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the actions of every agent in rows of its own task.

        Args:
            observation: [T, E, O], on any device.
            noise: standard normal, [T, E, A]; None for the mean action.

        Returns:
            Actions [T, E, A] in (-1, 1), on the observation's device.
        """
        mean, scale = gaussian(self.actors.layers(), observation.to(self.device))
        if noise is not None:
            mean = mean + scale * noise.to(self.device)
        return torch.tanh(mean).to(observation.device)

    def setup(self, stage: str) -> None:
        """Check the number of tasks too.

        Raises:
            ValueError: the data has another number of tasks.
        """
        super().setup(stage)
        trainer: Any = self.trainer
        found = getattr(trainer.datamodule, "num_tasks", None)
        if found not in (None, self.hparams.num_tasks):
            raise ValueError(
                f"The module was built for {self.hparams.num_tasks} agents, the data has {found} "
                f"tasks. Set --model.init_args.num_tasks={found}, or list as many tasks in "
                "--data.init_args.tasks."
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for all agents."""
        return torch.optim.Adam(
            pytree.tree_leaves(self.agents()), lr=self.hparams.learning_rate, fused=True
        )
