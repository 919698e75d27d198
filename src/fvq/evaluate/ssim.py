"""Structural similarity (Wang et al. 2004) in the conventions in use: float64 (B,) of images uint8 (B, 3, H, W).

Two windows, 11x11 pixels Gaussian and 7x7 uniform, each with the data range of 8-bit values and with twice that range,
which published code gives by mistake: it says 2, as for values in [-1, 1], of values in [0, 1]. The larger range
multiplies both constants of the formula by four and so lifts the figure, by about 0.1 at 25 dB. Every form is the mean
over the channels and over the window's positions inside the image. Images must be no smaller than the window.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_GAUSSIAN = [math.exp(-(offset**2) / (2 * 1.5**2)) for offset in range(-5, 6)]
_UNIFORM = [1.0] * 7
# Values of a step, for each thread: few enough that they stay in a processor's cache between the passes over them.
_STEP_VALUES = 2**18
_CUDA_STEPS = 64  # of these at once on a GPU, which takes about 1 GB


def ssim_g11(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Gaussian window of 11x11 pixels with sigma 1.5, data range 255: the definition of Wang et al."""
    return _similarity(original, reconstruction, _GAUSSIAN, data_range=255)


def ssim_g11_dr2(original: Tensor, reconstruction: Tensor) -> Tensor:
    """As ``ssim_g11`` with data range 510: FVQ's released code, piq.ssim(data_range=2.) on values from 0 to 1.

    As there, images of 384 pixels and more (the smaller side) are first averaged over squares of round(side / 256)
    pixels; halves go to the even number.
    """
    factor = max(1, round(min(original.shape[2:]) / 256))
    if factor > 1:
        original, reconstruction = (avg_pool2d(images.double(), factor) for images in (original, reconstruction))
    return _similarity(original, reconstruction, _GAUSSIAN, data_range=510)


def ssim_u7(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Uniform window of 7x7 pixels, sample covariance (division by 48), data range 255: scikit-image's default."""
    return _similarity(original, reconstruction, _UNIFORM, data_range=255, covariance_factor=49 / 48)


def ssim_u7_dr2(original: Tensor, reconstruction: Tensor) -> Tensor:
    """As ``ssim_u7`` with data range 510: LlamaGen's structural_similarity(data_range=2.0) on values from 0 to 1."""
    return _similarity(original, reconstruction, _UNIFORM, data_range=510, covariance_factor=49 / 48)


def _similarity(
    original: Tensor,
    reconstruction: Tensor,
    window: Sequence[float],
    *,
    data_range: float,
    covariance_factor: float = 1,
) -> Tensor:
    """The mean of the similarity's map, of images (B, 3, H, W) of grey levels; ``window`` along each side."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    count, channels, height, width = original.shape
    values = _STEP_VALUES * (_CUDA_STEPS if original.is_cuda else torch.get_num_threads())
    step = max(1, values // (height * width))
    parts = []
    for x_mhw, y_mhw in zip(original.flatten(0, 1).split(step), reconstruction.flatten(0, 1).split(step), strict=True):
        # With u = x + y and v = x - y both factors are 1 minus what differs, so that little is left to cancel.
        u_mhw, v_mhw = x_mhw.double() + y_mhw, x_mhw.double() - y_mhw
        u_square, u_variance = _squared_mean_and_variance(u_mhw, window)
        v_square, v_variance = _squared_mean_and_variance(v_mhw, window)
        luminance = 1 - 2 * v_square / (u_square + v_square + 2 * c1)
        structure = 1 - 2 * v_variance / (u_variance + v_variance + 2 * c2 / covariance_factor)
        parts.append((luminance * structure).mean(dim=(1, 2)))
    return torch.cat(parts).view(count, channels).mean(dim=1)


def _squared_mean_and_variance(values_mhw: Tensor, window: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Of the values under the window at its positions inside (M, H, W), weighted: each (M, H - k + 1, W - k + 1)."""
    square = _weighted_mean(values_mhw, window).square_()
    return square, _weighted_mean(values_mhw.square(), window).sub_(square)


def _weighted_mean(values_mhw: Tensor, window: Sequence[float]) -> Tensor:
    # Shifted sums, not conv2d: several times faster here, float64 at little cost, and never in TF32 on a GPU.
    total = math.fsum(window)
    for dim in (1, 2):
        size = values_mhw.shape[dim] - len(window) + 1
        sums = values_mhw.narrow(dim, 0, size) * (window[0] / total)
        for shift, weight in enumerate(window[1:], start=1):
            sums.add_(values_mhw.narrow(dim, shift, size), alpha=weight / total)
        values_mhw = sums
    return values_mhw
