"""From parameters to both image tables."""

import resource

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fvq.data.image_table import ImageTable
from fvq.data.prepare import prepare_images
from fvq.data.settings import Digits, ImageFolder, PhotoCrops, PrepareData
from fvq.runtime.errors import UserError

PHOTOS = {
    "source": "photos",
    "image_size": 32,
    "train_crops": 120,
    "validation_crops": 30,
    "crop_side_min": 32,
    "crop_side_max": 48,
    "short_side_max": 512,
}
DIGITS = {"source": "digits", "image_size": 32, "validation_fraction": 0.2}
FOLDER = {"source": "folder", "folder": "images", "image_size": 8, "validation_fraction": 0.5}


def read(values):
    return TypeAdapter(PrepareData).validate_python(values)


def prepare(values, folder, seed=0):
    paths = folder / "train.parquet", folder / "validation.parquet"
    prepare_images(read(values), seed, *paths)
    return [ImageTable.open(path) for path in paths]


def make_folder(folder, count=4):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 12), (number, 0, 0)).save(folder / name / f"{number}.png")


def test_photos(tmp_path):
    train, validation = prepare(PHOTOS, tmp_path)
    assert (len(train), len(validation)) == (120, 30)
    assert train.classes == validation.classes and len(train.classes) == 10
    assert train.labels.bincount().tolist() == [12] * 10
    assert train.images().float().std() > 20
    prepare(PHOTOS, tmp_path / "again")
    assert (tmp_path / "again" / "train.parquet").read_bytes() == (tmp_path / "train.parquet").read_bytes()
    (other, _) = prepare(PHOTOS, tmp_path / "other", seed=1)
    assert other.sources != train.sources


def test_digits(tmp_path):
    train, validation = prepare(DIGITS, tmp_path)
    assert len(train) + len(validation) == 1797
    assert train.dataset == "digits"
    assert set(train.sources).isdisjoint(validation.sources)


def test_folder(tmp_path):
    make_folder(tmp_path / "images")
    train, validation = prepare({**FOLDER, "folder": str(tmp_path / "images")}, tmp_path)
    assert (len(train), len(validation)) == (4, 4)
    for table in (train, validation):
        numbers = [int(source.split("/")[1].removesuffix(".png")) for source in table.sources]
        np.testing.assert_array_equal(table.images()[:, 0, 4, 4].numpy(), numbers)


def test_an_image_damaged_in_the_validation_part_leaves_both_old_tables(tmp_path):
    make_folder(tmp_path / "images" / "train")
    make_folder(tmp_path / "images" / "val")
    (tmp_path / "images" / "val" / "b" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.parquet").write_text("old train")
    with pytest.raises(UserError, match=r"val/b/2\.png: not a readable image"):
        prepare({**FOLDER, "folder": str(tmp_path / "images")}, out)
    assert [entry.name for entry in out.iterdir()] == ["train.parquet"]
    assert (out / "train.parquet").read_text() == "old train"


def test_full_disk_at_the_second_table_leaves_neither(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        with pytest.raises(OSError, match=r"\.parquet"):
            prepare({**PHOTOS, "train_crops": 20, "validation_crops": 200}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_missing_folder_stops_before_any_output(tmp_path):
    with pytest.raises(UserError, match=r"^prepare_data\.folder: there is no folder .*nowhere$"):
        prepare({**FOLDER, "folder": str(tmp_path / "nowhere")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_are_told_apart_by_their_source():
    assert isinstance(read(PHOTOS), PhotoCrops)
    assert isinstance(read(DIGITS), Digits)
    assert isinstance(read(FOLDER), ImageFolder)


@pytest.mark.parametrize(
    "values, key",
    [
        ({**PHOTOS, "image_size": 0}, "image_size"),
        ({**PHOTOS, "train_crops": -1}, "train_crops"),
        ({**PHOTOS, "validation_crops": 0}, "validation_crops"),
        ({**PHOTOS, "short_side_max": 0}, "short_side_max"),
        ({**PHOTOS, "crop_side_min": 49}, "crop_side_min"),
        ({**PHOTOS, "crop_sides": 3}, "crop_sides"),
        ({**DIGITS, "validation_fraction": 0.0}, "validation_fraction"),
        ({**DIGITS, "validation_fraction": 1.0}, "validation_fraction"),
        ({**FOLDER, "folder": ""}, "folder"),
        ({**FOLDER, "train_crops": 10}, "train_crops"),
        ({**DIGITS, "source": "mnist"}, "source"),
    ],
)
def test_wrong_parameters_are_named(values, key):
    with pytest.raises(ValidationError, match=key):
        read(values)


@pytest.mark.parametrize("values", [PHOTOS, DIGITS, FOLDER], ids=lambda values: values["source"])
def test_no_parameter_has_a_default_and_each_is_described(values):
    for name, field in type(read(values)).model_fields.items():
        assert field.is_required() and field.description, name
