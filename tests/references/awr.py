"""Fine-tuning of one task's agent as one would write it for a single task, from the paper.

One pair of networks, one ``torch.optim.Adam`` each, advantages computed for every batch anew. What
the batched agents are compared with, in their numbers and in their speed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.references.macaw import Layer, apply, awr, regression_weight, value


def ordinary(theta: Tensor) -> Layer:
    """An ordinary layer as one whose latent code has no numbers."""
    theta = theta.detach().clone().requires_grad_()
    return theta.new_zeros(0), theta.new_zeros(theta.numel(), 0), theta


class ReferenceAwr:
    """One task's agent and its optimizers; all tensors of its layers that require it are learned.

    Args:
        policy: layers of body and action head.
        value_layers: layers of the value function.
        rates: learning rates, "policy" and "value".
        bootstrap: advantages use R + gamma^k V(s_end).
        fused: one kernel for Adam, for speed.
    """

    def __init__(
        self,
        policy: Sequence[Layer],
        value_layers: Sequence[Layer],
        rates: Mapping[str, float],
        *,
        bootstrap: bool = True,
        fused: bool = False,
    ) -> None:
        self.policy, self.value_layers, self.bootstrap = policy, value_layers, bootstrap
        self.optimizers = {
            kind: torch.optim.Adam(
                [tensor for layer in layers for tensor in layer if tensor.requires_grad],
                lr=rates[kind],
                foreach=False,
                fused=fused,
            )
            for kind, layers in (("policy", policy), ("value", value_layers))
        }

    def mean_action(self, observation: Tensor) -> Tensor:
        """Actions [B, A] of observations [B, O]."""
        hidden = observation
        for layer in self.policy[:-1]:
            hidden = torch.relu(apply(layer, hidden))
        return torch.tanh(apply(self.policy[-1], hidden))

    def update(self, kind: str, batch: Mapping[str, Tensor]) -> float:
        """One step on a batch [B]; return the loss."""
        observation, returns = batch["observation"], batch["return_to_go"]
        estimate = value(self.value_layers, observation)
        if kind == "value":
            loss = torch.square(estimate - returns).mean()
        else:
            with torch.no_grad():
                target = returns
                if self.bootstrap:
                    end = value(self.value_layers, batch["terminal_observation"])
                    target = returns + batch["terminal_discount"] * end
                weight = regression_weight(target - estimate)
            loss = awr(self.mean_action(observation), batch["action"], weight)
        optimizer = self.optimizers[kind]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())
