"""Transitions between cached beliefs, as conservative Q-learning trains on them.

Shapes: M meta-trajectories, K episodes of each, H steps of the longest, S = K (H + 1) positions, Z
belief size, A action size.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from datamodules.sampling.stitch import Bools, Rows

CACHED = ("belief", "action", "reward", "mask")


class TransitionIndex(NamedTuple):
    """Where transitions begin and end, and which of them end the value.

    Attributes:
        source: Flat positions of [M, S] where transitions begin.
        target: Flat positions where they end.
        terminal: Whether nothing of value follows.
    """

    source: Rows
    target: Rows
    terminal: Bools


def index_transitions(mask: Bools, num_episodes: int, *, across: bool) -> TransitionIndex:
    """Return the transitions of meta-trajectories.

    Args:
        mask: True where there is an observation, [M, S]; the padding of an episode is at its end.
        num_episodes: K.
        across: Add the transitions from the last observation of an episode to the first of the
            next (no reward, action 0), and let the value go on through them, so that only the last
            step of a meta-trajectory is terminal; else the value ends with every episode.
    """
    positions = mask.shape[1]
    valid = np.flatnonzero(mask)
    starts = valid % (positions // num_episodes) == 0
    last_of_episode = np.append(starts[1:], True)
    last_of_all = np.append(np.diff(valid // positions) > 0, True)
    # A pair across episodes is a transition only with ``across``; one across meta-trajectories
    # never is.
    chosen = ~starts[1:] | (across & ~last_of_all[:-1])
    # Judged at the target: nothing of value follows the last observation.
    terminal = (last_of_all if across else last_of_episode)[1:]
    return TransitionIndex(valid[:-1][chosen], valid[1:][chosen], terminal[chosen])


class BeliefTransitions:
    """Serves random transitions between cached beliefs.

    Args:
        cache: TensorDict [M, S]: belief [M, S, Z], action [M, S, A] and reward [M, S] that led to
            it, mask [M, S].
        num_episodes: K.
        across: See ``index_transitions``.

    Raises:
        ValueError: A belief is not finite, or a field is missing.
    """

    def __init__(self, cache: TensorDict, num_episodes: int, *, across: bool) -> None:
        missing = [name for name in CACHED if name not in cache.keys()]
        if missing:
            raise ValueError(
                f"Cached beliefs: expected belief, action, reward and mask, {missing} are missing."
            )
        mask = cache["mask"].cpu().numpy()
        if not torch.isfinite(cache["belief"][cache["mask"]]).all():
            raise ValueError(
                "Cached beliefs: expected finite numbers, found NaN or infinity. The filter has "
                "diverged: train it with a smaller learning rate."
            )
        index = index_transitions(mask, num_episodes, across=across)
        self.device = cache["belief"].device
        self._belief, self._action, self._reward = (
            cache[name].flatten(0, 1) for name in ("belief", "action", "reward")
        )
        self._source, self._target, self._terminal = (self._there(part) for part in index)

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self._source)

    def gather(self, number: Rows) -> TensorDict:
        """Return transitions by number [...], as a TensorDict of that batch size.

        It holds what conservative Q-learning takes, with beliefs as observations: observation
        [..., Z], action [..., A], reward [...], next_observation [..., Z] and terminated [...]
        bool.
        """
        flat = self._there(number.reshape(-1))
        source, target = self._source[flat], self._target[flat]
        columns = {
            "observation": self._belief[source],
            "action": self._action[target],
            "reward": self._reward[target],
            "next_observation": self._belief[target],
            "terminated": self._terminal[flat],
        }
        shaped = {
            key: value.view(*number.shape, *value.shape[1:]) for key, value in columns.items()
        }
        return TensorDict(shaped, batch_size=number.shape, device=self.device)

    def _there(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
