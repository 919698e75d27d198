"""A network of a few numbers with all that the evaluator asks of one."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from fvq.evaluate.image_sets import TensorImages
from fvq.evaluate.inception_score import torch_fidelity_groups
from fvq.evaluate.networks.extractor import Outputs
from fvq.evaluate.summary import Pass, Summary

COUNT = 90


class TinyExtractor:
    """Features, class scores and spatial features of the images' 2x2 mean colours."""

    resize = "means of quarters"

    def __init__(
        self,
        name: str = "tiny",
        *,
        dimension: int = 8,
        classes: int = 5,
        spatial: int = 6,
        weights_sha256: str = "ab" * 32,
        disturb: Callable[["TinyExtractor"], None] = lambda extractor: None,
    ) -> None:
        self.name, self.weights_sha256, self.feature_dimension = name, weights_sha256, dimension
        self.classes, self.spatial_dimension = classes, spatial
        self.seen = 0
        """The number of images so far."""
        self._disturb = disturb
        generator = torch.Generator().manual_seed(int(weights_sha256[:8], 16))
        self._weights = [4 * torch.randn(12, width, generator=generator) for width in (dimension, classes, spatial)]

    def __call__(self, images: torch.Tensor, *, spatial: bool = False) -> Outputs:
        """Outputs for images uint8 (B, 3, H, W)."""
        self.seen += len(images)
        self._disturb(self)
        colours = F.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        features, logits, places = (colours @ weight for weight in self._weights)
        return Outputs(
            features.sin(),
            logits if self.classes else None,
            places.cos() if spatial and self.spatial_dimension else None,
        )


def random_images(count: int, seed: int, size: int = 4) -> torch.Tensor:
    """Noise, uint8 (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def everything(extractor: TinyExtractor, count: int = COUNT, **changes: object) -> Pass:
    """A pass that asks for all that there is."""
    return replace(
        Pass(extractor, spatial=True, groups=torch_fidelity_groups(count), keep=True, batch_size=4), **changes
    )


def images(count: int = COUNT, seed: int = 0, name: str = "noise") -> TensorImages:
    return TensorImages(random_images(count, seed), name)


def digest(summary: Summary) -> str:
    """Of every bit of a summary."""
    sha256 = hashlib.sha256()
    for part in (summary.features, summary.spatial, summary.scores, {"kept": summary.kept}):
        for name, value in (part if isinstance(part, dict) else vars(part) if part else {}).items():
            array = None if value is None else torch.as_tensor(value).numpy()
            sha256.update(f"{name} {None if array is None else (array.dtype, array.shape)}".encode())
            sha256.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()
