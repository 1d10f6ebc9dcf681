"""Pictures of drawers and a hand, for any number of environments at once.

Every shape is a rectangle whose edges are anti-aliased: a pixel takes the share of the colour that
the rectangle covers of it, so that 16 pixels a side show positions to a fraction of a pixel.
Shapes: N environments, D drawers. Lengths are in half widths of the image.
"""

import numpy as np
from numpy.typing import NDArray

from offline_meta_rl.envs.base import Array

FRONT = 0.4375
"""y of closed handles; like all places at rest the middle of a pixel of 16, so that it is crisp."""
HALF_DRAWER = 0.1875
HALF_HANDLE = 0.0625
HALF_HAND = 0.125

FLOOR = (24, 24, 32)
CABINET = (84, 84, 92)
DRAWER = (40, 128, 48)
HANDLE = (240, 200, 40)
HAND = (80, 130, 255)

Span = tuple[Array, Array]


def draw_scene(hand: Array, drawers: Array, opening: Array, size: int) -> NDArray[np.uint8]:
    """Draw the scene from above, the cabinet at the top.

    Args:
        hand: Position of every hand, [N, 2].
        drawers: x of their middles, [D].
        opening: How far each drawer is pulled out, [N, D].
        size: Pixels of a side.

    Returns:
        Images [N, 3, size, size].
    """
    every = np.ones(len(hand))
    image = np.empty((len(hand), 3, size, size), dtype=np.float32)
    # Later shapes cover earlier ones, from the floor up to the hand.
    image[:] = np.asarray(FLOOR, dtype=np.float32)[:, None, None]
    _paint(image, (-every, every), ((FRONT + HALF_HANDLE) * every, every), CABINET)
    for index, x in enumerate(drawers):
        sides = ((x - HALF_DRAWER) * every, (x + HALF_DRAWER) * every)
        handle = FRONT - opening[:, index]
        _paint(image, sides, (handle, (FRONT + HALF_HANDLE) * every), DRAWER)
        _paint(image, sides, (handle - HALF_HANDLE, handle + HALF_HANDLE), HANDLE)
    x, y = hand[:, 0], hand[:, 1]
    _paint(image, (x - HALF_HAND, x + HALF_HAND), (y - HALF_HAND, y + HALF_HAND), HAND)
    # Round; the cast alone would cut off.
    return (image + 0.5).astype(np.uint8)


def _paint(image: NDArray[np.float32], x: Span, y: Span, colour: tuple[int, int, int]) -> None:
    """Paint a rectangle of every image [N, 3, size, size]; spans are (low, high), [N] each."""
    size = image.shape[-1]
    across = _covered(x, size)
    # Rows count from the top, y from the bottom.
    down = _covered((-y[1], -y[0]), size)
    share = (down[:, :, None] * across[:, None, :])[:, None]
    image += share * (np.asarray(colour, dtype=np.float32)[:, None, None] - image)


def _covered(span: Span, size: int) -> NDArray[np.float32]:
    """Return the share of each of ``size`` pixels from -1 to 1 that lies in spans [N]."""
    edge = np.linspace(-1.0, 1.0, size + 1)
    low = np.maximum(span[0][:, None], edge[:-1])
    high = np.minimum(span[1][:, None], edge[1:])
    return (np.maximum(high - low, 0.0) * (size / 2)).astype(np.float32)
