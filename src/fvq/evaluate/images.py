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


def check_same_size(images: Tensor, what: str, others: Tensor, other_what: str) -> None:
    """UserError unless both sets hold images of the same height and width."""
    if images.shape[2:] != others.shape[2:]:
        sizes = " and ".join("x".join(str(side) for side in one.shape[2:]) for one in (images, others))
        raise UserError(f"{what} and {other_what}: images differ in size, {sizes} pixels")


def in_batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Consecutive views of up to ``batch_size`` rows of a tensor (N, ...)."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
