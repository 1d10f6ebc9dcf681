"""Returns to go from rewards and ends alone, step by step: a check of what others computed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-3


def backward_returns(
    reward: NDArray[np.floating], end: NDArray[np.bool_], discount: float
) -> NDArray[np.float64]:
    """Return R_t = r_t + discount * R_{t+1}, [N], in double precision.

    Args:
        reward: [N], rows in time order.
        end: [N], the last row of every episode; R starts again from 0 there.
        discount: per step.
    """
    result: list[float] = []
    carry = 0.0
    rewards: Sequence[float] = reward.astype(np.float64).tolist()
    for value, last in zip(reversed(rewards), reversed(end.tolist()), strict=True):
        carry = value if last else value + discount * carry
        result.append(carry)
    return np.asarray(result[::-1], dtype=np.float64)


def disagreement(found: NDArray[np.floating], expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows in which two columns of returns differ by more than rounding."""
    scale = np.maximum(1.0, np.abs(expected))
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(~(np.abs(found - expected) <= TOLERANCE * scale))
