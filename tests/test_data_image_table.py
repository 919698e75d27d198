"""The image table: what goes in comes out, and what is wrong with a file is said in one line."""

import errno
import io
import json
import re
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fvq.data import image_table
from fvq.data.image_table import ImageTable, to_model_range, to_uint8, write_image_table
from fvq.data.records import ImageRecord, map_in_threads
from fvq.runtime.errors import UserError

SIZE = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (1030, SIZE, SIZE, 3), dtype=np.uint8)
DESCRIPTION = {"dataset": "noise", "classes": ["a", "b", "ç"], "image_size": SIZE}


def records(count=1030):
    return (ImageRecord(PIXELS[row], row % 3, f"noise/{row}") for row in range(count))


def write(path, rows=None):
    write_image_table(path, records() if rows is None else rows, split="train", **DESCRIPTION)


def write_raw(path, description=None, **columns):
    """A table made without the writer: three good rows unless ``columns`` or ``description`` say otherwise."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "png")
    good = {
        "image": pa.array([buffer.getvalue()] * 3),
        "label": pa.array([0, 1, 2], pa.int32()),
        "source": pa.array(["x", "y", "z"]),
        "split": pa.array(["train"] * 3),
    }
    table = pa.table({name: column for name, column in (good | columns).items() if column is not None})
    description = {"format": "image_table", "version": 1, **DESCRIPTION} if description is None else description
    pq.write_table(table.replace_schema_metadata({"fvq": json.dumps(description)}), path)
    return path


@pytest.mark.parametrize("cache_limit", [2**30, 0])
def test_round_trip(tmp_path, monkeypatch, cache_limit):
    monkeypatch.setattr(image_table, "CACHE_LIMIT", cache_limit)
    path = tmp_path / "new" / "train.parquet"
    write(path)
    table = ImageTable.open(path)
    assert len(table) == 1030
    assert (table.dataset, table.classes, table.image_size) == ("noise", ("a", "b", "ç"), SIZE)
    assert table.labels.dtype == torch.int64 and table.labels.tolist() == [row % 3 for row in range(1030)]
    assert table.sources == [f"noise/{row}" for row in range(1030)]
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    assert table.images().dtype == torch.uint8 and table.images().is_contiguous()
    assert torch.equal(table.images(), expected)
    indices = torch.tensor([1029, 3, 3, 1024, 0])  # both row groups, out of order, one twice
    assert torch.equal(table.images(indices), expected[indices])
    assert torch.equal(table.images([7]), expected[7:8])
    assert table.images([]).shape == (0, 3, SIZE, SIZE)
    for outside in (-1, 1030):
        with pytest.raises(IndexError):
            table.images([outside])


def test_file_is_as_documented(tmp_path):
    write(tmp_path / "t.parquet")
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(2)] == [1024, 6]
    schema = file.schema_arrow
    assert dict(zip(schema.names, schema.types, strict=True)) == {
        "image": pa.binary(),
        "label": pa.int32(),
        "source": pa.string(),
        "split": pa.string(),
    }
    assert json.loads(file.metadata.metadata[b"fvq"]) == {"format": "image_table", "version": 1, **DESCRIPTION}
    rows = file.read().to_pylist()
    assert rows[5]["split"] == "train" and rows[5]["image"].startswith(b"\x89PNG")


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_pil_images_of_any_mode_and_jpeg_bytes_are_read_as_rgb(tmp_path):
    image = Image.new("LA", (SIZE, SIZE), (90, 10))
    image.info["icc_profile"] = b"x" * 5000
    write(tmp_path / "t.parquet", [ImageRecord(image, 0, "grey")])
    assert (ImageTable.open(tmp_path / "t.parquet").images() == 90).all()
    assert (tmp_path / "t.parquet").stat().st_size < 5000  # no profile in the PNG
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), 90).save(buffer, "jpeg")
    path = write_raw(tmp_path / "j.parquet", image=pa.array([buffer.getvalue()] * 3))
    assert (ImageTable.open(path).images() == 90).all()


def test_writer_streams(tmp_path):
    handed_over = 0

    def counted():
        nonlocal handed_over
        for record in records():
            handed_over += 1
            yield record
            if handed_over == 1030:
                (temporary,) = tmp_path.glob(".t.parquet*")
                assert temporary.stat().st_size > 1000 * SIZE  # the first row group is on disk already

    write(tmp_path / "t.parquet", counted())
    assert handed_over == 1030


@pytest.mark.parametrize(
    "record, complaint",
    [
        (ImageRecord(PIXELS[0], 3, "odd"), "odd: label 3 lies outside the 3 classes"),
        (ImageRecord(PIXELS[0], -1, "odd"), "odd: label -1 lies outside"),
        (ImageRecord(PIXELS[0, :4], 0, "odd"), r"odd: image of shape \(4, 8, 3\)"),
        (ImageRecord(PIXELS[0].astype(np.float32), 0, "odd"), "odd: .* type float32"),
    ],
)
def test_bad_records_are_refused_and_the_old_file_stays(tmp_path, record, complaint):
    path = tmp_path / "t.parquet"
    path.write_text("old")
    with pytest.raises(UserError, match=complaint):
        write(path, [*records(2), record])
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"] and path.read_text() == "old"


def test_no_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="the train part of noise holds no image"):
        write(tmp_path / "t.parquet", [])
    assert not list(tmp_path.iterdir())


def test_file_size_limit_leaves_no_part_and_the_old_file(tmp_path):
    """The system itself refuses to write on, as it does on a full disk."""
    path = tmp_path / "t.parquet"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=r"t\.parquet") as caught:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"] and path.read_text() == "old"


def test_full_disk_midway_leaves_no_part_and_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_text("old")
    write_table = pq.ParquetWriter.write_table
    groups = []

    def full_after_one_group(self, table, **options):
        groups.append(table.num_rows)
        if len(groups) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(self, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full_after_one_group)
    with pytest.raises(OSError, match=r"No space left on device: .*t\.parquet'$"):
        write(path)
    assert groups == [1024, 6]
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"] and path.read_text() == "old"


def test_missing_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(UserError, match=r"t\.parquet: no such file$"):
        ImageTable.open(path)
    write(path)
    whole = path.read_bytes()
    for kept in (0, 3, 1000, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"t\.parquet: not a readable Parquet file"):
            ImageTable.open(path)


@pytest.mark.parametrize("column", ["image", "source"])
def test_one_flipped_bit_is_noticed(tmp_path, column):
    path = tmp_path / "t.parquet"
    write(path)
    place = pq.ParquetFile(path).metadata.row_group(0).column(list(image_table.COLUMNS).index(column))
    damaged = bytearray(path.read_bytes())
    damaged[place.data_page_offset + place.total_compressed_size // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"t\.parquet: not a readable Parquet file"):
        ImageTable.open(path).images()


@pytest.mark.parametrize(
    "description, complaint",
    [
        ({}, "not an fvq image_table"),
        ([], "not an fvq image_table"),
        ({"format": "token_table", "version": 1}, "holds format 'token_table'"),
        ({"format": "image_table", "version": 2, **DESCRIPTION}, "version 2 .* reads version 1"),
        ({"format": "image_table", "version": 1, **DESCRIPTION, "image_size": 0}, "metadata: image_size"),
        ({"format": "image_table", "version": 1, **DESCRIPTION, "classes": []}, "metadata: classes"),
        ({"format": "image_table", "version": 1, "classes": ["a"], "image_size": 8}, "metadata: dataset: is missing"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, description, complaint):
    path = write_raw(tmp_path / "t.parquet", description)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
        ImageTable.open(path)


def test_foreign_parquet_is_refused(tmp_path):
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="not an fvq image_table"):
        ImageTable.open(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({"label": None}, "column label is missing"),
        ({"image": None}, "column image is missing"),
        ({"label": pa.array([0, 1, 2], pa.int64())}, "column label holds int64, and int32 was expected"),
        ({"label": pa.array([0, None, 2], pa.int32())}, r"row 1: label is missing \(null\)"),
        ({"split": pa.array(["train", "train", None])}, r"row 2: split is missing \(null\)"),
        ({"label": pa.array([0, 1, 3], pa.int32())}, "row 2: label 3 lies outside the 3 classes"),
        ({"label": pa.array([-1, 1, 0], pa.int32())}, "row 0: label -1 lies outside the 3 classes"),
    ],
)
def test_dirty_columns_are_refused_on_opening(tmp_path, columns, complaint):
    path = write_raw(tmp_path / "t.parquet", **columns)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
        ImageTable.open(path)


@pytest.mark.parametrize("cache_limit", [2**30, 0])
def test_dirty_images_are_refused_on_decoding(tmp_path, monkeypatch, cache_limit):
    monkeypatch.setattr(image_table, "CACHE_LIMIT", cache_limit)
    good, large = io.BytesIO(), io.BytesIO()
    Image.fromarray(PIXELS[0]).save(good, "png")
    Image.new("RGB", (SIZE + 1, SIZE)).save(large, "png")
    for bad, complaint in (
        (None, r"image is missing \(null\)"),
        (b"rubbish", "not a readable PNG or JPEG image"),
        (good.getvalue()[:-40], "not a readable PNG or JPEG image"),
        (large.getvalue(), "image of 9×8 pixels, and the table says 8×8"),
    ):
        path = write_raw(tmp_path / "t.parquet", image=pa.array([good.getvalue(), good.getvalue(), bad]))
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: row 2: {complaint}"):
            ImageTable.open(path).images([0, 2])


def test_pixel_values_survive_the_way_into_a_model_and_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    scaled = to_model_range(values)
    assert scaled.dtype == torch.float32 and scaled.min() == -1 and scaled.max() == 1
    assert torch.equal(to_uint8(scaled), values)


def test_floats_are_rounded_to_the_nearest_value_and_clamped():
    values = torch.tensor([-3.0, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.0, 1 - 0.49 / 127.5, 1.2])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert to_uint8(values.to(torch.float64)).dtype == torch.uint8


def test_threads_keep_the_order_and_pass_errors_on():
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert list(map_in_threads(abs, range(-700, 0), chunk_size=9)) == list(range(700, 0, -1))
            with pytest.raises(ZeroDivisionError):
                list(map_in_threads(lambda value: 1 // value, [1, 0]))
    finally:
        torch.set_num_threads(threads)
