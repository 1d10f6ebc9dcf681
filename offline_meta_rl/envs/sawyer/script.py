"""Opens a drawer of ``TwoDrawerSawyer`` by its handle: above it, down behind it, back with it."""

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array
from offline_meta_rl.envs.sawyer.scene import DRAWER_X, DRAWER_Y
from offline_meta_rl.envs.sawyer.simulator import REACH

BAR_Y = DRAWER_Y - 0.16
"""Of the handle's bar when the drawer is closed; the drawer's front is 0.06 m behind it."""
HOOK_Y = BAR_Y + 0.027
HOVER_Z = 0.175
"""Height of the hand at which the finger tips pass over the bar."""
HOOK_Z = 0.115
PULL_Z = 0.135
"""Below this height the fingers hold the bar."""
WIDE_OPEN = 0.14
"""Metres of opening at which the script lets go: the drawer ends at 0.16."""
OFF_X, OFF_Y = 0.035, 0.012
"""Farther off than this, the fingers do not go down: they would miss the bar or hit it."""


def hook(state: NDArray[np.floating], target: NDArray[np.int64]) -> Array:
    """Return the script's actions [N, 3] in [-1, 1], without noise.

    Args:
        state: ``TwoDrawerSawyerEngine.state()``, [N, 5].
        target: Index of the drawer to open, [N].
    """
    x, y, z = state[:, 0], state[:, 1], state[:, 2]
    opening = state[np.arange(len(state)), 3 + target]
    ahead_x = np.asarray(DRAWER_X)[target] - x
    ahead_y = HOOK_Y - opening - y
    over = (np.abs(ahead_x) < OFF_X) & (np.abs(ahead_y) < OFF_Y)
    # Low and in line with the handle means that the bar is hooked: the fingers came down behind it.
    behind = (np.abs(ahead_x) < OFF_X) & (z < PULL_Z)
    height = np.where(over | behind, HOOK_Z, HOVER_Z)
    pull = np.where(opening < WIDE_OPEN, -REACH, 0.0)
    way = np.stack([ahead_x, np.where(behind, pull, ahead_y), height - z], axis=1)
    return np.clip(way / REACH, -1.0, 1.0)
