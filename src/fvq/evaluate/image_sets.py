"""Sets of images, handed over batch by batch: in memory, or on disk in any of the usual forms."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq
from torch import Tensor

from fvq.data.manifest import ImageManifest
from fvq.data.open import open_images
from fvq.data.originals.tars import compression_of
from fvq.evaluate.images import check_images, in_batches
from fvq.evaluate.preparation import AS_STORED, Preparation
from fvq.evaluate.stored_images import (
    ArchiveImages,
    FolderImages,
    ManifestImages,
    ParquetImages,
    TarImages,
    check_range,
)
from fvq.runtime.errors import UserError
from fvq.runtime.parquet import KEY, unreadable_as_user_errors

FORMS = (
    "an npz archive with arr_0, a folder of images, an uncompressed .tar of images, or a Parquet file: an image table, "
    "a manifest, or any with a column image"
)


class ImageSet(Protocol):
    """Images of one size in a fixed order: as an archive or a table stores them, of files that of ``image_order``."""

    name: str
    """As the user named it: the path."""
    height: int
    """Of every image handed over, pixels."""
    width: int
    preparation: Preparation
    """What was done to the images; of a manifest its own crop too."""

    @property
    def names(self) -> Sequence[str] | None:
        """The images' paths within a folder or tar, their sources in a manifest or image table; None elsewhere."""
        ...

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of what the images follow from; a preparation is not part of it.

        It is computed once, when first asked for: from the file's bytes; of a folder from its images' bytes and their
        paths within it; of a manifest from its crop and the hashes that it holds; of a tensor from shape and numbers.

        Raises:
            UserError: a file is gone or damaged. The images of an npz archive are compared with its checksum.
        """
        ...

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Tensor]:
        """The images from ``start`` to ``stop`` as uint8 (B, 3, H, W), B ``batch_size`` but for the last.

        The memory format of what comes from disk is ``torch.channels_last``, as images are stored. Files are opened
        anew each time; a few batches are in memory at once, made ahead on other threads.

        Raises:
            UserError: an image that is damaged, or not of the set's height and width.
            ValueError: ``start`` and ``stop`` do not lie in the set in this order, or ``batch_size`` is below 1.
        """
        ...


def open_image_set(path: Path | str, preparation: Preparation = AS_STORED) -> ImageSet:
    """The set of images at ``path``; its first image is read, for the height and width.

    Forms:

    - an npz archive: ``arr_0``, uint8 (n, H, W, 3), compressed or not;
    - a folder: all images in it and its subfolders, but those whose names or folders' names begin with a dot;
    - an uncompressed tar: the same;
    - a Parquet file: fvq's image table, or any other whose column ``image`` holds encoded images or, as Hugging Face's
      ``datasets`` writes it, structs with ``bytes``;
    - fvq's Parquet manifest. It says how its images are cropped; a preparation with a size must say the same.

    Images are converted to RGB by ``fvq.data.decoding.decode_rgb``; their records of orientation (EXIF) are ignored but
    by a manifest that says otherwise.

    Raises:
        UserError: nothing at the path, none of these, no images, an archive whose images are not uint8 with the
            channels last, a damaged file, a manifest with another crop than the preparation's.
    """
    path = Path(path)
    if path.is_dir():
        return FolderImages(path, preparation)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz":
        return ArchiveImages(path, preparation)
    if path.suffix.lower() == ".parquet":
        return _open_parquet(path, preparation)
    compression = compression_of(path)
    if compression == "zip":
        raise UserError(f"{path}: a zip is read only as an npz archive, under the suffix .npz; unpack one of images")
    if compression is not None:
        raise UserError(
            f"{path}: compressed ({compression}), so that no image can be read alone; a tar works once decompressed, "
            "or unpacked into a folder"
        )
    if path.suffix.lower() == ".tar":
        return TarImages(path, preparation)
    raise UserError(f"{path}: should be {FORMS}")


def open_for_pairs(path: Path | str, preparation: Preparation) -> tuple[ImageSet, ImageSet]:
    """The set at ``path`` twice: uncompressed, for errors of reconstructions, and prepared, for features.

    Both are one object where the preparation does not compress. Raises as ``open_image_set``.
    """
    plain = open_image_set(path, preparation.uncompressed())
    return plain, plain if preparation == preparation.uncompressed() else open_image_set(path, preparation)


class TensorImages:
    """Images in memory, uint8 (N, 3, H, W), as an ``ImageSet``; batches are views of them."""

    preparation = AS_STORED
    names = None

    def __init__(self, images: Tensor, name: str) -> None:
        check_images(images, name, at_least=1)
        self.name = name
        self.height, self.width = images.shape[2:]
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def digest(self) -> str:
        """As ``ImageSet``."""
        sha256 = hashlib.sha256(repr(tuple(self._images.shape)).encode())
        for images in in_batches(self._images, 256):
            sha256.update(images.cpu().contiguous().numpy().data)
        return sha256.hexdigest()

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Tensor]:
        """As ``ImageSet``."""
        check_range(self.name, len(self), start, stop, batch_size)
        return in_batches(self._images[start:stop], batch_size)


def _open_parquet(path: Path, preparation: Preparation) -> ImageSet:
    with unreadable_as_user_errors(path):
        schema = pq.read_schema(path)
    if KEY in (schema.metadata or {}):
        opened = open_images(path)
        if isinstance(opened, ImageManifest):
            return ManifestImages(path, opened, preparation)
        return ParquetImages(path, preparation, opened.sources)
    return ParquetImages(path, preparation)
