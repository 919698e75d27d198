"""Folders of class folders: what is read, and what is refused."""

import io
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from fvq.data.crops import center_crop_adm
from fvq.data.decoding import read_rgb_image
from fvq.data.settings import ImageFolder
from fvq.data.sources.folder import open_folder
from fvq.runtime.errors import UserError


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def settings_for(folder, **changes):
    values = {"source": "folder", "folder": str(folder), "image_size": 8, "validation_fraction": 0.25}
    return ImageFolder(**(values | changes))


def make_classes(folder, **counts):
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise(12, 10, seed=100 * label + number).save(folder / name / f"{number}.png")


def test_classes_are_the_sorted_folders_and_each_is_split(tmp_path):
    make_classes(tmp_path, dog=8, cat=4, bird=2, ant=1)
    noise(9, 9).save(tmp_path / "cat" / "UPPER.JPEG")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / "._0.png").write_text("a leaving of another system")
    (tmp_path / ".cache").mkdir()
    source = open_folder(settings_for(tmp_path), seed=1)
    assert source.classes == ("ant", "bird", "cat", "dog")
    train, validation = list(source.train), list(source.validation)
    assert np.bincount([row.label for row in train]).tolist() == [1, 1, 4, 6]
    assert np.bincount([row.label for row in validation], minlength=4).tolist() == [0, 1, 1, 2]
    sources = [row.source for row in train + validation]
    assert len(set(sources)) == 16 and "cat/UPPER.JPEG" in sources
    for row in train + validation:
        assert row.source.split("/")[0] == source.classes[row.label]
        expected = center_crop_adm(read_rgb_image(tmp_path / row.source), 8)
        np.testing.assert_array_equal(np.asarray(row.image), np.asarray(expected))
    again = open_folder(settings_for(tmp_path), seed=1)
    assert [row.source for row in again.train] == [row.source for row in train]


@pytest.mark.parametrize("validation_name", ["val", "validation"])
def test_train_and_validation_folders_are_the_parts(tmp_path, validation_name):
    make_classes(tmp_path / "train", b=3, a=2)
    make_classes(tmp_path / validation_name, a=1, b=2)
    source = open_folder(settings_for(tmp_path), seed=0)
    assert source.classes == ("a", "b")
    assert sorted(row.source for row in source.train) == [f"train/{n}.png" for n in ("a/0", "a/1", "b/0", "b/1", "b/2")]
    assert sorted(row.source for row in source.validation) == [
        f"{validation_name}/{n}.png" for n in ("a/0", "b/0", "b/1")
    ]


def test_a_class_called_train_is_a_class(tmp_path):
    make_classes(tmp_path, train=2, bus=2)
    assert open_folder(settings_for(tmp_path), seed=0).classes == ("bus", "train")


def test_missing_folder_names_the_key_and_the_path(tmp_path):
    missing = tmp_path / "imagenet"
    with pytest.raises(UserError) as caught:
        open_folder(settings_for(missing), seed=0)
    assert str(caught.value) == f"prepare_data.folder: there is no folder {missing}"


def test_bad_layouts_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no class folders"):
        open_folder(settings_for(tmp_path), seed=0)
    make_classes(tmp_path / "empty", full=2, hollow=0)
    with pytest.raises(UserError, match="the class hollow has no images"):
        open_folder(settings_for(tmp_path / "empty"), seed=0)
    make_classes(tmp_path / "single", a=1, b=1)
    with pytest.raises(UserError, match="leaves none for validation"):
        open_folder(settings_for(tmp_path / "single"), seed=0)
    make_classes(tmp_path / "parts" / "train", a=1, b=1)
    make_classes(tmp_path / "parts" / "val", a=1)
    with pytest.raises(UserError, match="the class b has no folder in both train and val"):
        open_folder(settings_for(tmp_path / "parts"), seed=0)
    make_classes(tmp_path / "parts" / "validation", a=1)
    with pytest.raises(UserError, match="both val and validation"):
        open_folder(settings_for(tmp_path / "parts"), seed=0)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "tif"])
def test_truncated_image_is_refused_by_name(tmp_path, extension):
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(extension, extension))
    make_classes(tmp_path, a=2, b=2)
    broken = tmp_path / "b" / f"cut.{extension}"
    for share in (0.0, 0.3, 0.9):
        broken.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        source = open_folder(settings_for(tmp_path), seed=0)
        with pytest.raises(UserError, match=rf"^.*cut\.{extension}: not a readable image \(.+\)$") as caught:
            list(chain(source.train, source.validation))
        assert "\n" not in str(caught.value)
