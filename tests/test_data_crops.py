"""The three crops, against torchvision and a plain restatement of the published random crop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as vision

from fvq.data.crops import center_crop_adm, center_crop_plain, random_crop


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def published_random_crop(image, size, side, top, left):
    """guided-diffusion's random_crop_arr with its three random whole numbers given."""
    while min(image.size) >= 2 * side:
        image = image.resize(tuple(length // 2 for length in image.size), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize(tuple(round(length * scale) for length in image.size), Image.Resampling.BICUBIC)
    return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize("width,height", [(8, 8), (100, 37), (33, 90), (5, 7), (9, 8), (3000, 9)])
def test_adm_crop_is_the_centre_square_of_the_asked_size(width, height):
    assert center_crop_adm(noise(width, height), 8).size == (8, 8)


def test_adm_crop_shows_the_centre_at_the_right_scale():
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, 32:96] = 255  # exactly the centre square
    assert np.asarray(center_crop_adm(Image.fromarray(stripes), 16)).min() >= 250
    unscaled = np.asarray(noise(20, 16))
    np.testing.assert_array_equal(np.asarray(center_crop_adm(Image.fromarray(unscaled), 16)), unscaled[:, 2:18])


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("height", [3, 4, 7, 8, 9, 10, 11, 12, 13, 40])
def test_plain_crop_is_torchvisions(size, height):
    for width in (2, 5, 8, 9, 11, 14, 23):
        image = noise(width, height)
        expected = vision.center_crop(image, [size, size])
        np.testing.assert_array_equal(np.asarray(center_crop_plain(image, size)), np.asarray(expected))


def nth_of(count, number):
    """A draw in the middle of those that choose ``number`` out of ``count``."""
    return (number + 0.5) / count


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(5, 150),
    height=st.integers(5, 150),
    size=st.integers(4, 24),
    least=st.floats(0.3, 0.8),
    most=st.floats(0.8, 1),
    data=st.data(),
)
def test_random_crop_is_the_published_one(width, height, size, least, most, data):
    shortest, longest = math.ceil(size / most), math.ceil(size / least)
    side = data.draw(st.integers(shortest, longest))
    image = noise(width, height)
    scaled_width, scaled_height = image.size
    while min(scaled_width, scaled_height) >= 2 * side:
        scaled_width, scaled_height = scaled_width // 2, scaled_height // 2
    scale = side / min(scaled_width, scaled_height)
    tops, lefts = round(scaled_height * scale) - size + 1, round(scaled_width * scale) - size + 1
    top, left = data.draw(st.integers(0, tops - 1)), data.draw(st.integers(0, lefts - 1))
    draws = nth_of(longest - shortest + 1, side - shortest), nth_of(tops, top), nth_of(lefts, left)
    found = np.asarray(random_crop(image, size, least, most, draws))
    np.testing.assert_array_equal(found, published_random_crop(image, size, side, top, left))


def test_draws_reach_both_ends_and_no_further():
    image = noise(50, 40)
    last = 1 - 2**-53  # the largest float64 that torch.rand gives
    np.testing.assert_array_equal(
        np.asarray(random_crop(image, 16, 0.8, 1.0, (0.0, 0.0, 0.0))), published_random_crop(image, 16, 16, 0, 0)
    )
    # 16 / 0.8 = 20, and 25 × 20 pixels leave 9 and 4 pixels of play
    np.testing.assert_array_equal(
        np.asarray(random_crop(image, 16, 0.8, 1.0, (last, last, last))), published_random_crop(image, 16, 20, 4, 9)
    )


def test_shares_of_one_move_the_square_along_the_longer_side_alone():
    pixels = np.asarray(noise(12, 8))
    draws = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    crops = {np.asarray(random_crop(Image.fromarray(pixels), 8, 1, 1, triple)).tobytes() for triple in draws}
    assert crops == {pixels[:, left : left + 8].tobytes() for left in range(5)}
