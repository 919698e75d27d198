"""How many images a study has: as prepared, or before that as its parameters and its data set tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from fvq.config import Parameters
from fvq.data.open import open_images
from fvq.data.settings import Digits, PhotoCrops
from fvq.data.sources.photos import PHOTOS
from fvq.runtime.errors import UserError
from fvq.runtime.parquet import unreadable_as_user_errors

_IMAGENET_TRAIN, _IMAGENET_VALIDATION, _IMAGENET_CLASSES = 1_281_167, 50_000, 1000
_DIGITS, _DIGITS_CLASSES = 1797, 10
_FURTHER = {"coco": 5000}  # COCO 2017 validation


@dataclass(frozen=True)
class Images:
    """How many images the study has; ``validation`` is None where that is not known."""

    train: int
    validation: int | None
    classes: int
    further: Mapping[str, int] = field(default_factory=dict)
    """of those of ``evaluation_sets`` whose number is known"""


def count_images(parameters: Parameters, folder: Path, given: int | None) -> Images:
    """Of a study in ``folder``: those prepared there, or else as parameters and data set tell.

    ``given`` goes before for the training images. Of unknown data ImageNet's number of classes is assumed, each of
    which is a row of an embedding.

    Raises:
        UserError: nothing tells how many training images there are, or what is prepared cannot be read.
    """
    results = folder / "results" / parameters.study
    prepared = results / "prepare_data" / "train.parquet"
    fraction = getattr(parameters.prepare_data, "validation_fraction", None)
    train, validation, classes = _known(parameters, fraction)
    if prepared.is_file():
        train, validation = _rows(prepared), _rows(prepared.with_name("validation.parquet"))
        classes = len(open_images(prepared).classes)
    elif given and fraction:
        validation = round(given * fraction / (1 - fraction))
    train = given or train
    if train is None:
        raise UserError(
            f"--images: give the number of training images; {prepared}, which would tell it, is not there before the "
            "data is prepared"
        )
    further = {}
    for name in parameters.evaluation_sets:
        count = _rows(results / "prepare_evaluation_set" / name / "images.parquet") or _FURTHER.get(name)
        if count:
            further[name] = count
    return Images(train, validation, classes, further)


def _known(parameters: Parameters, fraction: float | None) -> tuple[int | None, int | None, int]:
    """Training images, validation images and classes of the data set itself."""
    source = parameters.prepare_data
    if isinstance(source, PhotoCrops):
        return source.train_crops, source.validation_crops, len(PHOTOS)
    if isinstance(source, Digits):
        return *_split(_DIGITS, source.validation_fraction), _DIGITS_CLASSES
    if parameters.dataset != "imagenet":
        return None, None, _IMAGENET_CLASSES
    if fraction:
        return *_split(_IMAGENET_TRAIN, fraction), _IMAGENET_CLASSES
    return _IMAGENET_TRAIN, _IMAGENET_VALIDATION, _IMAGENET_CLASSES


def _split(images: int, fraction: float) -> tuple[int, int]:
    """Up to the rounding in each class."""
    validation = round(images * fraction)
    return images - validation, validation


def _rows(path: Path) -> int | None:
    """Rows of a Parquet file, None where there is none."""
    if not path.is_file():
        return None
    with unreadable_as_user_errors(path):
        return int(pq.read_metadata(path).num_rows)
