"""Adapted policies: those of all tasks as one batch, and one of them as a file.

    policy = method.adapt(context)              # an nn.Sequential of ordinary layers
    save_policy(policy, "policies/task_7", observation_size=20)

``policy.pt`` holds the state dict and the layers' sizes, ``policy.pt2`` the exported program, which
runs with PyTorch alone.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offline_meta_rl.networks.generated import split_theta

STATE_FILE = "policy.pt"
PROGRAM_FILE = "policy.pt2"
_LAYERS: dict[str, type[nn.Module]] = {"Linear": nn.Linear, "ReLU": nn.ReLU, "Tanh": nn.Tanh}


def save_policy(policy: nn.Sequential, folder: str | Path, observation_size: int) -> None:
    """Write an adapted policy as state dict and as exported program.

    Args:
        policy: Linear, ReLU and Tanh layers, as ``adapt`` returns them.
        folder: Folder to write ``policy.pt`` and ``policy.pt2`` to; made if it is missing.
        observation_size: O; the program takes observations [B, O] for any B >= 1.

    Raises:
        TypeError: Other layers.
        ValueError: An observation size that does not fit the first layer.
    """
    layers = _describe(policy)
    if layers[0][1:2] != [observation_size]:
        raise ValueError(
            f"The policy takes observations of size {layers[0][1]}, found observation_size="
            f"{observation_size}. Pass the size of the dataset that it was adapted on."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # A copy on the CPU: both files have to load on machines without an accelerator.
    cpu = _build(layers)
    cpu.load_state_dict({name: value.cpu() for name, value in policy.state_dict().items()})
    torch.save({"layers": layers, "state_dict": cpu.state_dict()}, target / STATE_FILE)
    # The example has 2 rows: torch.export takes a size of 1 for a constant.
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        cpu.eval().requires_grad_(False),
        (torch.zeros(2, observation_size),),
        dynamic_shapes=({0: batch},),
    )
    torch.export.save(program, target / PROGRAM_FILE)


def load_policy(path: str | Path) -> nn.Sequential:
    """Rebuild the policy of a ``policy.pt`` as ordinary layers.

    Raises:
        ValueError: Not such a file.
    """
    try:
        # weights_only: reading a file of a stranger must not run its code.
        saved = torch.load(path, map_location="cpu", weights_only=True)
        policy = _build(saved["layers"])
        policy.load_state_dict(saved["state_dict"])
    except (pickle.UnpicklingError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a saved policy: expected a {STATE_FILE} of save_policy. {error}"
        ) from error
    return policy.eval()


def _describe(policy: nn.Sequential) -> list[list[Any]]:
    """Return [name, input size, output size] of linear layers, [name] of others."""
    if not isinstance(policy, nn.Sequential) or not len(policy):
        raise TypeError(
            f"Expected an nn.Sequential as adapt returns, found {type(policy).__name__}."
        )
    layers: list[list[Any]] = []
    for module in policy:
        name = type(module).__name__
        if type(module) is not _LAYERS.get(name):
            raise TypeError(f"Expected layers of {sorted(_LAYERS)} in the policy, found {name}.")
        linear = isinstance(module, nn.Linear)
        layers.append([name, module.in_features, module.out_features] if linear else [name])
    return layers


def _build(layers: list[list[Any]]) -> nn.Sequential:
    return nn.Sequential(*(_LAYERS[name](*sizes) for name, *sizes in layers))


class BatchedPolicy(nn.Module):
    """The policies of T tasks with generated weights: what adaptation returns.

    Args:
        weights: Weights of every layer, [T, in, out] each.
        biases: Biases of every layer, [T, out] each.
        sigma: Standard deviation of the noise where actions are sampled, >= 0.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], *, sigma: float
    ) -> None:
        super().__init__()
        self.num_layers, self.sigma = len(weights), sigma
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight_{index}", weight.detach().clone())
            self.register_buffer(f"bias_{index}", bias.detach().clone())

    @classmethod
    def from_thetas(
        cls, thetas: Sequence[Tensor], observation_size: int, *, sigma: float
    ) -> "BatchedPolicy":
        """Build from generated layers.

        Args:
            thetas: Layers of body and action head, [T, D] each.
            observation_size: O.
            sigma: Standard deviation of the noise where actions are sampled, >= 0.
        """
        weights, biases, size = [], [], observation_size
        for theta in thetas:
            weight, bias = split_theta(theta, size)
            weights.append(weight)
            biases.append(bias)
            size = weight.shape[-1]
        return cls(weights, biases, sigma=sigma)

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}")

    @property
    def num_tasks(self) -> int:
        """T, how many tasks there are."""
        return len(self._layer(0)[0])

    def forward(self, observation: Tensor) -> Tensor:
        """Return mean actions: [T, E, O] -> [T, E, A] in (-1, 1)."""
        for index in range(self.num_layers):
            weight, bias = self._layer(index)
            observation = torch.baddbmm(bias[:, None], observation, weight)
            observation = observation.relu() if index < self.num_layers - 1 else observation.tanh()
        return observation

    def task(self, index: int) -> nn.Sequential:
        """Return the policy of one task as ordinary Linear, ReLU and Tanh layers.

        Args:
            index: Position of the task, 0 to T - 1.

        Returns:
            A network from observations [..., O] to mean actions [..., A] in (-1, 1).
        """
        modules: list[nn.Module] = []
        for layer in range(self.num_layers):
            weight, bias = (tensor[index] for tensor in self._layer(layer))
            linear_layer = nn.Linear(*weight.shape)
            # nn.Linear keeps its weight as [out, in].
            linear_layer.load_state_dict({"weight": weight.T, "bias": bias})
            modules += [linear_layer, nn.ReLU()]
        return nn.Sequential(*modules[:-1], nn.Tanh())
