"""What a token table holds: its description, its columns, and the batches it is written from."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fvq.runtime.parquet import with_description

FORMAT = "token_shard"
ORDER = "row-major"
UINT16_CODES = 2**16  # codebooks up to this size fit two bytes a code

Codes = NDArray[np.uint16 | np.uint32]


@dataclass(frozen=True)
class TokenTableInfo:
    """What every shard of a token table says of the whole table."""

    tokenizer_sha256: str
    """SHA-256 of the tokenizer's file."""
    codebook_size: Annotated[int, Field(gt=0, le=2**32)]
    grid: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    """Height and width of the token grid; a row's codes run over it row by row."""
    views: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the views of each image, in the order of their rows."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Class names; labels are indices into them."""
    crop: str
    """How an image became the squares that its views were cut from, in words, such as by ``describe_crops``."""
    images: Annotated[int, Field(gt=0)]
    """Number of images; their ids are 0 … images - 1."""
    seed: int
    """Of the order in which the images stand."""

    @property
    def tokens_per_image(self) -> int:
        """Codes of a view."""
        return self.grid[0] * self.grid[1]

    @property
    def rows(self) -> int:
        """One per image and view."""
        return self.images * len(self.views)


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The tokens of some images in one view."""

    image_ids: Tensor
    """int64 (B,): the image's row in its image table."""
    labels: Tensor
    """int64 (B,)"""
    view: str
    codes: Tensor
    """int64 (B, h·w), row-major over the grid."""


def code_dtype(codebook_size: int) -> type[np.uint16 | np.uint32]:
    """NumPy type of a stored code: uint16 up to 65,536 codes, uint32 above."""
    return np.uint16 if codebook_size <= UINT16_CODES else np.uint32


def codes_type(info: TokenTableInfo) -> pa.DataType:
    """Arrow type of the column ``codes``."""
    element = pa.field("element", pa.from_numpy_dtype(code_dtype(info.codebook_size)), nullable=False)
    return pa.list_(element, info.tokens_per_image)


def table_schema(info: TokenTableInfo, **entries: Any) -> pa.Schema:
    """Arrow schema of a token table, described by ``info`` and further ``entries``."""
    types = {"image_id": pa.int64(), "label": pa.int32(), "view": pa.string(), "codes": codes_type(info)}
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    return with_description(pa.schema(fields), FORMAT, **asdict(info), order=ORDER, **entries)
