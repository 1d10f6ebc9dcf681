"""Soft actor-critic conditioned on the task: the behaviour agent that datasets come from.

Haarnoja et al., 2018 (arXiv 1812.05905), with TorchRL's loss: twin critics, target critics, a tanh
Gaussian actor, a learned temperature. TorchRL departs from the paper in two places: the critics'
error is smooth L1, and the temperature's loss is linear in its logarithm. The task's features are
appended to the observation, so that one agent learns all tasks of a family at once.
"""

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from offline_meta_rl.methods.base import MetaModule
from offline_meta_rl.networks.actors import BehaviourActor


class Critic(nn.Module):
    """Maps (observation, task features, action) to a value [..., 1]."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.network = MLP(
            input_size, 1, num_cells=[hidden_size, hidden_size], activation_class=nn.ReLU
        )

    def forward(self, observation: Tensor, task_features: Tensor, action: Tensor) -> Tensor:
        """Return Q, [..., 1]."""
        value: Tensor = self.network(torch.cat([observation, task_features, action], dim=-1))
        return value


class SAC(MetaModule):
    """Task-conditioned soft actor-critic.

    Args:
        observation_size: O.
        task_feature_size: F, how many numbers tell the agent its task.
        action_size: A; actions lie in [-1, 1].
        hidden_size: width of the two hidden layers of actor and critics.
        learning_rate: Adam's, for actor, critics and temperature.
        discount: per step.
        target_update: share of the critics that moves into the targets at each update.
    """

    def __init__(
        self,
        *,
        observation_size: int,
        task_feature_size: int,
        action_size: int,
        hidden_size: int = 256,
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update: float = 0.005,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.actor = BehaviourActor(observation_size, task_feature_size, action_size, hidden_size)
        inputs = ["observation", "task_features"]
        actor = ProbabilisticActor(
            TensorDictModule(self.actor, in_keys=inputs, out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            return_log_prob=True,
        )
        critic = ValueOperator(
            Critic(observation_size + task_feature_size + action_size, hidden_size),
            in_keys=[*inputs, "action"],
        )
        self.loss = SACLoss(actor, critic, num_qvalue_nets=2, target_entropy=-float(action_size))
        self.loss.make_value_estimator(gamma=discount)
        _ = self.loss.target_entropy  # registers its buffer, else only a trained module has it
        self.targets = SoftUpdate(self.loss, tau=target_update)

    def outer_step(self, batch: TensorDict) -> dict[str, Tensor]:
        """One SAC update on transitions [B] (keys of TorchRL's loss, plus ``task_features``)."""
        losses = self.loss(batch)
        total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]
        parameters = self.learned_parameters()
        # Not ``backward``: hooks of DistributedDataParallel would average what we sum.
        gradients = torch.autograd.grad(total, parameters)
        names = ("loss_actor", "loss_qvalue", "alpha", "entropy")
        metrics = self.apply_gradients(
            parameters, list(gradients), {name: losses[name].detach() for name in names}
        )
        self.targets.step()
        return metrics

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of actor, critics and temperature."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam for actor, critics and temperature."""
        return torch.optim.Adam(self.learned_parameters(), lr=self.learning_rate, fused=True)
