"""What turns images into features, and the batches that stream through it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fvq.evaluate.images import check_images
from fvq.runtime.errors import UserError
from fvq.runtime.progress import track

INCEPTION_2015 = "inception-2015"


class Extractor(Protocol):
    """A network with features to compare and class posteriors to score."""

    @property
    def name(self) -> str:
        """Names the figures: ``photos`` gives ``fd_photos``."""

    @property
    def feature_dimension(self) -> int:
        """Length of a feature."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights' file; ``not saved`` where there is none."""

    @property
    def resize(self) -> str:
        """How images are brought to the network's size."""

    def features_and_posteriors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and class posteriors (B, C), both float32, of images uint8 (B, 3, H, W)."""


@dataclass(frozen=True)
class Features:
    """What an extractor says of N images, in their order, in main memory."""

    features: Tensor
    """float32 (N, D)"""
    posteriors: Tensor
    """float32 (N, C), rows sum to 1"""


def extract(extractor: Extractor, batches: Iterable[Tensor], *, count: int, description: str = "features") -> Features:
    """Features of all images in ``batches`` (each uint8 (B, 3, H, W), see ``in_batches``), ``count`` in all.

    Raises:
        UserError: images of a wrong type or shape, another number of them than ``count``, or non-finite features.
    """
    features: list[Tensor] = []
    posteriors: list[Tensor] = []
    done = 0
    with track(f"{extractor.name} {description}", count) as advance:
        for images in batches:
            check_images(images, description)
            batch_features, batch_posteriors = extractor.features_and_posteriors(images)
            features.append(batch_features.cpu())
            posteriors.append(batch_posteriors.cpu())
            done += len(images)
            advance(len(images))
    if done == 0 or done != count:
        raise UserError(f"{description}: {count} images are expected, and there are {done}")
    result = Features(torch.cat(features), torch.cat(posteriors))
    if not (result.features.isfinite().all() and result.posteriors.isfinite().all()):
        raise UserError(f"{description}: the extractor {extractor.name} gives values that are not finite")
    return result
