"""Token tables: what goes in comes out, small, and what is wrong with a file is said in one line."""

import errno
import json
import math
import re
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.runtime.errors import UserError
from fvq.tokens import TokenBatch, TokenTableInfo, read_token_table, write_token_table, writer

INFO = TokenTableInfo(
    tokenizer_sha256="ab" * 32, codebook_size=1000, grid=(3, 4), views=("center", "center_flip"), classes=("x", "y")
)


def info_with(**changes):
    return TokenTableInfo(**(vars(INFO) | changes))


def batch(info, count=5, view="center", first_id=0, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return TokenBatch(
        image_ids=torch.arange(first_id, first_id + count),
        labels=torch.randint(0, len(info.classes), (count,), generator=stream),
        view=view,
        codes=torch.randint(0, info.codebook_size, (count, info.tokens_per_image), generator=stream),
    )


def two_views(info, count=5):
    return [batch(info, count, view, seed=number) for number, view in enumerate(info.views)]


def write_raw(path, description=None, **columns):
    """A table made without the writer: two good rows unless ``columns`` or ``description`` say otherwise."""
    codes = pa.array([[0] * 12, [999] * 12], pa.list_(pa.uint16(), 12))
    good = {
        "image_id": pa.array([0, 1], pa.int64()),
        "label": pa.array([0, 1], pa.int32()),
        "view": pa.array(["center", "center_flip"]),
        "codes": codes,
    }
    table = pa.table({name: column for name, column in (good | columns).items() if column is not None})
    entries = {"format": "token_table", "version": 1, **vars(INFO), "order": "row-major", **(description or {})}
    pq.write_table(table.replace_schema_metadata({"fvq": json.dumps(entries)}), path)
    return path


@pytest.mark.parametrize("codebook_size", [1, 2, 1024, 65_536, 65_537, 262_144])
def test_round_trip(tmp_path, codebook_size):
    info = info_with(codebook_size=codebook_size)
    batches = two_views(info)
    batches[0].codes[0, :2] = torch.tensor([0, codebook_size - 1])
    write_token_table(tmp_path / "tokens.parquet", batches, info)
    table = read_token_table(tmp_path / "tokens.parquet", info.tokenizer_sha256, codebook_size)
    assert table.info == info
    assert len(table) == 10
    codes = torch.cat([batch.codes for batch in batches])
    assert table.codes.dtype == torch.int64 and torch.equal(table.codes, codes)
    assert table.codes is table.codes
    assert torch.equal(table.codes_at(torch.tensor([9, 0, 9])), codes[[9, 0, 9]])
    assert torch.equal(table.codes_at([3]), codes[[3]])
    assert torch.equal(table.labels, torch.cat([batch.labels for batch in batches]))
    assert table.labels.dtype == table.image_ids.dtype == table.view_ids.dtype == torch.int64
    assert table.image_ids.tolist() == [*range(5), *range(5)]
    assert table.views == ["center"] * 5 + ["center_flip"] * 5
    assert table.view_ids.tolist() == [0] * 5 + [1] * 5


@settings(max_examples=25, deadline=None)
@given(
    codebook_size=st.integers(1, 2**20),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 2**32),
)
def test_any_table_survives_in_any_row_groups(tmp_path_factory, codebook_size, grid, counts, seed):
    path = tmp_path_factory.mktemp("tokens") / "tokens.parquet"
    info = info_with(codebook_size=codebook_size, grid=grid)
    batches = [batch(info, count, info.views[number % 2], seed=seed + number) for number, count in enumerate(counts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROW_GROUP_CODES", 7 * info.tokens_per_image)
        write_token_table(path, iter(batches), info)
    table = read_token_table(path)
    assert table.info == info
    assert torch.equal(table.codes, torch.cat([batch.codes for batch in batches]))
    assert table.views == [batch.view for batch in batches for _ in range(len(batch.codes))]


def test_file_is_as_documented(tmp_path):
    path = tmp_path / "tokens.parquet"
    for codebook_size, element in ((65_536, pa.uint16()), (65_537, pa.uint32())):
        info = info_with(codebook_size=codebook_size)
        write_token_table(path, two_views(info), info)
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        assert schema.names == ["image_id", "label", "view", "codes"]
        assert schema.types[:3] == [pa.int64(), pa.int32(), pa.string()]
        assert schema.field("codes").type.value_type == element and schema.field("codes").type.list_size == 12
        column = file.metadata.row_group(0).column(3)
        assert column.compression == "ZSTD" and "BYTE_STREAM_SPLIT" in column.encodings
        assert not column.has_dictionary_page
    assert json.loads(file.metadata.metadata[b"fvq"]) == {
        "format": "token_table",
        "version": 1,
        "tokenizer_sha256": "ab" * 32,
        "codebook_size": 65_537,
        "grid": [3, 4],
        "views": ["center", "center_flip"],
        "classes": ["x", "y"],
        "order": "row-major",
    }


@pytest.mark.parametrize("codebook_size", [1024, 16_384, 65_536, 262_144])
def test_random_codes_take_little_more_than_their_entropy(tmp_path, codebook_size):
    info = info_with(codebook_size=codebook_size, grid=(8, 8))
    write_token_table(tmp_path / "tokens.parquet", two_views(info, 2000), info)
    entropy = 2 * 2000 * 64 * math.log2(codebook_size) / 8
    assert 1 <= (tmp_path / "tokens.parquet").stat().st_size / entropy < 1.1


def test_small_batches_share_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ROW_GROUP_CODES", 12 * 50)
    path = tmp_path / "tokens.parquet"
    write_token_table(path, (batch(INFO, 8, first_id=8 * number) for number in range(20)), INFO)
    metadata = pq.ParquetFile(path).metadata
    assert sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) == 160
    assert metadata.num_row_groups <= 6
    assert read_token_table(path).image_ids.tolist() == list(range(160))


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"codes": torch.full((5, 12), 1000)}, "codes from 1000 to 1000; 0 to 999 are allowed"),
        ({"codes": torch.full((5, 12), -1)}, "codes from -1 to -1"),
        ({"labels": torch.tensor([0, 1, 2, 0, 0])}, "labels from 0 to 2; 0 to 1 are allowed"),
        ({"view": "upside_down"}, "view 'upside_down' is none of center, center_flip"),
        (
            {"codes": torch.zeros(5, 11, dtype=torch.int64)},
            r"shapes \(5, 11\).*\(B, 12\), \(B,\), \(B,\) were expected",
        ),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"shapes \(5, 12\), \(5,\), \(4,\)"),
        ({"image_ids": torch.arange(6)}, r"shapes \(5, 12\), \(6,\), \(5,\)"),
    ],
)
def test_bad_batches_are_refused_and_the_old_file_stays(tmp_path, changes, complaint):
    path = tmp_path / "tokens.parquet"
    path.write_text("old")
    good = batch(INFO)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*{complaint}"):
        write_token_table(path, [good, TokenBatch(**(vars(good) | changes))], INFO)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens.parquet"] and path.read_text() == "old"


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match="there are no tokens to write"):
        write_token_table(tmp_path / "tokens.parquet", [], INFO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["system limit", "no space"])
def test_full_disk_midway_leaves_no_part_and_the_old_file(tmp_path, monkeypatch, how):
    path = tmp_path / "tokens.parquet"
    path.write_text("old")
    monkeypatch.setattr(writer, "ROW_GROUP_CODES", 12 * 1000)
    batches = (batch(INFO, 1000, seed=number) for number in range(20))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_table, groups = pq.ParquetWriter.write_table, []

    def full_after_three_groups(self, table, **options):
        groups.append(table.num_rows)
        if len(groups) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(self, table, **options)

    try:
        if how == "system limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        else:
            monkeypatch.setattr(pq.ParquetWriter, "write_table", full_after_three_groups)
        with pytest.raises(OSError, match=r"tokens\.parquet") as caught:
            write_token_table(path, batches, INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == (errno.EFBIG if how == "system limit" else errno.ENOSPC)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokens.parquet"] and path.read_text() == "old"


def test_another_tokenizer_is_refused(tmp_path):
    path = write_raw(tmp_path / "tokens.parquet")
    assert read_token_table(path, "ab" * 32, 1000).codes[:, 0].tolist() == [0, 999]
    complaint = rf"^{re.escape(str(path))} was made by another tokenizer: .*{'ab' * 32}.*{'cd' * 32}"
    with pytest.raises(UserError, match=complaint):
        read_token_table(path, tokenizer_sha256="cd" * 32)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: made with 1000 codes, and 1024 were expected"):
        read_token_table(path, codebook_size=1024)


def test_missing_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "tokens.parquet"
    with pytest.raises(UserError, match=r"tokens\.parquet: no such file$"):
        read_token_table(path)
    write_token_table(path, two_views(INFO, 500), INFO)
    whole = path.read_bytes()
    for kept in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"tokens\.parquet: not a readable Parquet file"):
            read_token_table(path)
    column = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0).column(3)
    middle = column.data_page_offset + column.total_compressed_size // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])  # one flipped bit
    with pytest.raises(UserError, match=r"tokens\.parquet: not a readable Parquet file"):
        read_token_table(path)


@pytest.mark.parametrize(
    "description, complaint",
    [
        ({"format": "image_table"}, "holds format 'image_table', and 'token_table' was expected"),
        ({"version": 2}, "version 2 "),
        ({"order": "column-major"}, "codes in another order than row-major"),
        ({"codebook_size": 0}, "metadata: codebook_size"),
        ({"grid": [3, 0]}, "metadata: grid"),
        ({"grid": [3, 4, 1]}, "metadata: grid"),
        ({"views": None}, "metadata: views"),
        ({"grid": [4, 4]}, "column codes holds fixed_size_list"),
        ({"codebook_size": 100_000}, "column codes holds fixed_size_list.*uint16.*uint32"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, description, complaint):
    path = write_raw(tmp_path / "tokens.parquet", description)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}") as caught:
        read_token_table(path)
    assert "\n" not in str(caught.value)


def codes(*rows):
    return pa.array(list(rows), pa.list_(pa.uint16(), 12))


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({"codes": None}, "column codes is missing"),
        ({"label": None}, "column label is missing"),
        ({"label": pa.array([0, 1], pa.int64())}, "column label holds int64"),
        ({"codes": pa.array([[1] * 12] * 2, pa.list_(pa.uint16()))}, "column codes holds list"),
        ({"codes": codes([0] * 12, [3] * 11 + [1000])}, "row 1: code 1000 lies outside 0 to 999"),
        ({"codes": codes([0] * 12, None)}, r"row 1: codes is missing \(null\)"),
        ({"codes": codes([0] * 11 + [None], [0] * 12)}, r"a code in rows 0 to 1 is missing \(null\)"),
        ({"label": pa.array([0, None], pa.int32())}, r"row 1: label is missing \(null\)"),
        ({"image_id": pa.array([None, 3], pa.int64())}, r"row 0: image_id is missing \(null\)"),
        ({"label": pa.array([0, 2], pa.int32())}, "row 1: label 2 lies outside 0 to 1"),
        ({"view": pa.array(["center", "shift_tl"])}, "row 1: view 'shift_tl' is none of center, center_flip"),
    ],
)
def test_dirty_columns_are_refused(tmp_path, columns, complaint):
    path = write_raw(tmp_path / "tokens.parquet", **columns)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
        read_token_table(path)


def test_stored_arrays_are_compact(tmp_path):
    write_token_table(tmp_path / "tokens.parquet", two_views(INFO), INFO)
    assert read_token_table(tmp_path / "tokens.parquet").packed_codes.dtype == np.uint16
