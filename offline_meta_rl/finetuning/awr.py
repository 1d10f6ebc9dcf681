"""Advantage-weighted regression on online data, for the agents of T tasks at once.

After an episode: steps of the value function towards Monte-Carlo returns (Eq. 2 of MACAW), then
steps of the policy by advantage-weighted regression (Eq. 1); the advantage head has no part in it.
While the policy is updated the value function stands still, so the advantages of all rows in the
replay are computed once. Shapes: T tasks, B transitions, N rows of the replay, Z latent size, D
numbers of one layer, O/A observation/action size.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor

from offline_meta_rl.common.compiling import CompiledOrEager
from offline_meta_rl.finetuning.learner import OnlineLearner
from offline_meta_rl.finetuning.replay import Columns, OnlineReplay
from offline_meta_rl.losses.awr import (
    AWRSettings,
    advantage_weights,
    bootstrapped_return,
    regression_loss,
    value_loss,
)
from offline_meta_rl.networks.generated import LayerParameters, split_theta
from offline_meta_rl.networks.stacked import Layers, stacked_mlp

Parameters = Sequence[Tensor | LayerParameters]
"""Every layer of T networks: theta [T, D]; or each task's own latent z [T, Z], matrix M [T, D, Z]
and vector c [T, D], which generate theta = M z + c."""

ROWS_AT_ONCE = 4096


class AwrLearner(OnlineLearner):
    """Agents of T tasks that learn by advantage-weighted regression.

    Args:
        policy: Layers of body and action head; the agents start here, copies are kept.
        value: Layers of the value function.
        observation_size: O.
        policy_learning_rate: Learning rate of the policy's Adam, which starts with fresh moments.
        value_learning_rate: Learning rate of the value function's Adam, likewise.
        bootstrap_advantage: Advantages use R + gamma^k V(s_end) (authors) in place of R (paper).
        awr: Settings of the policy's advantage-weighted regression.
        compile: Compile the two gradients; falls back to eager with a warning.
    """

    updates: ClassVar[Mapping[str, int]] = {"value": 100, "policy": 200}
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "value": ("observation", "return_to_go"),
        "policy": ("observation", "action"),
    }

    def __init__(
        self,
        policy: Parameters,
        value: Parameters,
        *,
        observation_size: int,
        policy_learning_rate: float = 1e-5,
        value_learning_rate: float = 1e-5,
        bootstrap_advantage: bool = True,
        awr: AWRSettings = AWRSettings(),
        compile: bool = False,
    ) -> None:
        self.policy, self.value = _copies(policy), _copies(value)
        self.observation_size = observation_size
        self._generated: Layers | None = None  # the policy's weights between updates
        self.bootstrap_advantage, self.awr = bootstrap_advantage, awr
        self.fields = ("observation", "action", "return_to_go")
        if bootstrap_advantage:
            self.fields += ("terminal_observation", "terminal_discount")
        rates = {"value": value_learning_rate, "policy": policy_learning_rate}
        self.optimizers = {
            kind: torch.optim.Adam(self._leaves(kind), lr=rate, fused=True)
            for kind, rate in rates.items()
        }
        losses = {"value": self.value_loss, "policy": self.policy_loss}
        self._losses = {
            kind: CompiledOrEager(loss, "default") if compile else loss
            for kind, loss in losses.items()
        }

    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return mean actions, or these plus sigma times ``noise``, [T, E, A].

        Args:
            observation: [T, E, O].
            noise: Standard normal, [T, E, A]; None for the mean action.
        """
        with torch.no_grad():
            if self._generated is None:
                self._generated = network(self.policy, self.observation_size)
            weights = self._generated
            mean = torch.tanh(stacked_mlp(weights, observation.to(weights[0][0].device)))
        return mean if noise is None else mean + self.awr.sigma * noise.to(mean)

    def value_loss(self, value: Parameters, batch: Columns) -> Tensor:
        """Return the squared error against Monte-Carlo returns, [T].

        Args:
            value: Layers of the value function, [T, D] each.
            batch: observation [T, B, O], return_to_go [T, B].
        """
        predicted = stacked_mlp(
            network(value, self.observation_size), batch["observation"]
        ).squeeze(-1)
        return value_loss(predicted, batch["return_to_go"])

    def policy_loss(self, policy: Parameters, batch: Columns) -> Tensor:
        """Return the regression onto actions, weighted by their ``advantage``, [T].

        Args:
            policy: Layers of the policy, [T, D] each.
            batch: observation [T, B, O], action [T, B, A], advantage [T, B].
        """
        mean = torch.tanh(stacked_mlp(network(policy, self.observation_size), batch["observation"]))
        weight = advantage_weights(batch["advantage"], self.awr)
        return regression_loss(mean, batch["action"], weight, self.awr.sigma)

    def update(self, kind: str, batch: Columns, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step of Adam on the ``value`` or ``policy`` loss; return every task's, [T]."""
        layers = self.value if kind == "value" else self.policy
        with torch.enable_grad():
            loss = self._losses[kind](layers, batch)
            # The sum over tasks: row t of each gradient is task t's own.
            gradients = torch.autograd.grad(loss.sum(), self._leaves(kind))
        for leaf, gradient in zip(self._leaves(kind), gradients, strict=True):
            # Adam's fused kernel walks memory in order; see ``MetaModule.apply_gradients``.
            leaf.grad = gradient.contiguous()
        self.optimizers[kind].step()
        self._generated = None
        return {f"{kind}_loss": loss.detach()}

    @torch.no_grad()
    def prepare(self, kind: str, replay: OnlineReplay) -> dict[str, Tensor]:
        """Return the ``advantage`` of every row before the policy's updates, [T, N]."""
        # Only the policy's loss has advantages, and they stay the same while it is updated: the
        # value function has had its updates before.
        if kind != "policy":
            return {}
        value, parts = network(self.value, self.observation_size), []
        # In pieces: the hidden layers of the whole replay would take far more memory than a
        # batch's.
        for first in range(0, replay.filled, ROWS_AT_ONCE):
            rows = slice(first, min(first + ROWS_AT_ONCE, replay.filled))
            part = {name: replay.columns[name][:, rows] for name in self.fields}
            returns = part["return_to_go"]
            if self.bootstrap_advantage:
                end = stacked_mlp(value, part["terminal_observation"]).squeeze(-1)
                returns = bootstrapped_return(returns, end, part["terminal_discount"])
            parts.append(returns - stacked_mlp(value, part["observation"]).squeeze(-1))
        return {"advantage": torch.cat(parts, dim=1)}

    def state_dict(self) -> dict[str, Any]:
        """Parameters and Adam's state of both networks."""
        return {
            kind: {
                "parameters": [leaf.detach().cpu().clone() for leaf in self._leaves(kind)],
                "optimizer": deepcopy(optimizer.state_dict()),
            }
            for kind, optimizer in self.optimizers.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        for kind, optimizer in self.optimizers.items():
            for leaf, saved in zip(self._leaves(kind), state[kind]["parameters"], strict=True):
                # In place: Adam holds these very tensors.
                leaf.data.copy_(saved)
            optimizer.load_state_dict(state[kind]["optimizer"])
        self._generated = None

    def _leaves(self, kind: str) -> list[Tensor]:
        layers = self.value if kind == "value" else self.policy
        return [part for layer in layers for part in _parts(layer)]


def network(layers: Parameters, observation_size: int) -> Layers:
    """Return weight [T, in, out] and bias [T, 1, out] of every layer of T networks."""
    result, size = [], observation_size
    for layer in layers:
        if isinstance(layer, LayerParameters):
            matrix: Any = layer.matrix  # [T, D, Z]; never a ProbedMatrix here
            theta = torch.baddbmm(layer.vector[..., None], matrix, layer.latent[..., None])
            layer = theta.squeeze(-1)
        weight, bias = split_theta(layer, size)
        result.append((weight, bias[:, None]))
        size = weight.shape[-1]
    return result


def _parts(layer: Tensor | LayerParameters) -> list[Tensor]:
    """Return the learned tensors of a layer."""
    if isinstance(layer, Tensor):
        return [layer]
    matrix: Any = layer.matrix  # never a ProbedMatrix here
    return [layer.latent, matrix, layer.vector]


def _copies(layers: Parameters) -> list[Tensor | LayerParameters]:
    """Return copies that gradients are taken in."""
    result: list[Tensor | LayerParameters] = []
    for layer in layers:
        parts = [
            part.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            for part in _parts(layer)
        ]
        result.append(parts[0] if isinstance(layer, Tensor) else LayerParameters(*parts))
    return result
