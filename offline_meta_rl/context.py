"""Contexts, the data that a method adapts on, from recorded episodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict


def context_from_episodes(
    episodes: Sequence[Mapping[str, Any]], *, discount: float = 0.99
) -> TensorDict:
    """Return a context from whole recorded episodes of one task.

    Args:
        episodes: each with observation [H, O], action [H, A], reward [H], in order of time, as
            arrays or tensors; the lengths H may differ.
        discount: that the method was trained with.

    Returns:
        observation [B, O], action [B, A], return_to_go [B], float32; B is the sum of lengths.
        A return to go ends with its episode: R_t = r_t + discount R_{t+1}.

    Raises:
        ValueError: no episodes, a key that is missing, or lengths that differ within an episode.
    """
    if not episodes:
        raise ValueError("Expected at least one episode to make a context, found none.")
    parts: dict[str, list[NDArray[np.float32]]] = {
        "observation": [],
        "action": [],
        "return_to_go": [],
    }
    for index, episode in enumerate(episodes):
        missing = {"observation", "action", "reward"} - set(episode)
        if missing:
            raise ValueError(
                f"Episode {index} lacks {sorted(missing)}; expected observation, action, reward."
            )
        arrays = {name: np.asarray(episode[name]) for name in ("observation", "action", "reward")}
        reward = arrays["reward"].astype(np.float64).reshape(-1)
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1 or len(reward) != lengths["reward"]:
            raise ValueError(
                f"Episode {index} has parts of different lengths {lengths}; expected one row for "
                "each step in all of them."
            )
        returns = np.zeros(len(reward))
        following = 0.0
        for step in reversed(range(len(reward))):
            following = returns[step] = reward[step] + discount * following
        parts["observation"].append(arrays["observation"].astype(np.float32))
        parts["action"].append(arrays["action"].astype(np.float32))
        parts["return_to_go"].append(returns.astype(np.float32))
    tensors = {name: torch.from_numpy(np.concatenate(rows)) for name, rows in parts.items()}
    return TensorDict(tensors, batch_size=[len(tensors["return_to_go"])])
