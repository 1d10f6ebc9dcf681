"""Beliefs and reconstructions of many meta-trajectories, with the noise drawn here.

Shapes: M meta-trajectories of S positions, Z belief size, E noise size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from offline_meta_rl.networks.filter.model import VariationalFilter

ROWS = 250
"""Meta-trajectories that are filtered together, so that their images fit in memory."""


def draw_noise(model: VariationalFilter, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the filter's noise for meta-trajectories, [M, S, E], on the generator's device.

    Args:
        model: The filter; says how much noise a position takes.
        mask: True where a position of the meta-trajectories is real, [M, S]; gives the shape.
        generator: Source of randomness.
    """
    return torch.randn(*mask.shape, model.noise_size, generator=generator, device=generator.device)


@torch.no_grad()
def beliefs_of(
    model: VariationalFilter, batch: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Return the belief at every position of meta-trajectories, [M, S, Z], on the filter's device.

    Args:
        model: The filter.
        batch: observation, action, reward, mask of M meta-trajectories; see
            ``VariationalFilter.beliefs``.
        generator: Source of the filter's noise.
    """
    device = device_of(model)
    parts = []
    for first in range(0, len(batch["mask"]), ROWS):
        part = {name: batch[name][first : first + ROWS].to(device) for name in FIELDS}
        # Drawn on the generator's device and moved, so that the beliefs have the same noise
        # wherever the filter runs.
        noise = draw_noise(model, part["mask"], generator).to(device)
        parts.append(model.beliefs(part, noise))
    return torch.cat(parts)


@torch.no_grad()
def reconstructions_of(
    model: VariationalFilter, batch: Mapping[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Return the decoded images of meta-trajectories, [M, S, C, h, w] uint8.

    Args:
        model: The filter.
        batch: observation, action, reward, mask of M meta-trajectories.
        generator: Source of the filter's noise.
    """
    device = device_of(model)
    part = {name: batch[name].to(device) for name in FIELDS}
    return model.reconstructions(part, draw_noise(model, part["mask"], generator).to(device))


def device_of(model: VariationalFilter) -> torch.device:
    """Return the device that a filter's parameters are on."""
    return next(model.parameters()).device


FIELDS = ("observation", "action", "reward", "mask")
