"""Parquet files that describe themselves, as JSON under the schema's metadata key ``fvq``, and checked reading."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fvq.runtime.errors import UserError

KEY = b"fvq"
VERSION = 1


def with_description(schema: pa.Schema, format_name: str, **entries: Any) -> pa.Schema:
    """``schema`` with the format's name, its version and ``entries`` as JSON metadata."""
    description = {"format": format_name, "version": VERSION, **entries}
    return schema.with_metadata({KEY: json.dumps(description, ensure_ascii=False).encode()})


def open_described(path: Path, format_name: str) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """The open file and the entries of its description. UserError unless it holds ``format_name`` of our version."""
    with unreadable_as_user_errors(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    try:
        description = json.loads((file.schema_arrow.metadata or {})[KEY])
        kind, version = description.pop("format"), description.pop("version")
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: not an fvq {format_name} (no description under the metadata key fvq)") from None
    if kind != format_name:
        raise UserError(f"{path}: holds format {kind!r}, and {format_name!r} was expected")
    if version != VERSION:
        raise UserError(
            f"{path}: version {version!r} of the format {format_name}; this program reads version {VERSION}"
        )
    return file, description


def check_columns(path: Path, schema: pa.Schema, types: Mapping[str, pa.DataType]) -> None:
    """UserError where a column of ``types`` is missing or of another type. Other columns are left alone."""
    for name, expected in types.items():
        found = column_type(path, schema, name)
        if found != expected:
            raise UserError(f"{path}: column {name} holds {found}, and {expected} was expected")


def column_type(path: Path, schema: pa.Schema, name: str) -> pa.DataType:
    """Arrow type of the column ``name``; UserError unless there is exactly one."""
    if schema.names.count(name) != 1:
        raise UserError(f"{path}: column {name} is missing or there twice")
    return schema.field(name).type


def check_no_nulls(path: Path, table: pa.Table | pa.RecordBatch, first_row: int = 0) -> None:
    """UserError naming the first row, counted from ``first_row``, where some column holds a null."""
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if column.null_count:
            row = first_row + column.is_valid().to_pylist().index(False)
            raise UserError(f"{path}: row {row}: {name} is missing (null)")


@contextmanager
def unreadable_as_user_errors(path: Path) -> Iterator[None]:
    """What pyarrow raises on a missing, cut off or damaged file becomes a UserError that names ``path``."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error
