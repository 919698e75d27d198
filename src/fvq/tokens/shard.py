"""Reading one shard of a token table, every value checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.parquet import check_columns, check_no_nulls, column_type, open_described, unreadable_as_user_errors
from fvq.tokens.layout import parse_shard_name
from fvq.tokens.schema import FORMAT, ORDER, Codes, TokenTableInfo, codes_type


@dataclass(frozen=True, eq=False)
class TokenPart:
    """Some images of a table in all their views."""

    image_ids: NDArray[np.int64]
    """(n,)"""
    labels: NDArray[np.int32]
    """(n,)"""
    codes: Codes
    """(n, V, h·w), the views in the order of the table's ``info.views``."""


class Shard:
    """One file of a token table. Opening reads its description; ``read`` decodes a row group.

    Raises:
        UserError: no such file, a damaged file, another format, a wrong or missing column, a name that does not fit the
            description, or rows that are not whole images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file, entries = open_described(path, FORMAT)
        with file:
            if entries.pop("order", None) != ORDER:
                raise UserError(f"{path}: codes in another order than {ORDER}")
            place = (entries.pop("shard", None), entries.pop("shards", None))
            if place != parse_shard_name(path):
                raise UserError(f"{path}: holds shard {place[0]} of {place[1]}, which is not what its name says")
            try:
                self.info = TypeAdapter(TokenTableInfo).validate_python(entries)
            except ValidationError as error:
                raise UserError(describe_validation_error(error, f"{path}: metadata")) from None
            check_columns(path, file.schema_arrow, {"image_id": pa.int64(), "label": pa.int32(), "view": pa.string()})
            _check_codes_type(path, file.schema_arrow, self.info)
            self._metadata = file.metadata
        views = len(self.info.views)
        rows = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        for group, count in enumerate(rows):
            if count % views:
                raise UserError(f"{path}: row group {group} holds {count} rows, which are not whole images of {views}")
        self.group_images = [count // views for count in rows]
        """Images in each row group."""

    def read(self, group: int) -> TokenPart:
        """The images of a row group.

        Raises:
            UserError: a damaged page, a null, a code, label, view or image that the table does not have, or rows that
                are not all views of an image after each other; it names the row, counted in the shard from 0.
        """
        info, views = self.info, len(self.info.views)
        first = sum(self.group_images[:group]) * views
        with (
            unreadable_as_user_errors(self.path),
            pq.ParquetFile(
                self.path, metadata=self._metadata, page_checksum_verification=True, read_dictionary=["view"]
            ) as file,
        ):
            columns = ["image_id", "label", "view", "codes"]
            table = file.read_row_group(group, columns=columns, use_threads=False).combine_chunks()
        check_no_nulls(self.path, table, first)
        image_ids, labels, names, lists = (table.column(name).chunk(0) for name in columns)
        codes = lists.flatten()
        if codes.null_count:
            raise UserError(f"{self.path}: a code in rows {first} to {first + len(table) - 1} is missing (null)")
        self._check_views(names, first)
        part = TokenPart(
            image_ids=self._of_images("image_id", image_ids, info.images, first),
            labels=self._of_images("label", labels, len(info.classes), first),
            codes=codes.to_numpy().reshape(-1, views, info.tokens_per_image),
        )
        self._check_range("code", part.codes.reshape(len(table), -1), info.codebook_size, first)
        return part

    def _check_views(self, names: pa.DictionaryArray, first: int) -> None:
        """Each image's rows are its views in the order of the description."""
        views = self.info.views
        numbers = {view: number for number, view in enumerate(views)}
        known = np.array([numbers.get(name, -1) for name in names.dictionary.to_pylist()])
        found = known[names.indices.to_numpy()]
        expected = np.tile(np.arange(len(views)), len(found) // len(views))
        wrong = np.flatnonzero(found != expected)
        if wrong.size:
            row = int(wrong[0])
            name = names[row].as_py()
            expectation = (
                f"{views[expected[row]]!r} was expected" if name in numbers else f"there are {', '.join(views)}"
            )
            raise UserError(f"{self.path}: row {first + row}: view {name!r}, and {expectation}")

    def _of_images(self, what: str, column: pa.Array, limit: int, first: int) -> NDArray[Any]:
        """Values of rows, the same in all views of an image, as values of images."""
        values_nv = column.to_numpy().reshape(-1, len(self.info.views))
        self._check_range(what, values_nv.reshape(-1, 1), limit, first)
        wrong = np.argwhere(values_nv != values_nv[:, :1])
        if wrong.size:
            image, view = wrong[0]
            raise UserError(
                f"{self.path}: row {first + image * values_nv.shape[1] + view}: {what} {values_nv[image, view]} among "
                f"the views of an image with {values_nv[image, 0]}"
            )
        return np.ascontiguousarray(values_nv[:, 0])

    def _check_range(self, what: str, values: NDArray[Any], limit: int, first: int) -> None:
        """UserError naming the first row with a value outside 0 … limit - 1."""
        if values.size and not 0 <= values.min() <= values.max() < limit:
            outside = (values < 0) | (values >= limit)
            row = first + int(np.argwhere(outside)[0, 0])
            raise UserError(f"{self.path}: row {row}: {what} {values[outside][0]} lies outside 0 to {limit - 1}")


def _check_codes_type(path: Path, schema: pa.Schema, info: TokenTableInfo) -> None:
    # Other writers may name the element otherwise or let it be null, so the types are not compared as a whole.
    found, expected = column_type(path, schema, "codes"), codes_type(info)
    if not (
        pa.types.is_fixed_size_list(found)
        and found.list_size == expected.list_size
        and found.value_type == expected.value_type
    ):
        raise UserError(f"{path}: column codes holds {found}, and {expected} was expected")
