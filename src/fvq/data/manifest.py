"""The Parquet manifest of labelled images that stay where they are: which bytes of which file, and what they hold."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fvq.data.crops import center_crop_adm, center_crop_plain, random_crop
from fvq.data.decoding import decode_rgb
from fvq.data.image_table import CACHE_LIMIT
from fvq.data.records import in_chunks, map_in_threads
from fvq.data.views import cut_views, expand_views, parse_view
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.parquet import (
    check_columns,
    check_no_nulls,
    open_described,
    unreadable_as_user_errors,
    with_description,
)

FORMAT = "image_manifest"
COLUMNS = {
    "file": pa.string(),  # absolute, or relative to the folder that commands run in
    "offset": pa.int64(),  # of the image's first byte in the file
    "length": pa.int64(),  # bytes of the encoded image
    "label": pa.int32(),
    "source": pa.string(),  # where the image came from, for people
    "width": pa.int32(),  # pixels as stored, before any turning
    "height": pa.int32(),
    "mode": pa.string(),  # Pillow's: RGB, L, CMYK, …
    "orientation": pa.int8(),  # EXIF's, 1 where there is none
    "sha256": pa.binary(32),  # of the encoded bytes
}
CenterCrop = Literal["adm", "plain"]
_GROUP_ROWS = 2**16
_OPEN_FILES = 128  # archives that a manifest keeps open


class ManifestRecord(NamedTuple):
    """One image, by the columns of the manifest."""

    file: str
    offset: int
    length: int
    label: int
    source: str
    width: int
    height: int
    mode: str
    orientation: int
    sha256: bytes


class ManifestInfo(BaseModel):
    """What a manifest says of itself."""

    model_config = ConfigDict(strict=True)
    dataset: str
    classes: Annotated[list[str], Field(min_length=1)]
    image_size: Annotated[int, Field(gt=0)]
    center_crop: CenterCrop
    turn_by_exif: bool
    unreadable: list[str]
    """Sources of the images that were left out because they cannot be decoded."""


def write_manifest(path: Path, records: Iterable[ManifestRecord], info: ManifestInfo) -> None:
    """Write ``records`` straight to ``path``; callers rename it once it is whole.

    Raises:
        UserError: no record at all.
        OSError: from the writing, such as a full disk.
    """
    fields = [pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()]
    schema = with_description(pa.schema(fields), FORMAT, **info.model_dump())
    empty = True
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for chunk in in_chunks(records, _GROUP_ROWS):
            empty = False
            writer.write_table(pa.table(list(zip(*chunk, strict=True)), schema=schema))
    if empty:
        raise UserError(f"{info.dataset}: holds no readable image")


class ImageManifest:
    """Labelled images read from where they lie. Open it with ``ImageManifest.open``; workers get it by its path."""

    def __init__(self, path: Path, parquet: pq.ParquetFile, info: ManifestInfo, rows: pa.Table) -> None:
        self.path = path
        self.info = info
        self.dataset = info.dataset
        self.classes = tuple(info.classes)
        self.image_size = info.image_size
        self.labels = torch.from_numpy(rows["label"].to_numpy().astype(np.int64))
        """int64 (N,), indices into ``classes``."""
        self._parquet = parquet
        files = pa.concat_arrays(rows["file"].dictionary_encode().chunks)
        self._files: pa.StringArray = files.dictionary
        self._file_ids: NDArray[np.int32] = files.indices.to_numpy()
        self._shared = np.bincount(self._file_ids) > 1
        self._offsets: NDArray[np.int64] = rows["offset"].to_numpy()
        self._lengths: NDArray[np.int64] = rows["length"].to_numpy()
        self._decoded_bytes = 3 * int(rows["width"].to_numpy().astype(np.int64) @ rows["height"].to_numpy())
        self._open_file = lru_cache(_OPEN_FILES)(_OpenFile)
        self._originals: list[NDArray[np.uint8]] | None = None

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the manifest at ``path`` and check all but the images, whose files are not looked at before their turn.

        Raises:
            UserError: no such file, a damaged file, another format, a wrong or missing column, a null, a label without
                a class, a place or size that cannot be. It names the file, and the row (from 0) where there is one.
        """
        path = Path(path)
        parquet, entries = open_described(path, FORMAT)
        try:
            info = ManifestInfo.model_validate(entries)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, f"{path}: metadata")) from None
        check_columns(path, parquet.schema_arrow, COLUMNS)
        rows = _read_columns(path, parquet, ["file", "offset", "length", "label", "width", "height"])
        if not len(rows):
            raise UserError(f"{path}: holds no image")
        for name, least in {"offset": 0, "length": 1, "label": 0, "width": 1, "height": 1}.items():
            values = rows[name].to_numpy()
            wrong = np.flatnonzero((values < least) | ((name == "label") & (values >= len(info.classes))))
            if wrong.size:
                reason = f"lies outside the {len(info.classes)} classes" if name == "label" else "cannot be"
                raise UserError(f"{path}: row {wrong[0]}: {name} {values[wrong[0]]} {reason}")
        return cls(path, parquet, info, rows)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Callable[[Path], "ImageManifest"], tuple[Path]]:
        return type(self).open, (self.path,)

    @cached_property
    def sources(self) -> list[str]:
        """Where each image came from; read when first asked for."""
        return _read_columns(self.path, self._parquet, ["source"])["source"].to_pylist()

    @property
    def center_crop(self) -> CenterCrop:
        """The centre crop that figures and views without a scale are made with."""
        return self.info.center_crop

    @property
    def crop_note(self) -> str:
        """What a figure's protocol says of the centre crop."""
        return f", centre crop {self.info.center_crop} to {self.image_size}"

    @property
    def fits_in_memory(self) -> bool:
        """Whether the decoded originals are kept."""
        return self._decoded_bytes <= CACHE_LIMIT

    def images(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """The centre crops at ``indices`` (B,), or all, as uint8 (B, 3, S, S), by the crop that the manifest names.

        Up to a decoded size of 1 GiB all originals are decoded once and kept; beyond, images are decoded anew each
        time.

        Raises:
            UserError: an image whose file is gone, shorter or not readable; it names the row, the source and the file.
            IndexError: an index outside the manifest.
        """
        rows = range(len(self)) if indices is None else indices
        return self._crops(rows, lambda _, original: np.asarray(self._center_crop(original, self.image_size)))

    def views(self, indices: Tensor | Sequence[int], views: Sequence[str]) -> Tensor:
        """The ``views``, by name, of the images at ``indices`` (B,), as uint8 (B, V, 3, S, S).

        V counts the names that ``expand_views`` gives; ``View`` says what they mean. Each original is decoded once.
        Without a scale the manifest's own crop is taken; with one, the original is scaled, always as by
        ``center_crop_adm``. Originals are kept, and errors raised, as by ``images``.

        Raises:
            UserError: also a view that is unknown or named twice, or a scale that makes int(S·s) no more than S.
        """
        chosen = [parse_view(name) for name in expand_views(views)]
        return self._crops(
            indices,
            lambda _, original: cut_views(original, chosen, self.image_size, self._center_crop),
            count=(len(chosen),),
        )

    def random_crops(self, indices_b: Tensor | Sequence[int], draws_b3: Tensor, least: float, most: float) -> Tensor:
        """``random_crop`` of the images at ``indices_b`` with float64 ``draws_b3``, as uint8 (B, 3, S, S).

        Originals are kept, and errors raised, as by ``images``.
        """
        draws = draws_b3.tolist()
        return self._crops(
            indices_b,
            lambda place, original: np.asarray(random_crop(original, self.image_size, least, most, draws[place])),
        )

    def _center_crop(self, original: Image.Image, size: int) -> Image.Image:
        return {"adm": center_crop_adm, "plain": center_crop_plain}[self.info.center_crop](original, size)

    def _crops(
        self,
        indices: Tensor | Sequence[int],
        crop: Callable[[int, Image.Image], NDArray[np.uint8]],
        count: tuple[int, ...] = (),
    ) -> Tensor:
        """``crop`` (*count, S, S, 3) of (place in the batch, original) for each index, uint8 (B, *count, 3, S, S)."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device="cpu").tolist()
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise IndexError(f"{self.path}: index outside the manifest's {len(self)} rows")
        if self._originals is None and self.fits_in_memory:
            self._originals = list(map_in_threads(lambda row: np.asarray(self._decode(row)), range(len(self))))
        originals = self._originals
        crops = np.empty((len(rows), *count, self.image_size, self.image_size, 3), np.uint8)

        def fill(place: int) -> None:
            row = rows[place]
            original = self._decode(row) if originals is None else Image.fromarray(originals[row])
            crops[place] = crop(place, original)

        for _ in map_in_threads(fill, range(len(rows)), chunk_size=1024):
            pass
        return torch.from_numpy(crops).movedim(-1, -3).contiguous()

    def _decode(self, row: int) -> Image.Image:
        file_id = int(self._file_ids[row])
        file = self._files[file_id].as_py()
        offset, length = int(self._offsets[row]), int(self._lengths[row])
        changed = f"{file} changed since it was indexed"
        try:
            opened = self._open_file(file) if self._shared[file_id] else _OpenFile(file)
            encoded = opened.read(offset, length)
        except OSError as error:
            raise self._unusable(row, f"{file}: {error.strerror}") from error
        if len(encoded) < length:
            raise self._unusable(row, f"{changed}: it ends before byte {offset + length}")
        try:
            return decode_rgb(encoded, turn_by_exif=self.info.turn_by_exif)
        except ValueError as error:
            hashes = _read_columns(self.path, self._parquet, ["sha256"])["sha256"]
            if hashlib.sha256(encoded).digest() != hashes[row].as_py():
                raise self._unusable(row, f"{changed}: not a readable image ({error})") from error
            raise self._unusable(row, f"{file}: not a readable image ({error})") from error

    def _unusable(self, row: int, reason: str) -> UserError:
        return UserError(f"{self.path}: row {row} ({self.sources[row]}): {reason}")


class _OpenFile:
    """A file open for reading at any place from several threads, closed when the last of them lets go of it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset``; fewer than ``length`` only at the file's end."""
        found = os.pread(self._descriptor, length, offset)
        while len(found) < length and (more := os.pread(self._descriptor, length - len(found), offset + len(found))):
            found += more  # network file systems may hand over a part at a time
        return found


def _read_columns(path: Path, parquet: pq.ParquetFile, names: list[str]) -> pa.Table:
    with unreadable_as_user_errors(path):
        rows = parquet.read(columns=names)
    check_no_nulls(path, rows)
    return rows
