"""Token tables on disk: what goes in comes out, small, and what is wrong with a shard is said in one line."""

import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.runtime.errors import UserError
from fvq.tokens import TokenBatch, TokenTableInfo, describe_size, layout, open_token_table, write_token_shards

INFO = TokenTableInfo(
    tokenizer_sha256="ab" * 32,
    codebook_size=1000,
    grid=(3, 4),
    views=("center", "center_flip"),
    classes=("x", "y", "z"),
    crop="adm to 32",
    images=50,
    seed=0,
)


def truth(info):
    """Tokens (N, V, h·w) and labels (N,) of a made-up data set."""
    shape = (info.images, len(info.views), info.tokens_per_image)
    stream = torch.Generator().manual_seed(1)
    return torch.randint(info.codebook_size, shape, generator=stream), torch.arange(info.images) % len(info.classes)


def encoder(info, batch=7, tokens=None):
    """What gives the tokens of ``truth``, or others, some images at a time."""
    true_tokens, labels = truth(info)
    tokens = true_tokens if tokens is None else tokens

    def encode(image_ids):
        for ids in image_ids.split(batch):
            for number, view in enumerate(info.views):
                yield TokenBatch(ids, labels[ids], view, tokens[ids, number])

    return encode


def small_pieces(monkeypatch, info, shards, images_per_group):
    """Shards and row groups of few images."""
    per_image = len(info.views) * info.tokens_per_image
    monkeypatch.setattr(layout, "SHARD_CODES", info.images * per_image / shards)
    monkeypatch.setattr(layout, "ROW_GROUP_CODES", images_per_group * per_image)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The table of ``INFO`` in three shards, each of several row groups."""
    small_pieces(monkeypatch, INFO, shards=3, images_per_group=7)
    write_token_shards(tmp_path / "tokens", encoder(INFO), INFO)
    return tmp_path / "tokens"


def shards(folder):
    return sorted(folder.glob("tokens-*"))


@pytest.mark.parametrize("codebook_size", [1, 2, 1024, 65_536, 65_537, 262_144])
def test_round_trip(tmp_path, codebook_size):
    info = replace(INFO, codebook_size=codebook_size)
    tokens, labels = truth(info)
    tokens[0, 0, :2] = torch.tensor([0, codebook_size - 1])
    write_token_shards(tmp_path, encoder(info, tokens=tokens), info)
    table = open_token_table(tmp_path, info.tokenizer_sha256, codebook_size)
    assert table.info == info
    assert (len(table), table.images) == (100, 50)
    for found, expected in zip(table.read(), (tokens, labels), strict=True):
        assert found.dtype == torch.int64 and torch.equal(found, expected)
    assert {part.codes.dtype for part in table.parts()} == {np.dtype("uint16" if codebook_size <= 65_536 else "uint32")}


@settings(max_examples=25, deadline=None)
@given(
    codebook_size=st.integers(1, 2**20),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    images=st.integers(1, 40),
    views=st.integers(1, 4),
    shards=st.integers(1, 6),
    images_per_group=st.integers(1, 9),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_any_table_survives_in_any_pieces(
    tmp_path_factory, codebook_size, grid, images, views, shards, images_per_group, batch, seed
):
    folder = tmp_path_factory.mktemp("tokens")
    names = tuple(f"view {number}" for number in range(views))
    info = replace(INFO, codebook_size=codebook_size, grid=grid, images=images, views=names, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch, info, shards, images_per_group)
        write_token_shards(folder, encoder(info, batch), info)
    table = open_token_table(folder)
    assert table.info == info
    assert len(table.paths) == min(shards, images)
    for found, expected in zip(table.read(), truth(info), strict=True):
        assert torch.equal(found, expected)
    assert sorted(int(row) for part in table.parts() for row in part.image_ids) == list(range(images))


@pytest.mark.parametrize("codebook_size", [1000, 100_000])
def test_other_programs_read_true_codes(tmp_path, monkeypatch, codebook_size):
    info = replace(INFO, codebook_size=codebook_size)
    small_pieces(monkeypatch, info, shards=3, images_per_group=7)
    write_token_shards(tmp_path, encoder(info), info)
    tokens, labels = truth(info)
    read = pyarrow.dataset.dataset(tmp_path).to_table()
    assert read.schema.names == ["image_id", "label", "view", "codes"]
    assert read.schema.types[:3] == [pa.int64(), pa.int32(), pa.string()]
    element = pa.uint16() if codebook_size == 1000 else pa.uint32()
    codes_type = read.schema.field("codes").type
    assert (codes_type.value_type, codes_type.list_size) == (element, 12)
    for rows in (read.to_pandas(), pytest.importorskip("pandas").read_parquet(tmp_path)):
        assert len(rows) == 100 and len(set(zip(rows.image_id, rows.view, strict=True))) == 100
        for row in rows.itertuples():
            assert row.codes.tolist() == tokens[row.image_id, info.views.index(row.view)].tolist()
            assert row.label == labels[row.image_id]


def test_shards_are_as_documented(folder):
    assert [path.name for path in shards(folder)] == [f"tokens-0000{n}-of-00003.parquet" for n in range(3)]
    ids = []
    for number, path in enumerate(shards(folder)):
        file = pq.ParquetFile(path)
        assert json.loads(file.schema_arrow.metadata[b"fvq"]) == {
            "format": "token_shard",
            "version": 1,
            "tokenizer_sha256": "ab" * 32,
            "codebook_size": 1000,
            "grid": [3, 4],
            "views": ["center", "center_flip"],
            "classes": ["x", "y", "z"],
            "crop": "adm to 32",
            "images": 50,
            "seed": 0,
            "order": "row-major",
            "shard": number,
            "shards": 3,
        }
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, ["image_id", "view"]).to_pydict()
            assert len(rows["view"]) <= 2 * 7
            assert rows["view"] == ["center", "center_flip"] * (len(rows["view"]) // 2)
            assert rows["image_id"][::2] == rows["image_id"][1::2] == sorted(rows["image_id"][::2])
            ids += rows["image_id"][::2]
    assert sorted(ids) == list(range(50))
    first, second, third = (ids[start : start + 17] for start in (0, 17, 34))
    for sample in (first, second, third):
        assert min(sample) < 15 and max(sample) >= 35  # each shard is a sample of all


def frequencies(kind, codebook_size):
    ranks = (np.arange(codebook_size) + 0.5) / codebook_size
    shares = {
        "equal": np.ones(codebook_size),
        "falling": -np.log(ranks),  # of exponential variates in order
        "an eighth": np.where(ranks < 0.13, np.exp(-ranks / 0.065), 0),
        "1/rank": 1 / (np.arange(codebook_size) + 1),
    }[kind]
    return shares / shares.sum()


def size_of_drawn(folder, codebook_size, kind, images=1024):
    info = replace(INFO, codebook_size=codebook_size, grid=(16, 16), images=images)
    shape = (info.images, 2, 256)
    drawn = np.random.default_rng(0).choice(codebook_size, shape, p=frequencies(kind, codebook_size))
    write_token_shards(folder, encoder(info, 256, torch.from_numpy(drawn)), info)
    return describe_size(folder)


@pytest.mark.parametrize(
    "codebook_size, kind",
    [
        *((size, "equal") for size in (256, 512, 1024, 2048, 16_384, 65_536, 262_144)),
        *((size, "falling") for size in (256, 1024, 4096, 65_536, 262_144)),
        *((size, "an eighth") for size in (1024, 4096, 16_384)),
    ],
)
def test_size_is_within_5_percent_of_the_entropy(tmp_path, codebook_size, kind):
    assert 1 <= size_of_drawn(tmp_path, codebook_size, kind).ratio < 1.05


@pytest.mark.parametrize("codebook_size, least, most", [(2048, 1.05, 1.07), (16_384, 1, 1.04), (262_144, 1.05, 1.08)])
def test_frequencies_of_1_over_rank_are_beyond_5_percent_for_some_codebooks(tmp_path, codebook_size, least, most):
    """What a row group of 2^20 codes numbered by use takes; the lower bounds tell when it no longer falls short."""
    assert least < size_of_drawn(tmp_path, codebook_size, "1/rank", images=2048).ratio < most


def test_size_is_measured(folder):
    size = describe_size(folder)
    counts = Counter(truth(INFO)[0].flatten().tolist()).values()
    entropy = -sum(count / 1200 * math.log2(count / 1200) for count in counts)
    total = sum(path.stat().st_size for path in shards(folder))
    assert size.entropy_bits_per_token == pytest.approx(entropy)
    assert asdict(size) == {
        "images": 50,
        "rows": 100,
        "tokens": 1200,
        "bytes": total,
        "codebook_size": 1000,
        "codes_used": len(counts),
        "bits_per_token": total * 8 / 1200,
        "entropy_bits_per_token": size.entropy_bits_per_token,
        "index_bits": 10,
        "ratio": pytest.approx(total * 8 / 1200 / entropy),
    }
    assert str(size).startswith("100 rows, 1,200 tokens, 0.0 MB: ")


def test_a_single_code_has_no_ratio(tmp_path):
    info = replace(INFO, codebook_size=1)
    write_token_shards(tmp_path, encoder(info), info)
    size = describe_size(tmp_path)
    assert (size.ratio, size.index_bits, str(size.entropy_bits_per_token)) == (None, 0, "0.0")


def codes(*rows):
    return pa.array(list(rows), pa.list_(pa.uint16(), 12))


def write_raw(folder, description=None, shard=(0, 1), **columns):
    """A shard made without the writer: two good images unless ``columns`` or ``description`` say otherwise."""
    good = {
        "image_id": pa.array([0, 0, 1, 1], pa.int64()),
        "label": pa.array([0, 0, 2, 2], pa.int32()),
        "view": pa.array(["center", "center_flip"] * 2),
        "codes": codes(*[[0] * 12, [999] * 12] * 2),
    }
    table = pa.table({name: column for name, column in (good | columns).items() if column is not None})
    info = {**asdict(INFO), "images": 2}
    place = {"shard": shard[0], "shards": shard[1]}
    entries = {"format": "token_shard", "version": 1, **info, "order": "row-major", **place, **(description or {})}
    folder.mkdir(exist_ok=True)
    path = folder / layout.shard_name(*shard)
    pq.write_table(table.replace_schema_metadata({"fvq": json.dumps(entries)}), path)
    return path


def test_another_tokenizer_is_refused(tmp_path):
    path = write_raw(tmp_path)
    assert open_token_table(tmp_path, "ab" * 32, 1000).read()[0][:, :, 0].tolist() == [[0, 999], [0, 999]]
    complaint = rf"^{re.escape(str(path))} was made by another tokenizer: .*{'ab' * 32}.*{'cd' * 32}"
    with pytest.raises(UserError, match=complaint):
        open_token_table(tmp_path, tokenizer_sha256="cd" * 32)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: made with 1000 codes, and 1024 were expected"):
        open_token_table(tmp_path, codebook_size=1024)


def test_folders_that_hold_no_whole_table_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match=r"nothing: no such folder$"):
        open_token_table(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no token table"):
        open_token_table(tmp_path / "empty")
    with pytest.raises(UserError, match=r"tokens-00000-of-00003\.parquet: is no folder of shards$"):
        open_token_table(shards(folder)[0])
    shards(folder)[1].rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"tokens-00001-of-00003\.parquet: no such file$"):
        open_token_table(folder)
    shards(folder)[0].rename(folder / "tokens-00001-of-00003.parquet")
    with pytest.raises(UserError, match=r"tokens-00000-of-00003\.parquet: no such file$"):
        open_token_table(folder)
    (folder / "tokens-00001-of-00003.parquet").rename(folder / "tokens-00000-of-00001.parquet")
    with pytest.raises(
        UserError, match=r"tokens: shards of several tables, such as tokens-00000-of-00001\.parquet and tokens-0"
    ):
        open_token_table(folder)


def test_mixed_tables_are_refused(tmp_path):
    write_raw(tmp_path, {"images": 4}, shard=(0, 2))
    path = write_raw(tmp_path, {"images": 4, "seed": 1}, shard=(1, 2))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: belongs to another table than tokens-00000-of-00"):
        open_token_table(tmp_path)
    write_raw(tmp_path, {"images": 5}, shard=(0, 2))
    write_raw(tmp_path, {"images": 5}, shard=(1, 2))
    with pytest.raises(UserError, match="its shards hold 4 images, and 5 were expected"):
        open_token_table(tmp_path)


@pytest.mark.parametrize("second", [(1, 2), (2, 2)])
def test_images_that_stand_twice_are_refused(tmp_path, second):
    write_raw(tmp_path, {"images": 4}, shard=(0, 2))
    path = write_raw(tmp_path, {"images": 4}, shard=(1, 2), image_id=pa.array(np.repeat(second, 2)))
    complaint = rf"^{re.escape(str(path))}: image {second[0]} stands in the table a second time$"
    for look in (lambda: open_token_table(tmp_path).read(), lambda: describe_size(tmp_path)):
        with pytest.raises(UserError, match=complaint):
            look()


def test_damaged_shards_are_named(folder):
    path = shards(folder)[1]
    whole = path.read_bytes()
    for kept in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"tokens-00001-of-00003\.parquet: not a readable Parquet file"):
            open_token_table(folder)
    column = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0).column(3)
    middle = column.data_page_offset + column.total_compressed_size // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])  # one flipped bit
    table = open_token_table(folder)
    with pytest.raises(UserError, match=r"tokens-00001-of-00003\.parquet: not a readable Parquet file"):
        table.read()
    with pytest.raises(UserError, match=r"tokens-00001-of-00003\.parquet: not a readable Parquet file"):
        table.batch(0, 10, 0)


@pytest.mark.parametrize(
    "description, complaint",
    [
        ({"format": "image_table"}, "holds format 'image_table', and 'token_shard' was expected"),
        ({"version": 2}, "version 2 "),
        ({"order": "column-major"}, "codes in another order than row-major"),
        ({"shard": 3}, "holds shard 3 of 1, which is not what its name says"),
        ({"codebook_size": 0}, "metadata: codebook_size"),
        ({"grid": [3, 0]}, "metadata: grid"),
        ({"grid": [3, 4, 1]}, "metadata: grid"),
        ({"views": None}, "metadata: views"),
        ({"crop": None}, "metadata: crop"),
        ({"views": ["center", "center_flip", "third"]}, "row group 0 holds 4 rows, which are not whole images of 3"),
        ({"grid": [4, 4]}, "column codes holds fixed_size_list"),
        ({"codebook_size": 100_000}, "column codes holds fixed_size_list.*uint16.*uint32"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, description, complaint):
    path = write_raw(tmp_path, description)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}") as caught:
        open_token_table(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({"codes": None}, "column codes is missing"),
        ({"label": None}, "column label is missing"),
        ({"label": pa.array([0] * 4, pa.int64())}, "column label holds int64"),
        ({"codes": pa.array([[1] * 12] * 4, pa.list_(pa.uint16()))}, "column codes holds list"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, columns, complaint):
    path = write_raw(tmp_path, **columns)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
        open_token_table(tmp_path)


FINE = [0] * 12


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({"codes": codes(FINE, FINE, [3] * 11 + [1000], FINE)}, "row 2: code 1000 lies outside 0 to 999"),
        ({"codes": codes(FINE, None, FINE, FINE)}, r"row 1: codes is missing \(null\)"),
        ({"codes": codes(FINE, FINE, [0] * 11 + [None], FINE)}, r"a code in rows 0 to 3 is missing \(null\)"),
        ({"label": pa.array([0, 0, None, 1], pa.int32())}, r"row 2: label is missing \(null\)"),
        ({"label": pa.array([0, 0, 3, 3], pa.int32())}, "row 2: label 3 lies outside 0 to 2"),
        ({"label": pa.array([0, 0, 1, 2], pa.int32())}, "row 3: label 2 among the views of an image with 1"),
        ({"image_id": pa.array([0, None, 1, 1], pa.int64())}, r"row 1: image_id is missing \(null\)"),
        ({"image_id": pa.array([0, 0, -1, -1], pa.int64())}, "row 2: image_id -1 lies outside 0 to 1"),
        ({"image_id": pa.array([0, 1, 1, 1], pa.int64())}, "row 1: image_id 1 among the views of an image with 0"),
        ({"view": pa.array(["center", "b"] * 2)}, "row 1: view 'b', and there are center, center_flip"),
        ({"view": pa.array(["center"] * 4)}, "row 1: view 'center', and 'center_flip' was expected"),
        ({"view": pa.array(["center", None] * 2)}, r"row 1: view is missing \(null\)"),
    ],
)
def test_dirty_rows_are_refused(tmp_path, columns, complaint):
    path = write_raw(tmp_path, **columns)
    for read in (lambda table: table.read(), lambda table: table.batch(0, 1, 0)):
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
            read(open_token_table(tmp_path))
