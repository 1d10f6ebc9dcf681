"""Encoders and decoders of images: sizes, and images that do not fit."""

import pytest
import torch

from offline_meta_rl.networks.filter.images import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    DenseDecoder,
    DenseEncoder,
    to_bytes,
    to_unit,
)


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 128, 64), (1, 16, 16), (3, 32, 48)])
def test_convolutional_sizes(shape: tuple[int, int, int]) -> None:
    encoder, decoder = ConvolutionalEncoder(shape, 2), ConvolutionalDecoder(5, shape, 2)
    features = encoder(torch.rand(3, *shape))
    assert features.shape == (3, encoder.feature_size) == (3, 16)
    assert decoder(torch.randn(3, 5)).shape == (3, *shape)


def test_dense_sizes() -> None:
    encoder, decoder = DenseEncoder((3, 5, 4), 7), DenseDecoder(6, (3, 5, 4), 7)
    assert encoder(torch.rand(2, 3, 5, 4)).shape == (2, encoder.feature_size) == (2, 7)
    assert decoder(torch.randn(2, 6)).shape == (2, 3, 5, 4)


def test_layers_for_64_pixels_are_those_of_meld() -> None:
    depth = 4
    encoder, decoder = (
        ConvolutionalEncoder((3, 64, 64), depth),
        ConvolutionalDecoder(9, (3, 64, 64), depth),
    )
    found = [
        [(tuple(p.shape[:2]), p.shape[2]) for p in network.parameters() if p.ndim == 4]
        for network in (encoder, decoder)
    ]
    d1, d2, d4, d8 = (depth * factor for factor in (1, 2, 4, 8))
    # out and in channels, then in and out channels, with the side of the kernel
    down = [((d1, 3), 5), ((d2, d1), 3), ((d4, d2), 3), ((d8, d4), 3), ((d8, d8), 4)]
    up = [((9, d8), 4), ((d8, d4), 3), ((d4, d2), 3), ((d2, d1), 3), ((d1, 3), 5)]
    assert found == [down, up]


@pytest.mark.parametrize("shape", [(3, 60, 64), (3, 6, 6), (3, 30, 30)])
def test_images_that_do_not_fit(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"Images of {shape[1]} x {shape[2]} do not fit"):
        ConvolutionalEncoder(shape, 2)


def test_bytes_come_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(to_unit(images, torch.zeros(()))), images)
    assert to_bytes(torch.tensor([-1.0, 2.0])).tolist() == [0, 255]
