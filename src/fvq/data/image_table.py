"""The Parquet table of labelled images: writing it as a stream, reading it with every row checked."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fvq.data.records import ImageRecord, in_chunks, map_in_threads
from fvq.data.views import cut_views, expand_views, parse_view
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.files import write_atomically
from fvq.runtime.parquet import (
    check_columns,
    check_no_nulls,
    open_described,
    unreadable_as_user_errors,
    with_description,
)

FORMAT = "image_table"
COLUMNS = {"image": pa.binary(), "label": pa.int32(), "source": pa.string(), "split": pa.string()}
CACHE_LIMIT = 2**30  # bytes of decoded images that a table keeps in memory
ROW_GROUP_PIXELS = 2**21  # a random read decodes few of a group's rows but loads all: large images get small groups


class ImageTableInfo(BaseModel):
    """What a table says of itself."""

    model_config = ConfigDict(strict=True)
    dataset: str
    classes: Annotated[list[str], Field(min_length=1)]
    image_size: Annotated[int, Field(gt=0)]


def write_image_table(
    path: Path | str,
    records: Iterable[ImageRecord],
    *,
    dataset: str,
    classes: Sequence[str],
    image_size: int,
    split: str,
) -> None:
    """Write ``records`` to ``path`` as they come, PNG-encoded, whole or not at all.

    Rows stand in groups of 1,024, or fewer where the images are large. Few images are in memory at a time.

    Raises:
        UserError: no record at all, an image of another size, a label without a class.
        OSError: from the writing, such as a full disk; it names ``path``.
    """
    with write_atomically(path) as temporary:
        write_rows(temporary, records, dataset=dataset, classes=classes, image_size=image_size, split=split)


def write_rows(
    path: Path,
    records: Iterable[ImageRecord],
    *,
    dataset: str,
    classes: Sequence[str],
    image_size: int,
    split: str,
) -> None:
    """As ``write_image_table``, but straight to ``path``, for callers that rename several files together."""
    fields = [pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()]
    schema = with_description(pa.schema(fields), FORMAT, dataset=dataset, classes=list(classes), image_size=image_size)

    def encode(record: ImageRecord) -> bytes:
        if not 0 <= record.label < len(classes):
            raise UserError(f"{record.source}: label {record.label} lies outside the {len(classes)} classes")
        image = record.image
        # Through an array: Pillow would copy a colour profile and the like from the original into every PNG.
        pixels_hwc = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if pixels_hwc.shape != (image_size, image_size, 3) or pixels_hwc.dtype != np.uint8:
            raise UserError(
                f"{record.source}: image of shape {pixels_hwc.shape} and type {pixels_hwc.dtype}, "
                f"and uint8 ({image_size}, {image_size}, 3) was expected"
            )
        buffer = io.BytesIO()
        Image.fromarray(pixels_hwc).save(buffer, "png")
        return buffer.getvalue()

    group_rows = max(16, min(1024, ROW_GROUP_PIXELS // image_size**2))
    with pq.ParquetWriter(
        path,
        schema,
        compression={"image": "none", "label": "zstd", "source": "zstd", "split": "zstd"},  # PNG is compressed already
        use_dictionary=["label", "split"],
        write_statistics=["label", "split"],
        write_page_checksum=True,
    ) as writer:
        empty = True
        for chunk in in_chunks(records, group_rows):
            empty = False
            columns = [
                list(map_in_threads(encode, chunk)),
                [record.label for record in chunk],
                [record.source for record in chunk],
                [split] * len(chunk),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)
    if empty:
        raise UserError(f"the {split} part of {dataset} holds no image")


class ImageTable:
    """A table of labelled images. Open it with ``ImageTable.open``."""

    def __init__(self, path: Path, file: pq.ParquetFile, info: ImageTableInfo, rows: pa.Table) -> None:
        self.path = path
        self.dataset = info.dataset
        self.classes = tuple(info.classes)
        self.image_size = info.image_size
        self.labels = torch.from_numpy(rows["label"].to_numpy().astype(np.int64))
        """int64 (N,), indices into ``classes``."""
        self.sources: list[str] = rows["source"].to_pylist()
        self._file = file
        group_sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._group_starts = np.concatenate([[0], np.cumsum(group_sizes, dtype=np.int64)])
        self._last_group: tuple[int, list[bytes | None]] | None = None
        self._decoded: Tensor | None = None

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the table at ``path`` and check all but the images themselves; these are checked as they are decoded.

        Raises:
            UserError: no such file, a damaged file, another format, a wrong or missing column, a null, a label without
                a class. It names the file, and the row (from 0) where there is one.
        """
        path = Path(path)
        file, entries = open_described(path, FORMAT)
        try:
            info = ImageTableInfo.model_validate(entries)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, f"{path}: metadata")) from None
        check_columns(path, file.schema_arrow, COLUMNS)
        with unreadable_as_user_errors(path):
            rows = file.read(columns=["label", "source", "split"])
        check_no_nulls(path, rows)
        labels = rows["label"].to_numpy()
        outside = np.flatnonzero((labels < 0) | (labels >= len(info.classes)))
        if outside.size:
            raise UserError(
                f"{path}: row {outside[0]}: label {labels[outside[0]]} lies outside the {len(info.classes)} classes"
            )
        return cls(path, file, info, rows)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Callable[[Path], "ImageTable"], tuple[Path]]:
        return type(self).open, (self.path,)  # worker processes open the file anew

    center_crop = None
    """The centre crop that figures and views are made with: none, for images are squares."""
    crop_note = ""
    """What a figure's protocol says of the centre crop: nothing, for images are stored as they are used."""

    @property
    def fits_in_memory(self) -> bool:
        """Whether the decoded images are kept."""
        return len(self) * 3 * self.image_size**2 <= CACHE_LIMIT

    def images(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """The images at ``indices`` (B,), or all, as uint8 (B, 3, H, W).

        Up to a decoded size of 1 GiB the whole table is decoded once and kept (the tensor for ``None`` is the kept one:
        do not write to it); beyond, images are decoded anew each time.

        Raises:
            UserError: an image that is missing, damaged or of another size; it names the file and the row.
            IndexError: an index outside the table.
        """
        if self._decoded is None and self.fits_in_memory:
            self._decoded = self._decode(np.arange(len(self)))
        if indices is None:
            return self._decode(np.arange(len(self))) if self._decoded is None else self._decoded
        index_b = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        if index_b.numel() and not 0 <= int(index_b.min()) <= int(index_b.max()) < len(self):
            raise IndexError(f"{self.path}: index outside the table's {len(self)} rows")
        return self._decode(index_b.numpy()) if self._decoded is None else self._decoded[index_b]

    def views(self, indices: Tensor | Sequence[int], views: Sequence[str]) -> Tensor:
        """The ``views``, by name, of the images at ``indices`` (B,), as uint8 (B, V, 3, S, S).

        V counts the names that ``expand_views`` gives; ``View`` says what they mean. The table holds no more than the
        squares of S pixels: with a scale, such a square is enlarged to int(S·s) pixels (Pillow's bicubic filter) and
        cut. Images are kept, and errors raised, as by ``images``.

        Raises:
            UserError: also a view that is unknown or named twice, or a scale that makes int(S·s) no more than S.
        """
        chosen = [parse_view(name) for name in expand_views(views)]
        images_bhwc = self.images(indices).permute(0, 2, 3, 1).numpy()
        views_bvhwc = np.empty((len(images_bhwc), len(chosen), *images_bhwc.shape[1:]), np.uint8)

        def cut(place: int) -> None:
            image = Image.fromarray(images_bhwc[place])
            views_bvhwc[place] = cut_views(image, chosen, self.image_size, lambda square, _: square)

        for _ in map_in_threads(cut, range(len(images_bhwc)), chunk_size=1024):
            pass
        return torch.from_numpy(views_bvhwc).movedim(-1, -3).contiguous()

    def _decode(self, rows: NDArray[np.int64]) -> Tensor:
        images_bhwc = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        groups = np.searchsorted(self._group_starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            start = int(self._group_starts[group])
            encoded = self._encoded_group(group)

            def decode(place: int, start: int = start, encoded: list[bytes | None] = encoded) -> None:
                row = int(rows[place])
                images_bhwc[place] = self._decode_row(row, encoded[row - start])

            for _ in map_in_threads(decode, np.flatnonzero(groups == group).tolist(), chunk_size=1024):
                pass
        return torch.from_numpy(images_bhwc).permute(0, 3, 1, 2).contiguous()

    def _encoded_group(self, group: int) -> list[bytes | None]:
        # The last group is kept: batches in order ask for the same one many times.
        if self._last_group is None or self._last_group[0] != group:
            with unreadable_as_user_errors(self.path):
                column = self._file.read_row_group(group, columns=["image"]).column("image")
            self._last_group = (group, column.to_pylist())
        return self._last_group[1]

    def _decode_row(self, row: int, encoded: bytes | None) -> NDArray[np.uint8]:
        if encoded is None:
            raise UserError(f"{self.path}: row {row}: image is missing (null)")
        try:
            with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
                pixels_hwc: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: row {row}: not a readable PNG or JPEG image ({reason})") from error
        if pixels_hwc.shape[:2] != (self.image_size, self.image_size):
            height, width = pixels_hwc.shape[:2]
            raise UserError(
                f"{self.path}: row {row}: image of {width}×{height} pixels, "
                f"and the table says {self.image_size}×{self.image_size}"
            )
        return pixels_hwc


def to_model_range(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 of the same shape in [-1, 1]: x / 127.5 - 1."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float (B, 3, H, W) in [-1, 1] -> uint8: (x + 1) · 127.5 to the nearest (halves to even), clamped to 0…255."""
    return ((images.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
