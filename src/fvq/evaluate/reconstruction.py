"""Error of reconstructed images, one figure an image. All on 8-bit values, as they are stored."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fvq.evaluate.images import check_images, in_batches
from fvq.evaluate.lpips_network import load_lpips_network
from fvq.evaluate.pretrained import ALEXNET_FILE, PretrainedFile, find_pretrained
from fvq.runtime.errors import UserError
from fvq.runtime.progress import track

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
_WINDOW = 11


def reconstruction_errors(
    original: Tensor, reconstruction: Tensor, *, lpips_alex: PerceptualDistance | None, batch_size: int = 128
) -> dict[str, Tensor]:
    """``mse``, ``psnr_rgb``, ``ssim_g11`` and, given its network, ``lpips_alex``: float64 (N,) each, of images uint8
    (N, 3, H, W).

    Raises:
        UserError: wrong types or shapes, sets that do not pair, or images below 11 pixels.
    """
    check_images(original, "originals")
    check_images(reconstruction, "reconstructions")
    if original.shape != reconstruction.shape:
        raise UserError(
            f"reconstructions: have the shape {tuple(reconstruction.shape)}, and the originals {tuple(original.shape)}"
        )
    measures: dict[str, PerceptualDistance] = {"mse": mse, "psnr_rgb": psnr_rgb, "ssim_g11": ssim_g11}
    if lpips_alex is not None:
        measures["lpips_alex"] = lpips_alex
    parts: dict[str, list[Tensor]] = {name: [] for name in measures}
    with track("reconstruction errors", len(original)) as advance:
        for pair in zip(in_batches(original, batch_size), in_batches(reconstruction, batch_size), strict=True):
            for name, measure in measures.items():
                parts[name].append(measure(*pair).double().cpu())
            advance(len(pair[0]))
    return {name: torch.cat(values) for name, values in parts.items()}


def mse(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error, float64 (B,), of images uint8 (B, 3, H, W), on values scaled to 0 to 1.

    On values scaled to -1 to 1, as the models see them, it is four times as large.
    """
    return _squared_levels(original, reconstruction) / 255**2


def psnr_rgb(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 (B,), of images uint8 (B, 3, H, W): all three channels, peak 255.

    An exact image would be at infinity; it counts as if a single value were off by one level.
    """
    one_level = 1 / math.prod(original.shape[1:])
    return 10 * torch.log10(255**2 / _squared_levels(original, reconstruction).clamp(min=one_level))


def ssim_g11(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity, float64 (B,), of images uint8 (B, 3, H, W): Wang et al. 2004.

    Gaussian window of 11x11 pixels with sigma 1.5, data range 255, per channel; the mean over the channels and the
    window's positions inside the image (no padding). UserError for images below 11 pixels.
    """
    if min(original.shape[2:]) < _WINDOW:
        raise UserError(
            f"ssim_g11: images must have at least 11x11 pixels, not {original.shape[2]}x{original.shape[3]}"
        )
    offsets = torch.arange(_WINDOW, device=original.device) - _WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window /= window.sum()

    def weighted(values_n1hw: Tensor) -> Tensor:
        return conv2d(conv2d(values_n1hw, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    # About mid-grey, so that little cancels in the variances.
    x, y = (images.float().flatten(0, 1).unsqueeze(1) - 128 for images in (original, reconstruction))
    mean_x, mean_y = weighted(x), weighted(y)
    variances = weighted(x * x) - mean_x**2 + weighted(y * y) - mean_y**2
    covariance = weighted(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 128, mean_y + 128
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).double().view(len(original), -1).mean(dim=1)


def load_lpips_alex(
    path: Path | str | None = None,
    *,
    parameter: str = "evaluate_tokenizer.lpips_weights",
    file: PretrainedFile = ALEXNET_FILE,
) -> PerceptualDistance | None:
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018) as a function of two batches uint8 (B, 3, H, W) to float32 (B,).

    The trunk is torchvision's file at ``path`` or in one of the usual folders (see ``find_pretrained``), None where it
    is in none of them; the linear heads come with the lpips package.

    Raises:
        UserError: ``path`` is given and nothing is there, or the file is another one.
    """
    found = find_pretrained(file, path, parameter)
    if found is None:
        return None
    network = load_lpips_network("alex", found)

    @torch.inference_mode()
    def distance(original: Tensor, reconstruction: Tensor) -> Tensor:
        values: Tensor = network(original.float() / 127.5 - 1, reconstruction.float() / 127.5 - 1)
        return values.flatten()

    return distance


def _squared_levels(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared difference in grey levels, float64 (B,)."""
    return (original.double() - reconstruction.double()).square().mean(dim=(1, 2, 3))
