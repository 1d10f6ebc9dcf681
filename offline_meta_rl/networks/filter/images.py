"""Image encoders and decoders of the variational filter.

Convolutional ones are those of MELD (Zhao et al., 2020) for 64 x 64 images, with fewer halvings for
smaller ones; dense ones are for very small images, where convolutions cost more than they bring.
Images are floating-point numbers from 0 to 1. Shapes: N images, C channels, h x w pixels.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from offline_meta_rl.networks.filter.gaussians import SLOPE

SMALLEST = 4
"""Pixels on the shorter side of the last feature map, which one layer turns into the feature."""


class ImageEncoder(nn.Module):
    """Turns images into features.

    Attributes:
        feature_size: Numbers in the feature of an image.
    """

    feature_size: int


class ConvolutionalEncoder(ImageEncoder):
    """5x5 to d channels, then 3x3 to 2 d, 4 d, ..., each halving; last a layer over the whole map.

    Args:
        image_shape: C, h, w.
        depth: d; 8 d is also the most channels, and the size of the feature.

    Raises:
        ValueError: The sides are no multiples of their number of halvings.
    """

    def __init__(self, image_shape: Sequence[int], depth: int) -> None:
        super().__init__()
        sizes, small = feature_maps(image_shape, depth)
        self.feature_size = 8 * depth
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(sizes)):
            kernel = 3 if number else 5
            layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2), rectifier()]
        layers += [nn.Conv2d(sizes[-1], self.feature_size, small), rectifier()]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """Return features, [N, C, h, w] -> [N, 8 d]."""
        features: Tensor = self.layers(images)
        return features


class ConvolutionalDecoder(nn.Module):
    """The encoder backwards, from a latent sample to the mean of every pixel.

    Args:
        input_size: L, numbers in a latent sample.
        image_shape: C, h, w.
        depth: d of the encoder.
    """

    def __init__(self, input_size: int, image_shape: Sequence[int], depth: int) -> None:
        super().__init__()
        sizes, small = feature_maps(image_shape, depth)
        channels = sizes[::-1]
        layers: list[nn.Module] = [
            nn.Unflatten(1, (input_size, 1, 1)),
            nn.ConvTranspose2d(input_size, channels[0], small),
        ]
        for number, (before, after) in enumerate(itertools.pairwise(channels)):
            kernel = 5 if number == len(channels) - 2 else 3
            halved = nn.ConvTranspose2d(
                # output_padding makes each layer double the sides exactly, as the encoder halved
                # them.
                before,
                after,
                kernel,
                stride=2,
                padding=kernel // 2,
                output_padding=1,
            )
            layers += [rectifier(), halved]
        self.layers = nn.Sequential(*layers)

    def forward(self, samples: Tensor) -> Tensor:
        """Return images, [N, L] -> [N, C, h, w]."""
        images: Tensor = self.layers(samples)
        return images


class DenseEncoder(ImageEncoder):
    """One hidden layer from all pixels to a feature.

    Args:
        image_shape: C, h, w.
        hidden_size: Width of the hidden layer.
    """

    def __init__(self, image_shape: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.feature_size = hidden_size
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(image_shape), hidden_size),
            rectifier(),
            nn.Linear(hidden_size, hidden_size),
            rectifier(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features, [N, C, h, w] -> [N, hidden]."""
        features: Tensor = self.layers(images)
        return features


class DenseDecoder(nn.Module):
    """One hidden layer from a latent sample to the mean of every pixel.

    Args:
        input_size: L, numbers in a latent sample.
        image_shape: C, h, w.
        hidden_size: Width of the hidden layer.
    """

    def __init__(self, input_size: int, image_shape: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_size, hidden_size),
            rectifier(),
            nn.Linear(hidden_size, math.prod(image_shape)),
            nn.Unflatten(1, tuple(image_shape)),
        )

    def forward(self, samples: Tensor) -> Tensor:
        """Return images, [N, L] -> [N, C, h, w]."""
        images: Tensor = self.layers(samples)
        return images


def rectifier() -> nn.Module:
    """Return a leaky rectifier."""
    return nn.LeakyReLU(SLOPE, inplace=True)


def feature_maps(image_shape: Sequence[int], depth: int) -> tuple[list[int], tuple[int, int]]:
    """Return channels of the images and of each halved map, and the sides of the last map.

    Raises:
        ValueError: The sides are no multiples of their number of halvings.
    """
    channels, height, width = image_shape
    halvings = max(0, int(math.log2(max(1, min(height, width) / SMALLEST))))
    if halvings < 1 or height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"Images of {height} x {width} do not fit the convolutional networks: expected sides "
            f"of at least {2 * SMALLEST} that can be halved until the shorter one is {SMALLEST}, "
            "such as 16 x 16 or 64 x 64. Render them in such a size, or set image_network to dense."
        )
    # Channels double with every halving, up to 8 d.
    sizes = [channels] + [depth * 2 ** min(number, 3) for number in range(halvings)]
    return sizes, (height // 2**halvings, width // 2**halvings)


def to_unit(observation: Tensor, like: Tensor) -> Tensor:
    """Turn uint8 images [..., C, h, w] into numbers from 0 to 1 of the dtype of ``like``."""
    # In place: the copy in floating point is the largest tensor of an update, and one is enough.
    return observation.to(like.dtype).mul_(1.0 / 255.0)


def to_bytes(images: Tensor) -> Tensor:
    """Turn images [..., C, h, w] in numbers around 0 to 1 into uint8."""
    # A decoder's mean is not bounded; without the clamp uint8 would wrap around.
    return images.detach().float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)


IMAGE_NETWORKS: dict[
    str,
    tuple[
        Callable[[Sequence[int], int], ImageEncoder],
        Callable[[int, Sequence[int], int], nn.Module],
    ],
] = {
    "convolutional": (ConvolutionalEncoder, ConvolutionalDecoder),
    "dense": (DenseEncoder, DenseDecoder),
}
"""What makes encoder (of image shape and size) and decoder (of sample size, shape and size)."""
