"""Soft actor-critic with TorchRL's parts: what ``methods.sac`` is measured against.

``SACLoss``, its vectorised twin critics and ``SoftUpdate``, wired as TorchRL's examples do. The
critics' errors are squared, as ours are. ``SACLoss`` has a single temperature and adds everything
up in one loss, so it is one agent; a stack of agents needs both for every agent.
"""

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate


class Critic(nn.Module):
    """Maps (observation, action) to a value [..., 1]."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.network = MLP(
            input_size, 1, num_cells=[hidden_size, hidden_size], activation_class=nn.ReLU
        )

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.network(torch.cat([observation, action], dim=-1))
        return value


class TorchRLAgent:
    """One agent and its optimizer; the arguments are those of ``methods.sac.SAC``."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_size: int,
        *,
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update: float = 0.005,
    ) -> None:
        self.actor = nn.Sequential(
            MLP(
                observation_size,
                2 * action_size,
                num_cells=[hidden_size, hidden_size],
                activation_class=nn.ReLU,
            ),
            NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=1e-3),
        )
        actor = ProbabilisticActor(
            TensorDictModule(self.actor, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            return_log_prob=True,
        )
        critic = ValueOperator(
            Critic(observation_size + action_size, hidden_size), in_keys=["observation", "action"]
        )
        self.loss = SACLoss(
            actor,
            critic,
            num_qvalue_nets=2,
            loss_function="l2",
            target_entropy=-float(action_size),
        )
        self.loss.make_value_estimator(gamma=discount)
        self.targets = SoftUpdate(self.loss, tau=target_update)
        self.learned = [p for p in self.loss.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.learned, lr=learning_rate, fused=True)

    def losses(self, batch: TensorDict) -> dict[str, Tensor]:
        """Return the losses of transitions [B] as ``losses.sac`` defines them.

        TorchRL's squared error is not halved.
        """
        found = self.loss(batch)
        return {
            "critic": 0.5 * found["loss_qvalue"],
            "actor": found["loss_actor"],
            "temperature": found["loss_alpha"],
        }

    def update(self, batch: TensorDict) -> None:
        """Do one update on transitions [B]."""
        losses = self.losses(batch)
        self.optimizer.zero_grad()
        (losses["critic"] + losses["actor"] + losses["temperature"]).backward()
        self.optimizer.step()
        self.targets.step()


def as_torchrl(batch: dict[str, Tensor]) -> TensorDict:
    """Return transitions [B] under TorchRL's names."""
    ended = batch["terminated"][:, None]
    following = {
        "observation": batch["next_observation"],
        "reward": batch["reward"][:, None],
        "terminated": ended,
        "done": ended,
    }
    columns = {name: batch[name] for name in ("observation", "action")}
    return TensorDict({**columns, "next": following}, batch_size=[len(ended)])
