"""What is done to images before they are measured: centre crops and JPEG compression, as published protocols have them.

Records of orientation (EXIF) are ignored, as in all the published evaluations.
"""

import io
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import get_sampling
from torch import Tensor

from fvq.data.crops import center_crop_adm, center_crop_plain
from fvq.data.decoding import decode_rgb
from fvq.data.records import map_in_threads
from fvq.runtime.errors import UserError

_SUBSAMPLING = "4:2:0"  # Pillow's own choice, and so that of whoever calls ``Image.save``
_SAMPLING_420 = 2  # what ``get_sampling`` calls it


@dataclass(frozen=True)
class Preparation:
    """How images become those that are measured; without arguments they are taken as stored.

    FVQ's released code measures rFID on ``Preparation(256, "plain", 75)`` of the photographs, and saves its
    reconstructions as JPEG of that size and quality: ``keep_jpeg`` takes these as they are
    (https://github.com/yfChang-cv/FVQ, eval_fid_release.py, crop_image.py).
    """

    size: int | None = None
    """Side of the centre square, pixels."""
    crop: Literal["adm", "plain"] = "adm"
    """How it is cut: ``center_crop_adm``, which scales the shorter side to it, or ``center_crop_plain``."""
    jpeg_quality: int | None = None
    """The (cropped) image is written as JPEG of this quality, with Pillow's usual subsampling 4:2:0, and read again."""
    keep_jpeg: bool = False
    """JPEG files that have this quality, subsampling and (where one is given) size already are only decoded."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"the size of a crop must be at least 1 pixel, not {self.size}")
        if self.size is None and self.crop == "plain":
            raise UserError("a plain centre crop needs a size")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"a JPEG quality must lie in 1 to 100, not {self.jpeg_quality}")

    def uncompressed(self) -> Self:
        """The crop alone."""
        return replace(self, jpeg_quality=None, keep_jpeg=False)

    def describe(self) -> str:
        """What is done, in the words of a figure's protocol."""
        if self.size is None:
            words = "as stored"
        elif self.crop == "adm":
            words = f"centre square at {self.size} pixels (ADM)"
        else:
            words = f"centre crop of {self.size} pixels without scaling, black around smaller images"
        if self.jpeg_quality is not None:
            words += f", JPEG quality {self.jpeg_quality} {_SUBSAMPLING}"
            words += " (files that are so already, as they are)" if self.keep_jpeg else ""
        return words


AS_STORED = Preparation()


def prepare_image(image: Image.Image, preparation: Preparation) -> NDArray[np.uint8]:
    """An RGB image prepared, uint8 (H, W, 3)."""
    if preparation.size is not None:
        crop = center_crop_adm if preparation.crop == "adm" else center_crop_plain
        image = crop(image, preparation.size)
    if preparation.jpeg_quality is not None:
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=preparation.jpeg_quality, subsampling=_SUBSAMPLING)
        image = Image.open(buffer)
    return np.asarray(image)


def prepare_encoded(encoded: bytes, preparation: Preparation) -> NDArray[np.uint8]:
    """An image file's content decoded by ``decode_rgb`` and prepared, uint8 (H, W, 3).

    Raises:
        ValueError: as ``decode_rgb``.
    """
    image = decode_rgb(encoded, turn_by_exif=False)
    if preparation.jpeg_quality is not None and preparation.keep_jpeg and _is_so_already(encoded, preparation):
        return np.asarray(image)
    return prepare_image(image, preparation)


def prepare_batch(images: Tensor, preparation: Preparation) -> Tensor:
    """Images uint8 (B, 3, H, W) prepared, on the CPU."""
    if preparation == AS_STORED:
        return images
    images_bhwc = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    prepared = map_in_threads(lambda image_hwc: prepare_image(Image.fromarray(image_hwc), preparation), images_bhwc)
    return torch.from_numpy(np.stack(list(prepared))).permute(0, 3, 1, 2)


def _is_so_already(encoded: bytes, preparation: Preparation) -> bool:
    with Image.open(io.BytesIO(encoded)) as image:
        return (
            image.format == "JPEG"
            and (preparation.size is None or image.size == (preparation.size, preparation.size))
            and get_sampling(image) == _SAMPLING_420
            and image.quantization == _quantization(preparation.jpeg_quality or 0)  # type: ignore[attr-defined]
        )


@cache
def _quantization(jpeg_quality: int) -> dict[int, list[int]]:
    """The quantization tables that Pillow writes for a quality; files hold these and not the quality itself."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "jpeg", quality=jpeg_quality, subsampling=_SUBSAMPLING)
    with Image.open(buffer) as image:
        return image.quantization  # type: ignore[attr-defined]
