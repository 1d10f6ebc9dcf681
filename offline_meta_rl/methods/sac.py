"""Soft actor-critic: the behaviour agents that datasets come from.

Haarnoja et al., 2018 (arXiv 1812.05905). One agent learns all tasks of a family and is told which
one it is in, or every task has an agent of its own that never hears of the others, as in the data
of MACAW (Mitchell et al., 2021). Either way it is a stack of N networks, N = 1 or N = T: Adam acts
on each element by itself, so every agent of a stack learns exactly as it would alone (test).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from offline_meta_rl.behaviour.learning import ServesAgents
from offline_meta_rl.evaluation.measure import datamodule_of
from offline_meta_rl.losses.sac import Agents, SACSettings, gaussian, sac_losses
from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks.actors import BehaviourActor, polyak, with_target
from offline_meta_rl.networks.stacked import HiddenLayers, Layers, StackedMLP


class SAC(MetaModule):
    """N independent soft actor-critics.

    With ``agents: one`` train it on ``OnlineBuffer``, with ``agents: per_task`` on
    ``LifetimeBuffers``. Gradients are not clipped: the norm of the whole gradient would tie the
    agents together.

    Args:
        observation_size: O.
        action_size: A; actions lie in [-1, 1].
        task_feature_size: F, the numbers that tell the one agent its task; they are appended to its
            observation. None for an agent that is told nothing.
        num_tasks: T, the number of agents with ``agents: per_task``.
        agents: ``one`` for all tasks, or one ``per_task``.
        network: Hidden layers of actors and critics.
        losses: What the agents optimise.
        learning_rate: Adam's, for actors, critics and temperatures.
        target_update: Share of the critics that moves into their targets at each update.
        compile: Compile the losses; falls back to eager with a warning.
        compile_mode: The mode of ``torch.compile``.

    Raises:
        ValueError: Another value of ``agents``, or one agent per task without ``num_tasks``.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "hidden_size": "network.width",
        "discount": "losses.discount",
        "initial_temperature": "losses.initial_temperature",
        "target_entropy": "losses.target_entropy",
    }

    def __init__(
        self,
        *,
        observation_size: int,
        action_size: int,
        task_feature_size: int | None = None,
        num_tasks: int | None = None,
        agents: Literal["one", "per_task"] = "one",
        network: HiddenLayers = HiddenLayers(width=256, depth=2),
        losses: SACSettings = SACSettings(),
        learning_rate: float = 3e-4,
        target_update: float = 0.005,
        compile: bool = False,
        compile_mode: str = "default",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.agents, self.num_agents = agents, _number_of_agents(agents, num_tasks)
        self.task_feature_size = (task_feature_size or 0) if agents == "one" else 0
        self.observation_size, self.action_size = observation_size, action_size
        self.learning_rate, self.target_update = learning_rate, target_update
        self.network, self.settings = network, losses
        seen = observation_size + self.task_feature_size
        self.actors = StackedMLP(self.num_agents, network.sizes(seen, 2 * action_size))
        self.critics, self.targets = with_target(
            2 * self.num_agents, network.sizes(seen + action_size, 1)
        )
        temperature = torch.full((self.num_agents,), losses.initial_temperature)
        self.log_temperature = nn.Parameter(temperature.log())
        self._losses = self.compiled(self.losses, compile, compile_mode)

    def learned(self) -> Agents:
        """Return all that is learned."""
        return Agents(self.actors.layers(), self.critics.layers(), self.log_temperature)

    def losses(
        self, agents: Agents, targets: Layers, batch: dict[str, Tensor], noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of every agent, [N] each; see ``sac_losses``."""
        return sac_losses(agents, targets, batch, noise, self.settings)

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One update of every agent on its own transitions [N, B].

        Args:
            batch: observation and next_observation [N, B, O + F], action, reward, terminated.
        """
        agents = self.learned()
        # One half for the actions of the backup, the other for the actor's loss.
        noise = torch.randn(
            2, *batch["action"].shape, device=self.device, dtype=agents.log_temperature.dtype
        )
        losses = self._losses(agents, self.targets.layers(), dict(batch), noise)
        # A sum over agents: each term has gradients in its own agent alone.
        total = losses["critic"].sum() + losses["actor"].sum() + losses["temperature"].sum()
        parameters = pytree.tree_leaves(agents)
        # Not ``backward``: hooks of DistributedDataParallel would average what we sum.
        gradients = torch.autograd.grad(total, parameters)
        metrics = {name: value.detach().mean() for name, value in losses.items()}
        metrics["temperature"] = self.log_temperature.detach().exp().mean()
        metrics = self.apply_gradients(parameters, list(gradients), metrics)
        # The targets follow the critics as they are after the step.
        polyak(self.targets.parameters(), self.critics.parameters(), self.target_update)
        return metrics

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the actions of every agent in its own environments.

        Args:
            observation: Observations followed by the task's features, if any, [N, E, O + F], on any
                device.
            noise: Standard normal, [N, E, A]; None for the mean action.

        Returns:
            Actions [N, E, A] in (-1, 1), on the observation's device.
        """
        mean, scale = gaussian(self.actors.layers(), observation.to(self.device))
        if noise is not None:
            mean = mean + scale * noise.to(self.device)
        return torch.tanh(mean).to(observation.device)

    @torch.no_grad()
    def behaviour_actor(self) -> BehaviourActor:
        """Return a copy of the one agent's actor, on the CPU, as snapshots keep it.

        Raises:
            TypeError: Every task has an agent of its own.
        """
        if self.agents != "one":
            raise TypeError(
                "Expected one agent for all tasks, found agents: per_task. Set --model.agents one."
            )
        # New layers draw their weights, and a snapshot must not change what training draws.
        with torch.random.fork_rng(devices=[]):
            actor = BehaviourActor(
                self.observation_size, self.task_feature_size, self.action_size, self.network
            )
        linear = (layer for layer in actor.network if isinstance(layer, nn.Linear))
        for layer, (weight, bias) in zip(linear, self.actors.layers(), strict=True):
            layer.weight.copy_(weight[0].T)
            layer.bias.copy_(bias[0, 0])
        return actor

    def setup(self, stage: str) -> None:
        """Check that the data serve as many agents as there are.

        Raises:
            ValueError: The data serve another number of agents.
        """
        super().setup(stage)
        data = datamodule_of(self.trainer)
        if isinstance(data, ServesAgents) and data.num_agents != self.num_agents:
            raise ValueError(
                f"Expected as many agents as the data serve, found {self.num_agents} in SAC and "
                f"{data.num_agents} in {type(data).__name__}. With LifetimeBuffers set "
                "--model.agents per_task and leave num_tasks to the data; with OnlineBuffer set "
                "--model.agents one."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse agents of the versions that trained TorchRL's networks.

        Raises:
            ValueError: The checkpoint holds one.
        """
        super().on_load_checkpoint(checkpoint)
        if not any(name.startswith("actors.") for name in checkpoint["state_dict"]):
            raise ValueError(
                "The checkpoint's SAC was written when its networks were TorchRL's; expected "
                "stacked networks (actors.weights.0, ...). Train the agent again with "
                "configs/behaviour/*.yaml, or go on with the version of the code that wrote it."
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for all agents."""
        return torch.optim.Adam(
            pytree.tree_leaves(self.learned()), lr=self.learning_rate, fused=True
        )


def _number_of_agents(agents: str, num_tasks: int | None) -> int:
    """Return N.

    Raises:
        ValueError: Another value of ``agents``, or one agent per task of an unknown number.
    """
    if agents == "one":
        return 1
    if agents != "per_task":
        raise ValueError(f"agents: expected one or per_task, found {agents!r}.")
    if num_tasks is None:
        raise ValueError("agents: per_task needs num_tasks, found none. Pass the number of tasks.")
    return num_tasks
