"""How many images a study has, before its data is prepared and afterwards."""

import numpy as np
import pytest
from test_plan import QUICK, parameters

from fvq.data.image_table import write_image_table
from fvq.data.records import ImageRecord
from fvq.data.settings import Digits
from fvq.data.sources import open_source
from fvq.plan.images import Images, count_images
from fvq.runtime.errors import UserError

FOLDER = {"source": "folder", "folder": "photos", "image_size": 32, "validation_fraction": 0.2}
DIGITS = {"source": "digits", "image_size": 32, "validation_fraction": 0.2}
ORIGINALS = {
    "source": "originals",
    "train": "train",
    "validation": "val",
    "validation_fraction": None,
    "development_kit": None,
    "image_size": 32,
    "center_crop": "adm",
    "turn_by_exif": False,
    "unreadable": "stop",
    "unpack_folder": None,
}
HELD_OUT = {**ORIGINALS, "validation": None, "validation_fraction": 0.2}
SET = {
    "images": "x",
    "protocol": "adm",
    "image_size": 32,
    "center_crop": "adm",
    "turn_by_exif": False,
    "unreadable": "stop",
}


def study(data, dataset, **changes):
    return parameters(prepare_data=data, dataset=dataset, **QUICK, **changes)


def write(path, count):
    records = (ImageRecord(np.zeros((32, 32, 3), np.uint8), number % 2, f"{number}") for number in range(count))
    write_image_table(path, records, dataset="photos", classes=["ant", "bee"], image_size=32, split="train")


def test_what_data_sets_are_known_to_have(tmp_path):
    assert count_images(parameters(**QUICK), tmp_path, None) == Images(16000, 4000, 10)
    assert count_images(study(ORIGINALS, "imagenet"), tmp_path, None) == Images(1_281_167, 50_000, 1000)
    held_out = count_images(study(HELD_OUT, "imagenet"), tmp_path, None)
    assert (held_out.train, held_out.validation) == (1_024_934, 256_233)


def test_the_digits_are_those_that_are_prepared(tmp_path):
    source = open_source(Digits.model_validate(DIGITS), seed=0)
    real = Images(sum(1 for _ in source.train), sum(1 for _ in source.validation), len(source.classes))
    assert count_images(study(DIGITS, "digits"), tmp_path, None) == real


def test_images_that_nothing_tells(tmp_path):
    with pytest.raises(UserError, match=r"^--images: give the number of training images"):
        count_images(study(FOLDER, "folder"), tmp_path, None)
    assert count_images(study(FOLDER, "folder"), tmp_path, 800).validation == 200
    assert count_images(study(ORIGINALS, "originals"), tmp_path, 800).validation is None
    assert count_images(study(HELD_OUT, "imagenet"), tmp_path, 800).validation == 200


def test_what_is_prepared_goes_before(tmp_path):
    sets = dict.fromkeys(("coco", "own", "indexed"), SET)
    chosen = study(ORIGINALS, "imagenet", evaluation_sets=sets)
    assert count_images(chosen, tmp_path, None).further == {"coco": 5000}
    results = tmp_path / "results" / chosen.study
    for part, count in (("train", 40), ("validation", 3)):
        write(results / "prepare_data" / f"{part}.parquet", count)
    for name, count in (("coco", 7), ("indexed", 6)):
        write(results / "prepare_evaluation_set" / name / "images.parquet", count)
    assert count_images(chosen, tmp_path, None) == Images(40, 3, 2, {"coco": 7, "indexed": 6})
    assert count_images(chosen, tmp_path, 64) == Images(64, 3, 2, {"coco": 7, "indexed": 6})
    (results / "prepare_evaluation_set" / "coco" / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"coco/images\.parquet"):
        count_images(chosen, tmp_path, None)
