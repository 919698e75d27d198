"""What a token table holds: its description, its columns, and the batches it is written from."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike
from pydantic import Field
from torch import Tensor

from fvq.runtime.parquet import with_description

FORMAT = "token_table"
ORDER = "row-major"
UINT16_CODES = 2**16  # codebooks up to this size fit two bytes a code


@dataclass(frozen=True)
class TokenTableInfo:
    """What a token table says of itself."""

    tokenizer_sha256: str
    """SHA-256 of the tokenizer's file."""
    codebook_size: Annotated[int, Field(gt=0, le=2**32)]
    grid: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    """Height and width of the token grid; a row's codes run over it row by row."""
    views: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the views that occur."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    """Class names; labels are indices into them."""

    @property
    def tokens_per_image(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Rows of a token table, all of one view."""

    image_ids: Tensor
    """int64 (B,): the image's row in its image table."""
    labels: Tensor
    """int64 (B,)"""
    view: str
    codes: Tensor
    """int64 (B, h·w), row-major over the grid."""


def code_dtype(codebook_size: int) -> DTypeLike:
    """NumPy type of a stored code: uint16 up to 65,536 codes, uint32 above."""
    return np.uint16 if codebook_size <= UINT16_CODES else np.uint32


def codes_type(info: TokenTableInfo) -> pa.DataType:
    """Arrow type of the column ``codes``."""
    element = pa.field("element", pa.from_numpy_dtype(code_dtype(info.codebook_size)), nullable=False)
    return pa.list_(element, info.tokens_per_image)


def table_schema(info: TokenTableInfo) -> pa.Schema:
    """Arrow schema of a token table, with its description."""
    types = {"image_id": pa.int64(), "label": pa.int32(), "view": pa.string(), "codes": codes_type(info)}
    return with_description(
        pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()]),
        FORMAT,
        tokenizer_sha256=info.tokenizer_sha256,
        codebook_size=info.codebook_size,
        grid=list(info.grid),
        views=list(info.views),
        classes=list(info.classes),
        order=ORDER,
    )
