"""Error of reconstructed images, one figure an image, under names that say by which convention. All on 8-bit values.

Decoders' outputs are rounded to the nearest of the 256 levels before (``to_uint8``), as FVQ's and LlamaGen's code does.
Code that truncates, by ``((x + 1) / 2 * 255).to(uint8)``, makes images darker by half a level on average and does not
give back the very images that went in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fvq.evaluate.images import check_images
from fvq.evaluate.networks.lpips_network import Trunk, load_lpips
from fvq.evaluate.networks.pretrained import ALEXNET_FILE, VGG16_FILE, PretrainedFile, find_pretrained
from fvq.evaluate.ssim import ssim_g11, ssim_g11_dr2, ssim_u7, ssim_u7_dr2
from fvq.runtime.errors import UserError

Measure = Callable[[Tensor, Tensor], Tensor]
"""Of two batches uint8 (B, 3, H, W): originals, reconstructions. Gives float64 (B,), on the same device."""

MEASURES = {
    "mse": "mean squared error of values from 0 to 1",
    "psnr_rgb": "PSNR in dB over red, green and blue, peak 255 (LlamaGen's)",
    "psnr_y": "PSNR in dB of luma from 16 to 235 against a peak of 255 (FVQ's released code; 1.32 dB above full range)",
    "ssim_g11": "SSIM, Gaussian window of 11x11 pixels, data range 255 (Wang et al. 2004)",
    "ssim_g11_dr2": "SSIM, Gaussian window of 11x11 pixels, data range doubled (FVQ's released code)",
    "ssim_u7": "SSIM, uniform window of 7x7 pixels, data range 255 (scikit-image's default)",
    "ssim_u7_dr2": "SSIM, uniform window of 7x7 pixels, data range doubled (LlamaGen's)",
    "lpips_alex": "LPIPS v0.1 on AlexNet (FVQ's released code)",
    "lpips_vgg": "LPIPS v0.1 on VGG16 (the loss that tokenizers train with)",
}
"""Every measure by name, with its convention. A set's figure is the mean over its images."""

LPIPS_TRUNKS: dict[str, tuple[Trunk, PretrainedFile]] = {
    "lpips_alex": ("alex", ALEXNET_FILE),
    "lpips_vgg": ("vgg", VGG16_FILE),
}
"""The measures that need weights, with their trunk and torchvision's file of it."""
_LEAST_SIDES = {
    **dict.fromkeys(("ssim_g11", "ssim_g11_dr2"), 11),
    **dict.fromkeys(("ssim_u7", "ssim_u7_dr2"), 7),
    "lpips_alex": 31,  # below, a layer of the trunk has no output
    "lpips_vgg": 16,
}


def build_measures(
    names: Sequence[str], *, weights: Mapping[str, Path | str | None], device: torch.device | str
) -> tuple[dict[str, Measure], dict[str, str]]:
    """The measures of ``names``, in that order; and of those that cannot be had, why ("absent: no alexnet-….pth").

    Only LPIPS can be absent, where its trunk's file of torchvision is in none of the usual folders (see
    ``find_pretrained``); ``weights`` may give the file's path under the measure's name. LPIPS is computed
    on ``device``, the others where the batches are.

    Raises:
        UserError: an unknown name; a path in ``weights`` where nothing is, or another file.
    """
    for name in names:
        if name not in MEASURES:
            raise UserError(f"{name}: no such measure; there are {', '.join(MEASURES)}")
    for name in weights:
        if name not in LPIPS_TRUNKS:
            raise UserError(f"{name}: a measure without weights; {' and '.join(LPIPS_TRUNKS)} have them")
    plain = (mse, psnr_rgb, psnr_y, ssim_g11, ssim_g11_dr2, ssim_u7, ssim_u7_dr2)
    known: dict[str, Measure] = {measure.__name__: measure for measure in plain}
    measures: dict[str, Measure] = {}
    absent: dict[str, str] = {}
    for name in names:
        if name in known:
            measures[name] = known[name]
            continue
        trunk, file = LPIPS_TRUNKS[name]
        path = find_pretrained(file, weights.get(name), f"weights of {name}")
        if path is None:
            absent[name] = f"absent: no {file.name}"
        else:
            measures[name] = load_lpips(trunk, path, device)
    return measures, absent


def measure_batch(measures: Mapping[str, Measure], original: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
    """Each measure of ``build_measures`` on a batch uint8 (B, 3, H, W) and its reconstructions: float64 (B,), CPU.

    Raises:
        UserError: wrong types or shapes, batches that do not pair, or images too small for a measure.
    """
    check_images(original, "originals")
    check_images(reconstruction, "reconstructions")
    if len(original) != len(reconstruction):
        raise UserError(f"reconstructions: {len(reconstruction)} images, and the originals are {len(original)}")
    height, width = original.shape[2:]
    if reconstruction.shape != original.shape:
        raise UserError(
            f"reconstructions: images have {reconstruction.shape[2]}x{reconstruction.shape[3]} pixels, "
            f"and the originals {height}x{width}"
        )
    for name in measures:
        least = _LEAST_SIDES.get(name, 1)
        if min(height, width) < least:
            raise UserError(f"{name}: images must have at least {least}x{least} pixels, not {height}x{width}")
    return {name: measure(original, reconstruction).cpu() for name, measure in measures.items()}


def mse(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error, float64 (B,), of images uint8 (B, 3, H, W), on values scaled to 0 to 1.

    On values scaled to -1 to 1, as the models see them, it is four times as large.
    """
    return _mean_square(_difference(original, reconstruction)) / 255**2


def psnr_rgb(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 (B,), of images uint8 (B, 3, H, W): all three channels, peak 255.

    An exact image would be at infinity; it counts as if a single value were off by one level.
    """
    one_level = 1 / math.prod(original.shape[1:])
    return 10 * torch.log10(255**2 / _mean_square(_difference(original, reconstruction)).clamp(min=one_level))


def psnr_y(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of luma in dB, float64 (B,), of images uint8 (B, 3, H, W): FVQ's released code.

    That is pyiqa's psnr(test_y_channel=True, color_space="ycbcr"): luma by ITU-R BT.601, not rounded, plus 1e-8 in the
    mean squared error, so that an exact image has 80 dB. Luma lies between 16/255 and 235/255 and the peak is 1, which
    alone makes the figure 20·log10(255/219) = 1.32 dB larger than that of luma in its full range: grey images have
    1.32 dB more than in ``psnr_rgb``. Errors of colour do not count, which adds to it in colour images. Do not compare
    the two.
    """
    red, green, blue = _difference(original, reconstruction).unbind(dim=1)
    luma = (65.481 * red + 128.553 * green + 24.966 * blue) / 255**2
    return -10 * torch.log10(_mean_square(luma) + 1e-8)


def _difference(original: Tensor, reconstruction: Tensor) -> Tensor:
    return original.float() - reconstruction.float()


def _mean_square(difference: Tensor) -> Tensor:
    """Over all but the first axis: float64 (B,). Grey levels have squares that float32 holds exactly."""
    return difference.flatten(1).square().mean(dim=1, dtype=torch.float64)
