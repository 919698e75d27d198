"""Sets of images on disk, larger than memory or not: archives, folders, tars and tables, read batch by batch."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fvq.data.manifest import ImageManifest
from fvq.data.originals.tars import Member, list_members
from fvq.data.records import map_in_threads
from fvq.evaluate.image_order import list_images_below, order_images
from fvq.evaluate.preparation import AS_STORED, Preparation, prepare_batch, prepare_encoded, prepare_image
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file
from fvq.runtime.npz import array_names, open_array
from fvq.runtime.parquet import column_type, unreadable_as_user_errors

_AHEAD = 2  # batches made before they are asked for
_PARQUET_ROWS = 16  # encoded images read at once
_PARQUET_BUFFER = 2**20  # bytes


class StoredImages(ABC):
    """What the sets on disk share: batches, made ahead, of images that all have the first one's size."""

    def __init__(self, path: Path, preparation: Preparation) -> None:
        self.name = str(path)
        self._path, self.preparation = path, preparation
        self.height, self.width = self._measure()

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def names(self) -> Sequence[str] | None:
        """As ``ImageSet``."""
        return None

    def _measure(self) -> tuple[int, int]:
        height, width, _ = next(self._images(0, 1, 1)).shape
        return height, width

    @abstractmethod
    def _images(self, start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        """Each image (H, W, 3), prepared; about ``batch_size`` may be decoded ahead."""

    @abstractmethod
    def _where(self, index: int) -> str:
        """What an error calls an image."""

    @cached_property
    def digest(self) -> str:
        """As ``ImageSet``."""
        return sha256_file(self._path)

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Tensor]:
        """As ``ImageSet``."""
        check_range(self.name, len(self), start, stop, batch_size)
        return _made_ahead(self._batches(start, stop, batch_size))

    def _batches(self, start: int, stop: int, batch_size: int) -> Iterator[Tensor]:
        images = self._images(start, stop, batch_size)
        for first in range(start, stop, batch_size):
            batch_bhwc = np.empty((min(batch_size, stop - first), self.height, self.width, 3), np.uint8)
            for place in range(len(batch_bhwc)):
                image_hwc = next(images, None)
                if image_hwc is None:
                    raise UserError(f"{self.name}: ends after {first + place} of its {len(self)} images")
                if image_hwc.shape != batch_bhwc.shape[1:]:
                    raise UserError(
                        f"{self._where(first + place)}: has {image_hwc.shape[1]}x{image_hwc.shape[0]} pixels, and "
                        f"{self._where(0)} has {self.width}x{self.height}; --size scales and crops all to one size"
                    )
                batch_bhwc[place] = image_hwc
            yield torch.from_numpy(batch_bhwc).permute(0, 3, 1, 2)

    def _decode(self, index: int, encoded: bytes) -> NDArray[np.uint8]:
        try:
            return prepare_encoded(encoded, self.preparation)
        except ValueError as error:
            raise UserError(f"{self._where(index)}: not a readable image ({error})") from error


class ArchiveImages(StoredImages):
    """``arr_0`` of an npz archive."""

    def __init__(self, path: Path, preparation: Preparation) -> None:
        names = array_names(path)
        if "arr_0" not in names and {"mu", "sigma"} <= set(names):
            raise UserError(f"{path}: holds statistics ({', '.join(names)}) and no images (arr_0)")
        self._array = open_array(path, "arr_0")
        _check_array(path, self._array.shape, self._array.dtype)
        height, width = self._array.shape[1:3]
        if preparation.crop == "plain" and preparation.size is not None and max(height, width) < preparation.size:
            raise UserError(
                f"{path}: images of {width}x{height} pixels are smaller than the crop of {preparation.size} pixels, "
                "which does not scale: black would be around them all"
            )
        super().__init__(path, preparation)

    def __len__(self) -> int:
        return self._array.shape[0]

    @cached_property
    def digest(self) -> str:
        return self._array.digest()

    def _images(self, start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        for chunk_bhwc in self._array.rows(start, stop, batch_size):
            if self.preparation == AS_STORED:
                yield from chunk_bhwc
            else:
                yield from map_in_threads(
                    lambda image_hwc: prepare_image(Image.fromarray(image_hwc), self.preparation), chunk_bhwc
                )

    def _where(self, index: int) -> str:
        return f"{self._path}: image {index}"


class FolderImages(StoredImages):
    """The images in a folder and below."""

    def __init__(self, path: Path, preparation: Preparation) -> None:
        self._names = list_images_below(path)
        super().__init__(path, preparation)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> Sequence[str]:
        """Paths within the folder."""
        return self._names

    @cached_property
    def digest(self) -> str:
        hashes = map_in_threads(lambda name: sha256_file(self._path / name), self._names)
        sha256 = hashlib.sha256()
        for name, digest in zip(self._names, hashes, strict=True):
            sha256.update(os.fsencode(name) + b"\0" + bytes.fromhex(digest))
        return sha256.hexdigest()

    def _images(self, start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        return map_in_threads(self._read, range(start, stop), batch_size)

    def _read(self, index: int) -> NDArray[np.uint8]:
        try:
            encoded = (self._path / self._names[index]).read_bytes()
        except OSError as error:
            raise UserError(f"{self._where(index)}: {error.strerror}") from error
        return self._decode(index, encoded)

    def _where(self, index: int) -> str:
        return str(self._path / self._names[index])


class TarImages(StoredImages):
    """The images in an uncompressed tar."""

    def __init__(self, path: Path, preparation: Preparation) -> None:
        members: dict[str, Member] = {}
        for member in list_members(path):
            name = PurePosixPath(member.name).as_posix()
            if members.setdefault(name, member) is not member:
                raise UserError(f"{path}: holds two files {name}")
        self._members = [members[name] for name in order_images(path, members)]
        super().__init__(path, preparation)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def names(self) -> Sequence[str]:
        """Paths within the tar."""
        return [member.name for member in self._members]

    def _images(self, start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        return map_in_threads(self._read, range(start, stop), batch_size)

    def _read(self, index: int) -> NDArray[np.uint8]:
        member = self._members[index]
        with self._path.open("rb") as file:
            file.seek(member.offset)
            return self._decode(index, file.read(member.length))

    def _where(self, index: int) -> str:
        return f"{self._path}: {self._members[index].name}"


class ParquetImages(StoredImages):
    """A Parquet file's column ``image``: encoded images, or structs with their ``bytes``. ``names`` may be known."""

    def __init__(self, path: Path, preparation: Preparation, names: Sequence[str] | None = None) -> None:
        self._names = names
        with unreadable_as_user_errors(path), _open_for_streaming(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        if "image" not in schema.names:
            raise UserError(f"{path}: lacks the column image; its columns: {', '.join(schema.names) or 'none'}")
        kind = column_type(path, schema, "image")
        self._struct = pa.types.is_struct(kind)
        content = kind.field("bytes").type if self._struct and kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
            raise UserError(
                f"{path}: column image holds {kind}, and encoded images or a struct with their bytes were expected"
            )
        self._group_starts = np.cumsum([0] + [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)])
        if not len(self):
            raise UserError(f"{path}: holds no images")
        super().__init__(path, preparation)

    def __len__(self) -> int:
        return int(self._group_starts[-1])

    @property
    def names(self) -> Sequence[str] | None:
        """As given."""
        return self._names

    def _images(self, start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        return map_in_threads(lambda row: self._decode(*row), self._encoded(start, stop), batch_size)

    def _encoded(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Row numbers and encoded images, read from the row group on in which ``start`` lies."""
        group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        row = int(self._group_starts[group])
        with unreadable_as_user_errors(self._path), _open_for_streaming(self._path) as file:
            batches = file.iter_batches(
                _PARQUET_ROWS,
                row_groups=range(group, len(self._group_starts) - 1),
                columns=["image.bytes" if self._struct else "image"],
            )
            for batch in batches:
                column = batch.column(0)
                for place in range(max(start - row, 0), min(stop - row, len(batch))):
                    encoded = column[place].as_py()
                    encoded = encoded["bytes"] if self._struct and encoded is not None else encoded
                    if encoded is None:
                        raise UserError(f"{self._where(row + place)}: holds no image bytes")
                    yield row + place, encoded
                row += len(batch)
                if row >= stop:
                    return

    def _where(self, index: int) -> str:
        return f"{self._path}: row {index}"


class ManifestImages(StoredImages):
    """The crops of the images that a manifest names."""

    def __init__(self, path: Path, manifest: ImageManifest, preparation: Preparation) -> None:
        stored, asked = (manifest.image_size, manifest.center_crop), (preparation.size, preparation.crop)
        if preparation.size is not None and asked != stored:
            raise UserError(
                f"{path}: its images are cropped to {stored[0]} pixels ({stored[1]}), and {asked[0]} ({asked[1]}) are "
                "asked for; a manifest's crop is chosen where the data are prepared"
            )
        self._manifest = manifest
        # Without keep_jpeg: crops of originals are no files.
        self._compression = Preparation(jpeg_quality=preparation.jpeg_quality)
        super().__init__(path, Preparation(*stored, preparation.jpeg_quality))

    def _measure(self) -> tuple[int, int]:
        return self._manifest.image_size, self._manifest.image_size

    def __len__(self) -> int:
        return len(self._manifest)

    @property
    def names(self) -> Sequence[str]:
        """Where the images came from."""
        return self._manifest.sources

    @cached_property
    def digest(self) -> str:
        info = self._manifest.info
        sha256 = hashlib.sha256(f"{info.center_crop} {info.image_size} {info.turn_by_exif}".encode())
        with unreadable_as_user_errors(self._path):
            for image_sha256 in pq.read_table(self._path, columns=["sha256"])["sha256"]:
                sha256.update(image_sha256.as_py())
        return sha256.hexdigest()

    def _images(self, start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
        for first in range(start, stop, batch_size):
            crops_bchw = self._manifest.images(range(first, min(first + batch_size, stop)))
            yield from prepare_batch(crops_bchw, self._compression).permute(0, 2, 3, 1).numpy()

    def _where(self, index: int) -> str:
        return f"{self._path}: row {index}"


def _open_for_streaming(path: Path) -> pq.ParquetFile:
    # Otherwise pyarrow loads a whole row group, and many a writer makes only one.
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=_PARQUET_BUFFER, page_checksum_verification=True)


def _check_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8:
        raise UserError(
            f"{path}: arr_0 is {dtype}, and images must be uint8, 0 to 255; whole numbers in that range become so by "
            "astype(numpy.uint8), numbers x from -1 to 1 by numpy.round((x + 1) * 127.5) before, those from 0 to 1 by "
            "numpy.round(x * 255) before"
        )
    if len(shape) == 4 and shape[1] == 3 != shape[3]:
        raise UserError(
            f"{path}: arr_0 has the channels first, {shape}, and uint8 (n, H, W, 3) was expected; "
            "numpy.transpose(arr_0, (0, 2, 3, 1)) gives it"
        )
    if len(shape) != 4 or shape[3] != 3:
        raise UserError(f"{path}: arr_0 must be uint8 (n, H, W, 3), not {shape}")
    if 0 in shape:
        raise UserError(f"{path}: holds no images, arr_0 is {shape}")


def check_range(name: str, count: int, start: int, stop: int, batch_size: int) -> None:
    """ValueError unless ``start`` and ``stop`` lie in a set of ``count`` images, in this order."""
    if not 0 <= start <= stop <= count or batch_size < 1:
        raise ValueError(f"{name}: images {start} to {stop} by {batch_size} of {count}")


def _made_ahead(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, each made on another thread while the reader is busy with those before."""
    pool = ThreadPoolExecutor(1)
    try:
        made = deque(pool.submit(next, batches, None) for _ in range(_AHEAD))
        while (batch := made.popleft().result()) is not None:
            made.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
