"""Contexts, the data that a method adapts on: made from recorded episodes, and checked."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from offline_meta_rl.data.blocks import Numbers

KINDS = {"task": torch.int64, "terminated": torch.bool}
"""Of the fields that are no float32."""


def context_from_episodes(
    episodes: Sequence[Mapping[str, Numbers]], *, discount: float = 0.99
) -> TensorDict:
    """Return a context from whole recorded episodes of one task.

    Args:
        episodes: Each with observation [H, O], action [H, A], reward [H] and, for methods that need
            it, next_observation [H, O], in order of time, as arrays or tensors; the lengths H may
            differ.
        discount: Discount per step that the method was trained with.

    Returns:
        observation [B, O], action [B, A], reward [B], return_to_go [B], and next_observation [B, O]
        if every episode has it, float32; B is the sum of lengths. A return to go ends with its
        episode: R_t = r_t + discount R_{t+1}.

    Raises:
        ValueError: No episodes, a key that is missing, or lengths that differ within an episode.
    """
    if not episodes:
        raise ValueError("Expected at least one episode to make a context, found none.")
    names = ["observation", "action", "reward"]
    if all("next_observation" in episode for episode in episodes):
        names.append("next_observation")
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*names, "return_to_go")}
    for index, episode in enumerate(episodes):
        missing = set(names) - set(episode)
        if missing:
            raise ValueError(
                f"Episode {index} lacks {sorted(missing)}; expected observation, action, reward."
            )
        arrays = {name: np.asarray(episode[name]) for name in names}
        reward = arrays["reward"] = arrays["reward"].astype(np.float64).reshape(-1)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"Episode {index} has parts of different lengths {lengths}; expected one row for "
                "each step in all of them."
            )
        arrays["return_to_go"] = _returns_to_go(reward, discount)
        for name, array in arrays.items():
            parts[name].append(array.astype(np.float32))
    tensors = {name: torch.from_numpy(np.concatenate(rows)) for name, rows in parts.items()}
    return TensorDict(tensors, batch_size=[len(tensors["return_to_go"])])


def _returns_to_go(reward: NDArray[np.float64], discount: float) -> NDArray[np.float64]:
    returns = np.zeros(len(reward))
    following = 0.0
    for step in reversed(range(len(reward))):
        # In double precision, as the returns that the method was trained on.
        following = returns[step] = reward[step] + discount * following
    return returns


def check_context(
    context: Mapping[str, Tensor] | TensorDict, fields: Sequence[str], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the fields of a context of one task, checked against a method's sizes.

    Args:
        context: The fields, [B, ...], and any others, which are left out.
        fields: Names of the fields that the method needs.
        sizes: The method's settings, ``observation_size`` and ``action_size`` among them.

    Raises:
        ValueError: Names the field, what was expected and what was found.
    """
    checked: dict[str, Tensor] = {}
    for name in fields:
        if name not in context.keys():
            raise ValueError(
                f"The context needs the fields {', '.join(fields)}; {name} is missing, found "
                f"{', '.join(sorted(context.keys()))}."
            )
        size = next((key for key in ("observation", "action") if name.endswith(key)), None)
        shape = () if size is None else (sizes[f"{size}_size"],)
        kind = KINDS.get(name, torch.float32)
        # Lists and arrays are welcome: a context often comes from a robot's log.
        value = torch.as_tensor(context[name], dtype=kind)
        if value.shape[1:] != shape or value.ndim != 1 + len(shape) or not len(value):
            raise ValueError(
                f"Expected {name} of the context to have shape "
                f"[{', '.join(['B', *map(str, shape)])}], found {list(value.shape)}."
            )
        if not torch.isfinite(value).all():
            row = int((~torch.isfinite(value)).nonzero()[0, 0])
            raise ValueError(f"{name} of the context holds NaN or inf, first in row {row}.")
        checked[name] = value
    lengths = {name: len(value) for name, value in checked.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Expected fields of one length in the context, found {lengths}.")
    return checked
