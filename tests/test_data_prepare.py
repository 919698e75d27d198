"""From parameters to both image tables or manifests."""

import hashlib
import io
import json
import resource
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from scipy.io import savemat

from fvq.data.image_table import ImageTable
from fvq.data.manifest import ImageManifest
from fvq.data.prepare import index_images, prepare_images
from fvq.data.settings import Digits, EvaluationSet, ImageFolder, Originals, PhotoCrops, PrepareData
from fvq.runtime.errors import UserError, describe_validation_error

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
ORIGINALS = {
    "source": "originals",
    "train": "train",
    "validation": None,
    "validation_fraction": 0.5,
    "development_kit": None,
    "image_size": 8,
    "center_crop": "adm",
    "turn_by_exif": False,
    "unreadable": "stop",
    "unpack_folder": None,
}
EVALUATION = {"images": "val", "image_size": 8, "center_crop": "plain", "turn_by_exif": True, "unreadable": "skip"}


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
    assert isinstance(read(ORIGINALS), Originals)


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
        ({**ORIGINALS, "train": ""}, "train"),
        ({**ORIGINALS, "validation": ""}, "validation"),
        ({**ORIGINALS, "center_crop": "random"}, "center_crop"),
        ({**ORIGINALS, "unreadable": "ignore"}, "unreadable"),
        ({**ORIGINALS, "validation": "val"}, "one of validation and validation_fraction"),
        ({**ORIGINALS, "validation_fraction": None}, "one of validation and validation_fraction"),
    ],
)
def test_wrong_parameters_are_named(values, key):
    with pytest.raises(ValidationError, match=key):
        read(values)


def test_a_missing_validation_part_is_one_line():
    values = {**ORIGINALS, "validation_fraction": None}
    with pytest.raises(ValidationError) as caught:
        read(values)
    assert describe_validation_error(caught.value, "params.yaml", values) == (
        "params.yaml: one of validation and validation_fraction should be given, and the other be null"
    )


@pytest.mark.parametrize(
    "settings",
    [*(type(read(values)) for values in (PHOTOS, DIGITS, FOLDER, ORIGINALS)), EvaluationSet],
    ids=lambda settings: settings.__name__,
)
def test_no_parameter_has_a_default_and_each_is_described(settings):
    for name, field in settings.model_fields.items():
        assert field.is_required() and field.description, name


def prepare_originals(values, folder, seed=0):
    """Both manifests and the lines about them."""
    paths = folder / "train.parquet", folder / "validation.parquet"
    lines = prepare_images(read({**ORIGINALS, **values}), seed, *paths)
    return *(ImageManifest.open(path) for path in paths), lines


def records(path):
    return pq.read_table(path).to_pylist()


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_tar_of_tars(path, folder):
    files = {}
    for name in ("a", "b"):
        images = {image.name: image.read_bytes() for image in (folder / name).iterdir()}
        files[f"{name}.tar"] = write_tar(path.with_name("inner.tar"), images).read_bytes()
    return write_tar(path, files)


def test_originals_are_split_and_ordered_as_a_folder_is(tmp_path):
    make_folder(tmp_path / "images", count=6)
    tables = prepare({**FOLDER, "folder": str(tmp_path / "images")}, tmp_path / "tables", seed=3)
    *manifests, lines = prepare_originals({"train": str(tmp_path / "images")}, tmp_path / "manifests", seed=3)
    assert lines == [
        f"{part}: 6 images; 0 CMYK, 0 grey, 0 with an EXIF turn (ignored), 0 unreadable left out"
        for part in ("train", "validation")
    ]
    for table, manifest in zip(tables, manifests, strict=True):
        assert manifest.sources == table.sources and manifest.classes == table.classes == ("a", "b")
        assert manifest.labels.tolist() == table.labels.tolist()
        np.testing.assert_array_equal(manifest.images().numpy(), table.images().numpy())


def test_class_folders_tars_and_shards_hold_the_same_images(tmp_path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val", count=2)
    trees = prepare_originals(
        {"train": str(tmp_path / "train"), "validation": str(tmp_path / "val"), "validation_fraction": None},
        tmp_path / "trees",
    )
    tars = prepare_originals(
        {
            "train": str(write_tar_of_tars(tmp_path / "train.tar", tmp_path / "train")),
            "validation": str(tmp_path / "val"),
            "validation_fraction": None,
        },
        tmp_path / "tars",
    )
    names = json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}})
    for part in ("train", "val"):
        files = sorted((tmp_path / part).glob("*/*.png"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        labels = [int(file.parent.name == "b") for file in files]
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": names})
        pq.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    shards = prepare_originals(
        {
            "train": str(tmp_path / "train-*.parquet"),
            "validation": str(tmp_path / "val-*.parquet"),
            "validation_fraction": None,
            "unpack_folder": str(tmp_path / "unpacked"),
        },
        tmp_path / "shards",
    )
    for other in (tars, shards):
        for ours, theirs in zip(trees[:2], other[:2], strict=True):
            assert theirs.classes == ours.classes and theirs.labels.tolist() == ours.labels.tolist()
            np.testing.assert_array_equal(theirs.images().numpy(), ours.images().numpy())
    assert tars[0].sources == trees[0].sources
    for path in (tmp_path / "trees", tmp_path / "tars", tmp_path / "shards"):
        for part in ("train", "validation"):
            for row in records(path / f"{part}.parquet"):
                stored = Path(row["file"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
                assert hashlib.sha256(stored).digest() == row["sha256"]


def test_order_mixes_the_classes_and_follows_from_the_seed(tmp_path):
    make_folder(tmp_path / "images", count=40)
    values = {"train": str(tmp_path / "images"), "validation": str(tmp_path / "images"), "validation_fraction": None}
    train, validation, _ = prepare_originals(values, tmp_path / "one")
    for manifest in (train, validation):
        assert 5 <= int(manifest.labels[:40].sum()) <= 35
    assert train.sources != validation.sources
    prepare_originals(values, tmp_path / "again")
    for part in ("train.parquet", "validation.parquet"):
        assert (tmp_path / "again" / part).read_bytes() == (tmp_path / "one" / part).read_bytes()
    assert prepare_originals(values, tmp_path / "other", seed=1)[0].sources != train.sources


def test_validation_tar_with_the_development_kit(tmp_path):
    make_folder(tmp_path / "train")
    truth = [2, 1, 2, 2]  # b is 1 and a is 2
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    kit = tmp_path / "kit" / "data"
    kit.mkdir(parents=True)
    savemat(kit / "meta.mat", {"synsets": np.array([(1, "b", 0), (2, "a", 0)], dtype=fields)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{line}\n" for line in truth))
    image = (tmp_path / "train" / "a" / "0.png").read_bytes()
    names = [f"ILSVRC2012_val_{number:08d}.png" for number in range(1, 5)]
    write_tar(tmp_path / "val.tar", dict.fromkeys(names, image))
    values = {
        "train": str(tmp_path / "train"),
        "validation": str(tmp_path / "val.tar"),
        "validation_fraction": None,
        "development_kit": str(kit.parent),
    }
    _, validation, _ = prepare_originals(values, tmp_path / "out")
    labels = dict(zip(validation.sources, validation.labels.tolist(), strict=True))
    assert labels == {f"{'ba'[line - 1]}/{name}": 2 - line for name, line in zip(names, truth, strict=True)}
    for change, reason in (
        ({"development_kit": None}, r"val\.tar: a tar of images has no labels; prepare_data\.development_kit must"),
        ({"train": str(tmp_path / "other")}, r"val\.tar: its classes are not those of .*only one holds b and 1 more"),
    ):
        (tmp_path / "other" / "c").mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / "a").mkdir(exist_ok=True)
        for name in ("a", "c"):
            (tmp_path / "other" / name / "0.png").write_bytes(image)
        with pytest.raises(UserError, match=reason):
            prepare_originals({**values, **change}, tmp_path / "out")


def test_unreadable_originals_are_counted_or_leave_both_old_manifests(tmp_path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val")
    (tmp_path / "val" / "b" / "2.png").write_text("no image")
    values = {"train": str(tmp_path / "train"), "validation": str(tmp_path / "val"), "validation_fraction": None}
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.parquet").write_text("old train")
    with pytest.raises(UserError, match=r"^\S*val/b/2\.png: not a readable image \(.*\); unreadable: skip leaves it"):
        prepare_originals(values, out)
    assert [entry.name for entry in out.iterdir()] == ["train.parquet"]
    assert (out / "train.parquet").read_text() == "old train"
    _, validation, lines = prepare_originals({**values, "unreadable": "skip"}, out)
    assert validation.info.unreadable == ["b/2.png"] and len(validation) == 7
    assert lines[1].startswith("validation: 7 images; ") and lines[1].endswith(" 1 unreadable left out")
    split = {"train": str(tmp_path / "val"), "unreadable": "skip"}
    train, validation, _ = prepare_originals(split, out)
    assert (len(train) + len(validation), train.info.unreadable, validation.info.unreadable) == (7, ["b/2.png"], [])


def test_a_single_image_in_each_class_leaves_none_to_hold_out(tmp_path):
    make_folder(tmp_path / "images", count=1)
    with pytest.raises(UserError, match="one image in each class leaves none for validation"):
        prepare_originals({"train": str(tmp_path / "images")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_evaluation_set_is_one_manifest(tmp_path):
    folder = tmp_path / "val2017"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (9, 12), (number, 0, 0)).save(folder / f"{number:012d}.png")
    (folder / "cut.png").write_bytes(b"\x89PNG")
    settings = EvaluationSet(**{**EVALUATION, "images": str(folder)})
    line = index_images(settings, tmp_path / "coco.parquet")
    assert line == "val2017: 30 images; 0 CMYK, 0 grey, 0 with an EXIF turn (applied), 1 unreadable left out"
    manifest = ImageManifest.open(tmp_path / "coco.parquet")
    assert (manifest.dataset, manifest.classes) == ("val2017", ("val2017",))
    assert manifest.info.center_crop == "plain" and manifest.info.turn_by_exif and manifest.image_size == 8
    numbers = [int(source.removesuffix(".png")) for source in manifest.sources]
    assert numbers != sorted(numbers) and sorted(numbers) == list(range(30))
    np.testing.assert_array_equal(manifest.images()[:, 0, 4, 4].numpy(), numbers)
    with pytest.raises(UserError, match="no such file or folder"):
        index_images(EvaluationSet(**EVALUATION), tmp_path / "coco.parquet")
    assert len(ImageManifest.open(tmp_path / "coco.parquet")) == 30


def test_other_sources_tell_how_many_images_they_wrote(tmp_path):
    lines = prepare_images(read(DIGITS), 0, tmp_path / "train.parquet", tmp_path / "validation.parquet")
    assert lines == ["train: 1,438 images", "validation: 359 images"]
