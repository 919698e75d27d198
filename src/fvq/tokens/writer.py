"""Writing token tables as a stream."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.tokens.schema import TokenBatch, TokenTableInfo, code_dtype, table_schema

ROW_GROUP_CODES = 2**22  # a row group of 8 MiB at two bytes a code


def write_token_table(path: Path | str, batches: Iterable[TokenBatch], info: TokenTableInfo) -> None:
    """Write ``batches`` to ``path`` as they come, whole or not at all.

    Codes are stored byte by byte in separate streams (BYTE_STREAM_SPLIT) under zstd: unused high bytes cost nothing,
    and uniformly random codes of 1,024 to 262,144 take at most 6 % more than their entropy.

    Raises:
        UserError: a code outside the codebook, a label without a class, a view or a shape that ``info`` does not name,
            or no row at all.
        OSError: from the writing, such as a full disk; it names ``path``.
    """
    path = Path(path)
    schema = table_schema(info)
    group_rows = max(1, ROW_GROUP_CODES // info.tokens_per_image)
    with (
        write_atomically(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=["view", "label"],
            column_encoding={"image_id": "DELTA_BINARY_PACKED", "codes.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=["image_id", "label"],
            write_page_checksum=True,
        ) as writer,
    ):
        rows = 0
        for table in _row_groups((_to_arrow(path, batch, info, schema) for batch in batches), group_rows):
            writer.write_table(table, row_group_size=group_rows)
            rows += table.num_rows
        if not rows:
            raise UserError(f"{path}: there are no tokens to write")


def _row_groups(batches: Iterable[pa.RecordBatch], group_rows: int) -> Iterator[pa.Table]:
    """Join small batches, so that no row group is much smaller than ``group_rows`` save the last."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(waiting.num_rows for waiting in pending) >= group_rows:
            yield pa.Table.from_batches(pending)
            pending = []
    if pending:
        yield pa.Table.from_batches(pending)


def _to_arrow(path: Path, batch: TokenBatch, info: TokenTableInfo, schema: pa.Schema) -> pa.RecordBatch:
    count = len(batch.codes)
    shapes = (batch.codes.shape, batch.image_ids.shape, batch.labels.shape)
    if shapes != ((count, info.tokens_per_image), (count,), (count,)):
        raise UserError(
            f"{path}: codes, image_ids and labels of shapes {', '.join(str(tuple(shape)) for shape in shapes)}; "
            f"(B, {info.tokens_per_image}), (B,), (B,) were expected"
        )
    if batch.view not in info.views:
        raise UserError(f"{path}: view {batch.view!r} is none of {', '.join(info.views)}")
    _check_range(path, "code", batch.codes, info.codebook_size)
    _check_range(path, "label", batch.labels, len(info.classes))
    codes = batch.codes.cpu().numpy().astype(code_dtype(info.codebook_size)).ravel()
    return pa.record_batch(
        [
            pa.array(batch.image_ids.cpu().numpy(), pa.int64()),
            pa.array(batch.labels.cpu().numpy().astype(np.int32)),
            pa.array([batch.view] * count, pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(codes), type=schema.field("codes").type),
        ],
        schema=schema,
    )


def _check_range(path: Path, what: str, values: Tensor, limit: int) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise UserError(
            f"{path}: {what}s from {int(values.min())} to {int(values.max())}; 0 to {limit - 1} are allowed"
        )
