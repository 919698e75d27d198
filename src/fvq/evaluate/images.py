"""What a set of images must look like before anything is measured on it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fvq.runtime.errors import UserError


def check_images(images: Tensor, what: str, *, at_least: int = 1) -> None:
    """UserError that names ``what`` unless ``images`` is uint8 (N, 3, H, W) with N of ``at_least``."""
    if images.dtype != torch.uint8:
        raise UserError(f"{what}: images must be uint8, not {str(images.dtype).removeprefix('torch.')}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"{what}: images must have the shape (N, 3, height, width), not {tuple(images.shape)}")
    if len(images) < at_least:
        raise UserError(f"{what}: at least {at_least} images are needed, and there are {len(images)}")


def check_enough_images(count: int, what: str) -> None:
    """UserError that names ``what`` for fewer than the 2 images that a covariance needs."""
    if count < 2:
        raise UserError(f"{what}: at least 2 images are needed, and there {'is 1' if count else 'is none'}")


def in_batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Consecutive views of up to ``batch_size`` rows of a tensor (N, ...)."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
