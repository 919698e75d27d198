"""Reading token tables, every row checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.parquet import check_columns, check_no_nulls, column_type, open_described, unreadable_as_user_errors
from fvq.tokens.schema import FORMAT, ORDER, TokenTableInfo, code_dtype, codes_type


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A token table in memory, N rows."""

    info: TokenTableInfo
    image_ids: Tensor
    """int64 (N,)"""
    labels: Tensor
    """int64 (N,)"""
    view_ids: Tensor
    """int64 (N,), indices into ``info.views``."""
    packed_codes: NDArray[np.uint16] | NDArray[np.uint32]
    """(N, h·w) in the type they are stored in."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> list[str]:
        """The name of each row's view."""
        return [self.info.views[view] for view in self.view_ids.tolist()]

    @cached_property
    def codes(self) -> Tensor:
        """All codes, int64 (N, h·w), made and kept at first use. ``codes_at`` spares large tables this memory."""
        return torch.from_numpy(self.packed_codes.astype(np.int64))

    def codes_at(self, rows: Tensor | Sequence[int]) -> Tensor:
        """The codes of ``rows`` (B,), int64 (B, h·w)."""
        return torch.from_numpy(self.packed_codes[np.asarray(rows)].astype(np.int64))


def read_token_table(
    path: Path | str, tokenizer_sha256: str | None = None, codebook_size: int | None = None
) -> TokenTable:
    """The whole table at ``path``.

    Args:
        path: file that ``write_token_table`` wrote.
        tokenizer_sha256: the tokenizer that must have made it, if that matters.
        codebook_size: the codebook size it must have, if that matters.

    Raises:
        UserError: no such file, a damaged file, another format, another tokenizer or codebook size, a wrong or missing
            column, a null, a code, label or view outside what the table names. It names the file, and the row (from 0).
    """
    path = Path(path)
    file, entries = open_described(path, FORMAT)
    with file:
        info = _read_info(path, entries)
        if tokenizer_sha256 is not None and info.tokenizer_sha256 != tokenizer_sha256:
            raise UserError(
                f"{path} was made by another tokenizer: its file has SHA-256 {info.tokenizer_sha256}, "
                f"and {tokenizer_sha256} was expected"
            )
        if codebook_size is not None and info.codebook_size != codebook_size:
            raise UserError(f"{path}: made with {info.codebook_size} codes, and {codebook_size} were expected")
        types = {"image_id": pa.int64(), "label": pa.int32(), "view": pa.string()}
        check_columns(path, file.schema_arrow, types)
        _check_codes_type(path, file.schema_arrow, info)

        count = file.metadata.num_rows
        packed_codes = np.empty((count, info.tokens_per_image), code_dtype(info.codebook_size))
        image_ids, labels, view_ids = (np.empty(count, np.int64) for _ in range(3))
        row = 0
        with unreadable_as_user_errors(path):
            for batch in file.iter_batches(columns=[*types, "codes"]):
                check_no_nulls(path, batch, row)
                rows = slice(row, row + batch.num_rows)
                image_ids[rows] = batch.column("image_id").to_numpy()
                labels[rows] = batch.column("label").to_numpy()
                known = pc.index_in(batch.column("view"), value_set=pa.array(info.views))
                if known.null_count:
                    at = known.is_valid().to_pylist().index(False)
                    view = batch.column("view")[at].as_py()
                    raise UserError(f"{path}: row {row + at}: view {view!r} is none of {', '.join(info.views)}")
                view_ids[rows] = known.to_numpy()
                codes = batch.column("codes").flatten()
                if codes.null_count:
                    raise UserError(f"{path}: a code in rows {row} to {row + batch.num_rows - 1} is missing (null)")
                packed_codes[rows] = codes.to_numpy().reshape(batch.num_rows, -1)
                row += batch.num_rows

    _check_range(path, "label", labels, len(info.classes))
    _check_range(path, "code", packed_codes, info.codebook_size)
    return TokenTable(
        info, torch.from_numpy(image_ids), torch.from_numpy(labels), torch.from_numpy(view_ids), packed_codes
    )


def _read_info(path: Path, entries: dict[str, Any]) -> TokenTableInfo:
    if entries.pop("order", None) != ORDER:
        raise UserError(f"{path}: codes in another order than {ORDER}")
    try:
        return TypeAdapter(TokenTableInfo).validate_python(entries)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, f"{path}: metadata")) from None


def _check_codes_type(path: Path, schema: pa.Schema, info: TokenTableInfo) -> None:
    # Other writers may name the element otherwise or let it be null, so the types are not compared as a whole.
    found, expected = column_type(path, schema, "codes"), codes_type(info)
    if not (
        pa.types.is_fixed_size_list(found)
        and found.list_size == expected.list_size
        and found.value_type == expected.value_type
    ):
        raise UserError(f"{path}: column codes holds {found}, and {expected} was expected")


def _check_range(path: Path, what: str, values: NDArray[Any], limit: int) -> None:
    """UserError naming the first row with a value outside 0 … limit - 1."""
    if values.size and not 0 <= values.min() <= values.max() < limit:
        outside = (values < 0) | (values >= limit)
        row = int(np.argwhere(outside)[0, 0])
        raise UserError(f"{path}: row {row}: {what} {values[outside][0]} lies outside 0 to {limit - 1}")
