"""Returns to go from rewards and ends alone, step by step: a check of what others computed."""

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-3
ROWS = 2**16  # summed at a time


def backward_returns(
    reward: NDArray[np.floating], end: NDArray[np.bool_], discount: float
) -> NDArray[np.float64]:
    """Return R_t = r_t + discount * R_{t+1}, [N], in double precision.

    Args:
        reward: [N], rows in time order.
        end: [N], the last row of every episode; R starts again from 0 there.
        discount: Discount per step.
    """
    result = np.empty(len(reward))
    carry = 0.0
    for stop in range(len(reward), 0, -ROWS):
        start = max(0, stop - ROWS)
        # Python's own numbers: adding single NumPy numbers takes twice as long.
        values: list[float] = reward[start:stop].astype(np.float64).tolist()
        last = end[start:stop].tolist()
        for row in reversed(range(len(values))):
            carry = values[row] if last[row] else values[row] + discount * carry
            values[row] = carry
        result[start:stop] = values
    return result


def disagreement(found: NDArray[np.floating], expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows in which two columns of returns differ by more than rounding."""
    scale = np.maximum(1.0, np.abs(expected))
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(~(np.abs(found - expected) <= TOLERANCE * scale))
