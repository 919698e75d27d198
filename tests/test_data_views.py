"""Named views, against torchvision's TenCrop of the image scaled as guided-diffusion and LlamaGen scale it."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import TenCrop
from torchvision.transforms import functional as vision

from fvq.data import image_table
from fvq.data.crops import center_crop_adm, center_crop_plain
from fvq.data.image_table import ImageTable, write_image_table
from fvq.data.manifest import ImageManifest, ManifestInfo, ManifestRecord, write_manifest
from fvq.data.records import ImageRecord
from fvq.data.views import View, cut_views, describe_crops, expand_views, parse_view
from fvq.runtime.errors import UserError

ASSETS = Path(os.environ.get("FVQ_TEST_ASSETS", Path(__file__).parents[1] / ".." / "shared"))
TEN = (
    "top_left@1.1",
    "top_right@1.1",
    "bottom_left@1.1",
    "bottom_right@1.1",
    "center@1.1",
    "top_left@1.1_flip",
    "top_right@1.1_flip",
    "bottom_left@1.1_flip",
    "bottom_right@1.1_flip",
    "center@1.1_flip",
)
SINGLE = ("center", "center_flip", *TEN)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensor(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def scaled_square(image, side):
    """The centre square of an image whose shorter side is scaled to ``side`` as guided-diffusion scales."""
    while min(image.size) >= 2 * side:
        image = image.resize(tuple(length // 2 for length in image.size), Image.Resampling.BOX)
    factor = side / min(image.size)
    image = image.resize(tuple(round(length * factor) for length in image.size), Image.Resampling.BICUBIC)
    rows, columns = (image.height - side) // 2, (image.width - side) // 2
    return Image.fromarray(np.asarray(image)[rows : rows + side, columns : columns + side])


def published_ten(image, size, scale):
    return tensor(TenCrop(size)(scaled_square(image, int(size * scale))))


def cut(image, names, size, center_crop=center_crop_adm):
    views = cut_views(image, [parse_view(name) for name in names], size, center_crop)
    assert views.shape == (len(names), size, size, 3) and views.dtype == np.uint8
    return torch.from_numpy(views).permute(0, 3, 1, 2)


def manifest(path, photos, size, center_crop="adm"):
    records = []
    for photo in photos:
        encoded = photo.read_bytes()
        with Image.open(photo) as image:
            width, height, mode = image.width, image.height, image.mode
        digest = hashlib.sha256(encoded).digest()
        records.append(ManifestRecord(str(photo), 0, len(encoded), 0, photo.name, width, height, mode, 1, digest))
    described = {"dataset": "d", "classes": ["a"], "image_size": size, "turn_by_exif": False, "unreadable": []}
    write_manifest(path, records, ManifestInfo(center_crop=center_crop, **described))
    return ImageManifest.open(path)


def table(path, squares):
    records = [ImageRecord(square, 0, "x") for square in squares]
    size = squares[0].width
    write_image_table(path, records, dataset="d", classes=["a"], image_size=size, split="train")
    return ImageTable.open(path)


def test_several_at_once_are_written_out_in_order():
    assert expand_views(["adm"]) == ("center", "center_flip")
    assert expand_views(["ten_crop@1.1"]) == TEN
    assert expand_views(("center_flip", "ten_crop@1.05", "center")) == (
        "center_flip",
        *(name.replace("@1.1", "@1.05") for name in TEN),
        "center",
    )
    assert expand_views(SINGLE) == SINGLE
    assert expand_views(["adm", "ten_crop@1.1", "ten_crop@2"])[2:12] == TEN


def test_names_say_place_scale_and_flip():
    assert parse_view("center") == View("center", None, False)
    assert parse_view("bottom_right@1.25_flip") == View("bottom_right", 1.25, True)


@pytest.mark.parametrize(
    "name", ["", "centre", "_flip", "shift_tl", "top_left", "center_flip_flip", "center@", "ten_crop"]
)
@pytest.mark.parametrize("spoilt", ["{}", "{}@1.1_flip_flip", "{}@-1.1", "{}@1.1@1.1", "{} ", "{}@1e-1", "{}@nan"])
def test_unknown_views_list_the_known_ones(name, spoilt):
    with pytest.raises(
        UserError, match=r"is unknown; there are center, .* top_left@1\.1, .*_flip, .*adm and ten_crop@1\.1$"
    ) as caught:
        expand_views(["center", spoilt.format(name)])
    assert str(caught.value).startswith(f"view {spoilt.format(name)!r} is")


@pytest.mark.parametrize("name", ["center@1", "top_left@0.9_flip", "center@2.01", "ten_crop@1.0", "ten_crop@10"])
def test_scales_out_of_range_are_refused(name):
    with pytest.raises(UserError, match=r"^view '.+@.+': the scale must be above 1 and at most 2$"):
        expand_views([name])


@pytest.mark.parametrize(
    ("names", "twice"),
    [
        (["center", "center"], "center"),
        (["center_flip", "adm"], "center_flip"),
        (["ten_crop@1.1", "top_right@1.1"], "top_right@1.1"),
        (["center@1.1", "center@1.10"], "center@1.10"),
    ],
)
def test_views_named_twice_are_refused(names, twice):
    with pytest.raises(UserError, match=f"^view '{twice}' is named twice$"):
        expand_views(names)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(3, 120),
    height=st.integers(3, 120),
    size=st.integers(4, 31),
    scale=st.integers(101, 200).map(lambda percent: f"{percent / 100:g}"),
)
def test_scaled_views_are_llamagens(width, height, size, scale):
    assume(int(size * float(scale)) > size)
    image = noise(width, height)
    found = cut(image, expand_views([f"ten_crop@{scale}"]), size)
    assert torch.equal(found, published_ten(image, size, float(scale)))


@pytest.mark.parametrize(
    ("scale", "size", "least"), [(1.1, 9, 1.112), (1.003, 256, 1.004), (1.01, 64, 1.016), (1.2, 4, 1.25)]
)
def test_scales_too_small_for_the_size_are_refused(tmp_path, scale, size, least):
    noise(30, 20).save(tmp_path / "0.png")
    image, names = noise(20, 20), [f"ten_crop@{scale}"]
    complaint = (
        rf"^views at scale {scale}: the square to cut views of {size} pixels from has int\({size} · {scale}\) = "
        rf"{size}, no more than a view; the scale must be {least} or larger$"
    )
    for work in (
        lambda: cut(image, expand_views(names), size),
        lambda: describe_crops(["center", *names], size, "adm"),
        lambda: manifest(tmp_path / "m.parquet", [tmp_path / "0.png"], size).views([0], names),
    ):
        with pytest.raises(UserError, match=complaint):
            work()
    assert cut(image, [f"center@{least}"], size).shape == (1, 3, size, size)


@pytest.mark.parametrize(
    ("names", "center_crop", "text"),
    [
        (["adm"], None, "as stored, 256 pixels a side"),
        (["adm"], "plain", "centre crop plain to 256"),
        (["ten_crop@1.1"], "plain", "centre crop adm to 281 for scale 1.1"),
        (["ten_crop@1.1"], None, "as stored, enlarged from 256 to 281 for scale 1.1"),
        (
            ["center@1.05", "adm", "ten_crop@1.1"],
            "plain",
            "centre crop adm to 268 for scale 1.05; centre crop plain to 256; centre crop adm to 281 for scale 1.1",
        ),
    ],
)
def test_crops_in_words(names, center_crop, text):
    assert describe_crops(names, 256, center_crop) == text


def test_views_without_scale_are_the_centre_crop_that_is_given():
    image = noise(37, 50)
    for crop in (center_crop_adm, center_crop_plain):
        center = np.asarray(crop(image, 16))
        expected = tensor([center, center[:, ::-1]])
        assert torch.equal(cut(image, ["center", "top_left@1.5", "center_flip"], 16, crop)[[0, 2]], expected)


def test_views_of_a_picture_without_symmetry_all_differ():
    views = cut(noise(90, 70), (*SINGLE, "center@1.2", "top_left@1.2"), 32)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(views, 2))


@pytest.mark.parametrize("center_crop", ["adm", "plain"])
def test_views_of_a_manifest(tmp_path, center_crop):
    sizes = [(40, 25), (20, 33), (9, 30), (16, 16), (70, 71)]
    pictures = [noise(*size, seed=number) for number, size in enumerate(sizes)]
    photos = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for picture, photo in zip(pictures, photos, strict=True):
        picture.save(photo)
    images = manifest(tmp_path / "m.parquet", photos, 16, center_crop)
    indices = torch.tensor([4, 1, 1, 0])
    found = images.views(indices, ("center_flip", "ten_crop@1.3", "center"))
    assert found.dtype == torch.uint8 and found.is_contiguous() and found.shape == (4, 12, 3, 16, 16)
    assert torch.equal(found[:, -1], images.images(indices))
    assert torch.equal(found[:, 0], vision.hflip(images.images(indices)))
    for index, views in zip(indices.tolist(), found, strict=True):
        assert torch.equal(views[1:11], published_ten(pictures[index], 16, 1.3))
    assert images.views([], ["adm"]).shape == (0, 2, 3, 16, 16)


@pytest.mark.parametrize("cache_limit", [2**30, 0])
def test_views_of_a_table_are_cut_from_its_enlarged_squares(tmp_path, monkeypatch, cache_limit):
    monkeypatch.setattr(image_table, "CACHE_LIMIT", cache_limit)
    squares = [noise(16, 16, seed) for seed in range(3)]
    images = table(tmp_path / "t.parquet", squares)
    indices = torch.tensor([2, 0, 2])
    found = images.views(indices, ["ten_crop@1.1", "adm"])
    assert found.dtype == torch.uint8 and found.is_contiguous() and found.shape == (3, 12, 3, 16, 16)
    for index, views in zip(indices.tolist(), found, strict=True):
        enlarged = squares[index].resize((17, 17), Image.Resampling.BICUBIC)
        assert torch.equal(views[:10], tensor(TenCrop(16)(enlarged)))
    assert torch.equal(found[:, 10], images.images(indices))
    assert torch.equal(found[:, 11], vision.hflip(images.images(indices)))
    assert images.views([], ["adm"]).shape == (0, 2, 3, 16, 16)


def test_wrong_views_and_rows_are_refused(tmp_path):
    noise(20, 20).save(tmp_path / "0.png")
    for images in (
        table(tmp_path / "t.parquet", [noise(8, 8)]),
        manifest(tmp_path / "m.parquet", [tmp_path / "0.png"], 8),
    ):
        with pytest.raises(UserError, match="view 'middle' is unknown"):
            images.views([0], ["middle"])
        with pytest.raises(UserError, match="view 'center' is named twice"):
            images.views([0], ["adm", "center"])
        with pytest.raises(IndexError):
            images.views([1], ["center"])


def test_views_do_not_depend_on_threads(tmp_path):
    noise(50, 40).save(tmp_path / "0.png")
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            images = (
                table(tmp_path / "t.parquet", [noise(16, 16, seed) for seed in range(5)]),
                manifest(tmp_path / "m.parquet", [tmp_path / "0.png"] * 5, 16),
            )
            found.append([one.views(range(5), SINGLE) for one in images])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_real_photographs(tmp_path):
    folder = ASSETS / "data" / "clothing-small"
    if not folder.is_dir():
        pytest.skip(f"the photographs are not in {folder}")
    photos = sorted(folder.glob("*/*.jpg"))[::40]
    images = manifest(tmp_path / "m.parquet", photos, 128)
    assert len(images) >= 5
    found = images.views(range(len(images)), ["ten_crop@1.1", "ten_crop@1.05"])
    for views, photo in zip(found, photos, strict=True):
        with Image.open(photo) as original:
            picture = original.convert("RGB")
        assert torch.equal(views[:10], published_ten(picture, 128, 1.1))
        assert torch.equal(views[10:], published_ten(picture, 128, 1.05))
