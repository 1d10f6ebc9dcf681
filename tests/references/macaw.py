"""A slow MACAW outer step written from the paper's equations: one task at a time, plain autograd.

Every task forms its own weights, takes its inner gradient through W with a kept graph, and the
outer gradient goes back through that graph. Used to check the closed form and as comparator of the
benchmark. Shapes: B transitions of one task.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor, ...]  # (z, M, c); bias transform: (u, B, A, a); plain: (A, a)
Batch = Mapping[str, Tensor]


def weights(layer: Layer, in_features: int) -> tuple[Tensor, Tensor]:
    """W [in, out] and b [out] of theta = M z + c."""
    latent, matrix, vector = layer
    theta = matrix @ latent + vector
    out_features = theta.numel() // (in_features + 1)
    return theta[: in_features * out_features].view(in_features, out_features), theta[
        in_features * out_features :
    ]


def apply(layer: Layer, inputs: Tensor) -> Tensor:
    """One layer on [B, in]: generated, x A + a + u B, or x A + a."""
    if len(layer) == 4:
        latent, transform, weight, bias = layer
        return inputs @ weight + bias + latent @ transform
    weight, bias = weights(layer, inputs.shape[-1]) if len(layer) == 3 else layer
    return inputs @ weight + bias


def own_tensors(module: torch.nn.Module, kind: str) -> Layer:
    """The tensors of a layer of ``layer_kinds``, as views that autograd follows."""
    latent, matrix, vector = module.latent, module.matrix, module.vector
    if kind == "weight_transform":
        return latent, matrix, vector  # type: ignore[return-value]
    size = module.in_features * module.out_features  # type: ignore[operator]
    weight = vector[:size].view(module.in_features, module.out_features)  # type: ignore
    own = (weight, vector[size:])  # type: ignore[index]
    return own if kind == "plain" else (latent, matrix.T, *own)  # type: ignore[return-value]


def value(layers: Sequence[Layer], observation: Tensor) -> Tensor:
    """V(s), [B]."""
    hidden = observation
    for layer in layers[:-1]:
        hidden = torch.relu(apply(layer, hidden))
    return apply(layers[-1], hidden)[:, 0]


def policy(
    layers: Sequence[Layer], observation: Tensor, action: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Mean action [B, A], and the predicted advantage [B] where an action is given."""
    hidden = observation
    for layer in layers[:-3]:
        hidden = torch.relu(apply(layer, hidden))
    mean = torch.tanh(apply(layers[-3], hidden))
    if action is None:
        return mean, None
    head = torch.relu(apply(layers[-2], torch.cat([hidden, action], dim=-1)))
    return mean, apply(layers[-1], head)[:, 0]


def regression_weight(advantage: Tensor) -> Tensor:
    """Exp of the standardised advantage, at most 20."""
    standard = (advantage - advantage.mean()) / advantage.std()
    return torch.exp(standard).clamp(max=20.0)


def awr(mean: Tensor, action: Tensor, weight: Tensor, sigma: float = 0.2) -> Tensor:
    """Eq. 1 for a Gaussian of fixed sigma."""
    density = torch.distributions.Normal(mean, sigma)
    return -(weight * density.log_prob(action).sum(dim=-1)).mean()


def inner_step(
    layers: Sequence[Layer], loss: Tensor, step_sizes: Tensor, *, create_graph: bool = True
) -> list[Layer]:
    """One gradient step on z, M and c of every layer, keeping the graph."""
    flat = [tensor for layer in layers for tensor in layer]
    gradients = torch.autograd.grad(loss, flat, create_graph=create_graph, allow_unused=True)
    sizes = step_sizes.reshape(-1)
    moved = [
        tensor if gradient is None else tensor - size * gradient
        for tensor, gradient, size in zip(flat, gradients, sizes, strict=True)
    ]
    size = len(layers[0])
    return [tuple(moved[i : i + size]) for i in range(0, len(moved), size)]


def returns_of(layers: Sequence[Layer], batch: Batch) -> Tensor:
    """The Monte-Carlo returns, whatever the value function is."""
    return batch["return_to_go"]


def squared_error(estimate: Tensor, target: Tensor) -> Tensor:
    """Eq. 2."""
    return torch.square(estimate - target).mean()


def outer_loss(
    policy_layers: Sequence[Layer],
    value_layers: Sequence[Layer],
    policy_step_sizes: Tensor,
    value_step_sizes: Tensor,
    coefficient: Tensor,
    inner: Mapping[str, Tensor],
    outer: Mapping[str, Tensor],
    num_steps: int = 1,
    target: Callable[[Sequence[Layer], Batch], Tensor] = returns_of,
    error: Callable[[Tensor, Tensor], Tensor] = squared_error,
) -> tuple[Tensor, Tensor]:
    """Value loss (Eq. 5) and policy loss (Eq. 6) of one task after ``num_steps`` inner steps."""
    phi, theta = list(value_layers), list(policy_layers)
    observation, action = inner["observation"], inner["action"]
    for _ in range(num_steps):
        value_error = error(value(phi, observation), target(phi, inner).detach())
        phi = inner_step(phi, value_error, value_step_sizes)
        advantage = (target(phi, inner) - value(phi, observation)).detach()
        mean, predicted = policy(theta, observation, action)
        loss = awr(mean, action, regression_weight(advantage))
        loss = loss + coefficient * torch.square(predicted - advantage).mean()
        theta = inner_step(theta, loss, policy_step_sizes)
    observation, action = outer["observation"], outer["action"]
    estimate, returns = value(phi, observation), target(phi, outer).detach()
    value_loss = error(estimate, returns)
    mean, _ = policy(theta, observation, None)
    policy_loss = awr(mean, action, regression_weight((returns - estimate).detach()))
    return value_loss, policy_loss


def meta_gradient(
    module: torch.nn.Module,
    inner: Mapping[str, Tensor],
    outer: Mapping[str, Tensor],
    steps: int = 1,
    **variant: Callable[..., Tensor],
) -> dict[str, Tensor]:
    """Gradient of the mean outer loss over tasks ([T, B, ...] data), by parameter name."""
    names, tensors = zip(*module.named_parameters(), strict=True)
    policy_layers, value_layers = (
        [own_tensors(layer, stack.kind) for layer in stack]
        for stack in (module.policy, module.value)
    )
    num_tasks = len(inner["observation"])
    total = [torch.zeros_like(tensor) for tensor in tensors]
    for task in range(num_tasks):
        losses = outer_loss(
            policy_layers,
            value_layers,
            module.policy_log_step_sizes.exp(),  # type: ignore[attr-defined,operator]
            module.value_log_step_sizes.exp(),  # type: ignore[attr-defined,operator]
            module.log_advantage_coefficient.exp(),  # type: ignore[attr-defined,operator]
            {key: inner[key][task] for key in inner},
            {key: outer[key][task] for key in outer},
            steps,
            **variant,
        )
        loss = sum(losses) / num_tasks
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        for accumulated, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                accumulated += gradient
    return dict(zip(names, total, strict=True))


def random_batch(
    num_tasks: int, batch_size: int, observation_size: int, action_size: int, **like: torch.dtype
) -> dict[str, Tensor]:
    """Random data [T, B]; returns of a size that advantages matter at."""
    scale = math.sqrt(10.0)
    return {
        "observation": torch.randn(num_tasks, batch_size, observation_size, **like),
        "action": torch.rand(num_tasks, batch_size, action_size, **like) * 2 - 1,
        "return_to_go": scale * torch.randn(num_tasks, batch_size, **like),
    }
