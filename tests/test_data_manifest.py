"""Manifests: images read from where they lie, the same as their files give, and errors that name row and file."""

import hashlib
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from fvq.data import manifest
from fvq.data.crops import center_crop_adm, center_crop_plain, random_crop
from fvq.data.decoding import read_rgb_image
from fvq.data.image_table import ImageTable, write_image_table
from fvq.data.manifest import COLUMNS, ImageManifest, ManifestInfo, ManifestRecord, write_manifest
from fvq.data.open import open_images
from fvq.data.records import ImageRecord
from fvq.runtime.errors import UserError

ASSETS = Path(os.environ.get("FVQ_TEST_ASSETS", Path(__file__).parents[1] / ".." / "shared"))
SIZE = 16


def info_for(**changes):
    values = {
        "dataset": "noise",
        "classes": ["a", "b", "ç"],
        "image_size": SIZE,
        "center_crop": "adm",
        "turn_by_exif": True,
        "unreadable": [],
    }
    return ManifestInfo(**(values | changes))


def record(path, label=0, offset=0, length=None, **changes):
    encoded = path.read_bytes()[offset : None if length is None else offset + length]
    with Image.open(io.BytesIO(encoded)) as image:
        width, height, mode, orientation = image.width, image.height, image.mode, image.getexif().get(0x0112, 1)
    digest = hashlib.sha256(encoded).digest()
    whole = ManifestRecord(str(path), offset, len(encoded), label, path.name, width, height, mode, orientation, digest)
    return whole._replace(**changes)


@pytest.fixture
def photos(tmp_path):
    """Files of several kinds and sizes, larger and smaller than the crop; the second is turned by EXIF."""
    rng = np.random.default_rng(0)
    paths = []
    for number, (name, width, height) in enumerate(
        [("0.png", 40, 25), ("1.jpg", 20, 33), ("2.png", 9, 30), ("3.webp", 16, 16), ("4.png", 70, 71)]
    ):
        exif = Image.Exif()
        if number == 1:
            exif[0x0112] = 6
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        (image.convert("L") if number == 3 else image).save(tmp_path / name, exif=exif)
        paths.append(tmp_path / name)
    return paths


def write(path, records, **changes):
    write_manifest(path, records, info_for(**changes))
    return path


def stacked(crops):
    return torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("cache_limit", [2**30, 0])
@pytest.mark.parametrize("name, crop", [("adm", center_crop_adm), ("plain", center_crop_plain)])
def test_images_are_the_centre_crops_of_the_files(tmp_path, monkeypatch, photos, cache_limit, name, crop):
    monkeypatch.setattr(manifest, "CACHE_LIMIT", cache_limit)
    monkeypatch.setattr(manifest, "_GROUP_ROWS", 2)  # several row groups
    path = write(tmp_path / "m.parquet", [record(photo, n % 3) for n, photo in enumerate(photos)], center_crop=name)
    images = ImageManifest.open(path)
    assert (images.path, images.dataset, images.classes, images.image_size) == (path, "noise", ("a", "b", "ç"), SIZE)
    assert len(images) == 5 and images.fits_in_memory == (cache_limit > 0)
    assert images.labels.dtype == torch.int64 and images.labels.tolist() == [0, 1, 2, 0, 1]
    assert images.sources == [photo.name for photo in photos]
    expected = stacked([crop(read_rgb_image(photo), SIZE) for photo in photos])
    assert images.images().dtype == torch.uint8 and images.images().is_contiguous()
    assert torch.equal(images.images(), expected)
    indices = torch.tensor([4, 1, 1, 0])
    assert torch.equal(images.images(indices), expected[indices])
    assert images.images([]).shape == (0, 3, SIZE, SIZE)
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            images.images([outside])


@pytest.mark.parametrize("cache_limit", [2**30, 0])
def test_random_crops_follow_their_draws(tmp_path, monkeypatch, photos, cache_limit):
    monkeypatch.setattr(manifest, "CACHE_LIMIT", cache_limit)
    images = ImageManifest.open(write(tmp_path / "m.parquet", map(record, photos)))
    indices = [3, 0, 0, 4]
    draws = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = stacked(
        random_crop(read_rgb_image(photos[index]), SIZE, 0.5, 0.9, triple)
        for index, triple in zip(indices, draws.tolist(), strict=True)
    )
    assert torch.equal(images.random_crops(torch.tensor(indices), draws, 0.5, 0.9), expected)


def test_exif_is_left_alone_where_the_manifest_says_so(tmp_path, photos):
    images = ImageManifest.open(write(tmp_path / "m.parquet", [record(photos[1])], turn_by_exif=False))
    with Image.open(photos[1]) as stored:
        assert torch.equal(images.images(), stacked([center_crop_adm(stored.convert("RGB"), SIZE)]))


def test_originals_that_fit_are_decoded_once(tmp_path, monkeypatch, photos):
    decoded = []
    decode = manifest.decode_rgb
    monkeypatch.setattr(manifest, "decode_rgb", lambda *given, **named: decoded.append(1) or decode(*given, **named))
    path = write(tmp_path / "m.parquet", map(record, photos))
    pixels = sum(3 * read_rgb_image(photo).width * read_rgb_image(photo).height for photo in photos)
    for limit, expected in ((pixels, 5), (pixels - 1, 10)):
        monkeypatch.setattr(manifest, "CACHE_LIMIT", limit)
        decoded.clear()
        images = ImageManifest.open(path)
        images.images()
        images.random_crops([1, 2], torch.zeros(2, 3), 0.8, 1)
        images.images([0])
        images.views([3, 0], ["adm", "ten_crop@1.1", "ten_crop@1.5"])
        assert len(decoded) == expected


def test_images_in_archives_are_read_at_their_place_and_few_archives_stay_open(tmp_path, monkeypatch, photos):
    monkeypatch.setattr(manifest, "CACHE_LIMIT", 0)
    monkeypatch.setattr(manifest, "_OPEN_FILES", 2)
    records, expected = [], []
    for number in range(4):
        archive = tmp_path / f"{number}.tar"
        with tarfile.open(archive, "w") as writer:
            for photo in photos:
                writer.add(photo, photo.name)
        with tarfile.open(archive) as reader:
            records += [record(archive, offset=member.offset_data, length=member.size) for member in reader]
        expected += [center_crop_adm(read_rgb_image(photo), SIZE) for photo in photos]
    records.append(record(photos[0]))
    expected.append(center_crop_adm(read_rgb_image(photos[0]), SIZE))
    path = write(tmp_path / "m.parquet", records)

    def open_files():
        folder = Path("/proc/self/fd")
        targets = [Path(os.path.realpath(link)) for link in folder.iterdir()]
        return sorted(target.name for target in targets if target.parent == tmp_path)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        images = ImageManifest.open(path)
        order = torch.randperm(21, generator=torch.Generator().manual_seed(0)).repeat(5)
        assert torch.equal(images.images(order), stacked(expected)[order])
    finally:
        torch.set_num_threads(threads)
    images.images([0, 5, 10, 20])
    assert open_files() == ["1.tar", "2.tar", "m.parquet"]
    del images
    assert open_files() == []


def test_pickle_holds_the_path_alone(tmp_path, photos):
    images = ImageManifest.open(write(tmp_path / "m.parquet", map(record, photos)))
    pixels = images.images()
    write_image_table(
        tmp_path / "t.parquet",
        [ImageRecord(pixels[0].permute(1, 2, 0).numpy(), 0, "x")],
        dataset="d",
        classes=["a"],
        image_size=SIZE,
        split="train",
    )
    table = ImageTable.open(tmp_path / "t.parquet")
    for whole in (images, table):
        whole.images()
        pickled = pickle.dumps(whole)
        assert len(pickled) < 1000
        assert torch.equal(pickle.loads(pickled).images(), whole.images())


@pytest.mark.parametrize("cache_limit", [2**30, 0])
def test_files_that_changed_are_named(tmp_path, monkeypatch, photos, cache_limit):
    monkeypatch.setattr(manifest, "CACHE_LIMIT", cache_limit)
    path = write(tmp_path / "m.parquet", map(record, photos))
    whole = photos[2].read_bytes()

    def complaint():
        with pytest.raises(UserError) as caught:
            ImageManifest.open(path).images([0, 2])
        return str(caught.value).removeprefix(f"{path}: row 2 (2.png): ")

    photos[2].write_bytes(whole[:-1])
    assert complaint() == f"{photos[2]} changed since it was indexed: it ends before byte {len(whole)}"
    photos[2].write_bytes(b"x" * len(whole))
    changed = f"{photos[2]} changed since it was indexed: not a readable image (no image format that Pillow knows)"
    assert complaint() == changed
    photos[2].unlink()
    assert complaint() == f"{photos[2]}: No such file or directory"


def test_an_unreadable_image_that_did_not_change_is_said_to_be_so(tmp_path, photos):
    good = record(photos[0])
    photos[0].write_bytes(b"rubbish")
    bad = good._replace(length=7, sha256=hashlib.sha256(b"rubbish").digest())
    path = write(tmp_path / "m.parquet", [bad])
    with pytest.raises(UserError, match=r"row 0 \(0\.png\): \S+0\.png: not a readable image \(no image format"):
        ImageManifest.open(path).images()


def test_no_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="noise: holds no readable image"):
        write(tmp_path / "m.parquet", [])


GOOD = {
    "file": pa.array(["x.jpg"] * 3),
    "offset": pa.array([0] * 3, pa.int64()),
    "length": pa.array([9] * 3, pa.int64()),
    "label": pa.array([0, 1, 2], pa.int32()),
    "source": pa.array(["x", "y", "z"]),
    "width": pa.array([8] * 3, pa.int32()),
    "height": pa.array([8] * 3, pa.int32()),
    "mode": pa.array(["RGB"] * 3),
    "orientation": pa.array([1] * 3, pa.int8()),
    "sha256": pa.array([bytes(32)] * 3, pa.binary(32)),
}


def write_raw(path, description=None, **columns):
    """A manifest made without the writer: three good rows unless ``columns`` or ``description`` say otherwise."""
    table = pa.table({name: column for name, column in (GOOD | columns).items() if column is not None})
    whole = {"format": "image_manifest", "version": 1, **info_for().model_dump()}
    pq.write_table(table.replace_schema_metadata({"fvq": json.dumps(whole | (description or {}))}), path)
    return path


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({"sha256": None}, "column sha256 is missing"),
        ({"offset": pa.array([0] * 3, pa.int32())}, "column offset holds int32, and int64 was expected"),
        ({"file": pa.array(["x", None, "z"])}, r"row 1: file is missing \(null\)"),
        ({"label": pa.array([0, 1, 3], pa.int32())}, "row 2: label 3 lies outside the 3 classes"),
        ({"label": pa.array([0, -1, 2], pa.int32())}, "row 1: label -1 lies outside the 3 classes"),
        ({"length": pa.array([9, 0, 9], pa.int64())}, "row 1: length 0 cannot be"),
        ({"offset": pa.array([-1, 0, 9], pa.int64())}, "row 0: offset -1 cannot be"),
        ({"width": pa.array([-8, 8, 8], pa.int32())}, "row 0: width -8 cannot be"),
        ({name: column[:0] for name, column in GOOD.items()}, "holds no image"),
    ],
)
def test_dirty_columns_are_refused_on_opening(tmp_path, columns, complaint):
    assert list(GOOD) == list(COLUMNS)
    path = write_raw(tmp_path / "m.parquet", **columns)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
        ImageManifest.open(path)


@pytest.mark.parametrize(
    "description, complaint",
    [
        ({"center_crop": "middle"}, "metadata: center_crop"),
        ({"image_size": 0}, "metadata: image_size"),
        ({"version": 2}, "version 2 .* reads version 1"),
        ({"format": "token_table"}, "holds format 'token_table', and 'image_manifest' was expected"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, description, complaint):
    path = write_raw(tmp_path / "m.parquet", description)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {complaint}"):
        ImageManifest.open(path)


def test_damaged_manifests_are_refused(tmp_path):
    path = write_raw(tmp_path / "m.parquet")
    whole = path.read_bytes()
    for kept in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        for opener in (ImageManifest.open, open_images):
            with pytest.raises(UserError, match=r"m\.parquet: not a readable Parquet file"):
                opener(path)


def test_either_format_is_opened_by_its_name(tmp_path, photos):
    path = write(tmp_path / "m.parquet", map(record, photos))
    assert isinstance(open_images(path), ImageManifest)
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    described = {"dataset": "d", "classes": ["a"], "image_size": SIZE, "split": "train"}
    write_image_table(tmp_path / "t.parquet", [ImageRecord(pixels, 0, "x")], **described)
    assert isinstance(open_images(str(tmp_path / "t.parquet")), ImageTable)
    with pytest.raises(UserError, match=r"gone\.parquet: no such file"):
        open_images(tmp_path / "gone.parquet")
    expected = "and 'image_table' or 'image_manifest' was expected"
    other = write_raw(tmp_path / "o.parquet", {"format": "token_table"})
    with pytest.raises(UserError, match=rf"o\.parquet: holds format 'token_table', {expected}"):
        open_images(other)
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "f.parquet")
    with pytest.raises(UserError, match=rf"f\.parquet: holds no fvq format, {expected}"):
        open_images(tmp_path / "f.parquet")


def test_real_photographs(tmp_path):
    folder = ASSETS / "data" / "clothing-small"
    if not folder.is_dir():
        pytest.skip(f"the photographs are not in {folder}")
    photos = sorted(folder.glob("*/*.jpg"))[::60]
    images = ImageManifest.open(write(tmp_path / "m.parquet", map(record, photos), image_size=128))
    assert len(images) >= 5
    for crop_chw, photo in zip(images.images(), photos, strict=True):
        with Image.open(photo) as original:
            fitted = ImageOps.fit(original.convert("RGB"), (128, 128), Image.Resampling.BICUBIC)
        crop = Image.fromarray(crop_chw.permute(1, 2, 0).numpy())
        # The same scene; halvings by boxes leave other details.
        coarse = [np.asarray(image.reduce(8), np.float32) for image in (crop, fitted)]
        assert np.abs(coarse[0] - coarse[1]).mean() < 3
    draws = torch.rand(len(photos), 3, generator=torch.Generator().manual_seed(0))
    assert all(crop.float().std() > 5 for crop in images.random_crops(range(len(photos)), draws, 0.8, 1.0))
