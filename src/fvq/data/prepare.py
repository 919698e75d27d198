"""From a source of labelled images to the two image tables or manifests of a study."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fvq.data.image_table import write_rows
from fvq.data.manifest import ManifestInfo, ManifestRecord, write_manifest
from fvq.data.originals.development_kit import with_labels
from fvq.data.originals.forms import Container, list_originals, recognise
from fvq.data.originals.index import describe_index, index_originals
from fvq.data.originals.listing import Listing, common_classes
from fvq.data.settings import Digits, EvaluationSet, ImageFolder, Originals, PhotoCrops
from fvq.data.sources import open_source
from fvq.data.split import split_by_class
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.seeds import seed_from


def prepare_images(
    settings: PhotoCrops | Digits | ImageFolder | Originals,
    seed: int,
    train_path: Path | str,
    validation_path: Path | str,
) -> list[str]:
    """Write the training and the validation part of the data set that ``settings`` describe: both or neither.

    ``Originals`` become manifests, other sources image tables. Returns a line about each part: how many images it
    holds, and for originals how many of them are out of the ordinary.

    Raises:
        UserError: the source cannot be read; what parameters and folders tell is found before any work. Or an image of
            it is damaged.
        OSError: from the writing, such as a full disk.
    """
    if isinstance(settings, Originals):
        return _index_both(settings, seed, train_path, validation_path)
    source = open_source(settings, seed)
    lines = []
    with write_atomically(train_path) as train, write_atomically(validation_path) as validation:
        for path, records, split in (
            (train, source.train, "train"),
            (validation, source.validation, "validation"),
        ):
            write_rows(
                path,
                records,
                dataset=settings.source,
                classes=source.classes,
                image_size=settings.image_size,
                split=split,
            )
            lines.append(f"{split}: {pq.read_metadata(path).num_rows:,} images")
    return lines


def index_images(settings: EvaluationSet, path: Path | str, *, parameter: str = "images") -> str:
    """Write the manifest of an evaluation set to ``path``; returns a line of counts. Errors name ``parameter``.

    Images come in random order, always the same, for the first ones are shown.

    Raises:
        UserError: no such images, or one that is not readable, as for ``prepare_images``.
        OSError: from the writing, such as a full disk.
    """
    listing = list_originals(_recognise(settings.images, parameter), None)
    name = Path(listing.path).expanduser().resolve().stem
    index = index_originals(
        listing, turn_by_exif=settings.turn_by_exif, unreadable=settings.unreadable, description=f"indexing {name}"
    )
    rows = np.random.default_rng(seed_from("evaluation set")).permutation(len(index.records))
    records = [index.records[row] for row in rows]
    with write_atomically(path) as temporary:
        write_manifest(temporary, records, _info(settings, name, listing.classes, index.unreadable))
    return describe_index(name, records, len(index.unreadable), turn_by_exif=settings.turn_by_exif)


def _index_both(settings: Originals, seed: int, train_path: Path | str, validation_path: Path | str) -> list[str]:
    listings = _list_parts(settings)
    indices = [
        index_originals(
            listing, turn_by_exif=settings.turn_by_exif, unreadable=settings.unreadable, description=f"indexing {part}"
        )
        for part, listing in listings.items()
    ]
    # The draws of a folder as a source: the same class folders are split and ordered alike.
    rng = np.random.default_rng(seed_from(seed, "folder split"))
    parts: list[tuple[list[ManifestRecord], list[str]]]
    if settings.validation_fraction is None:
        parts = [
            ([index.records[row] for row in rng.permutation(len(index.records))], index.unreadable) for index in indices
        ]
    else:
        records = indices[0].records
        labels = np.array([record.label for record in records], dtype=np.int64)
        train_rows, validation_rows = split_by_class(labels, settings.validation_fraction, rng)
        if not len(validation_rows):
            raise UserError(f"{settings.train}: one image in each class leaves none for validation")
        # What was left out before the split is counted with train.
        parts = [
            ([records[row] for row in train_rows], indices[0].unreadable),
            ([records[row] for row in validation_rows], []),
        ]
    classes = listings["train"].classes
    lines = []
    with write_atomically(train_path) as train, write_atomically(validation_path) as validation:
        for path, name, (records, unreadable) in zip((train, validation), ("train", "validation"), parts, strict=True):
            write_manifest(path, records, _info(settings, settings.source, classes, unreadable))
            lines.append(describe_index(name, records, len(unreadable), turn_by_exif=settings.turn_by_exif))
    return lines


def _list_parts(settings: Originals) -> dict[str, Listing]:
    """The listings of train and, where it is not a share of that, validation; both with the same classes."""
    train_container = _recognise(settings.train, "prepare_data.train")
    if settings.validation is None:
        return {"train": list_originals(train_container, settings.unpack_folder)}
    validation_container = _recognise(settings.validation, "prepare_data.validation")
    train = list_originals(train_container, settings.unpack_folder)
    validation = list_originals(validation_container, settings.unpack_folder)
    if validation_container.form == "tar" and validation.naming == "container":
        if settings.development_kit is not None:
            validation = with_labels(validation, Path(settings.development_kit).expanduser())
        elif train.naming != "container":
            raise UserError(
                f"{settings.validation}: a tar of images has no labels; prepare_data.development_kit must name the "
                "kit with ImageNet's"
            )
    classes = common_classes(train, validation)
    return {"train": train._replace(classes=classes), "validation": validation._replace(classes=classes)}


def _recognise(path: str, parameter: str) -> Container:
    try:
        return recognise(path)
    except UserError as error:
        raise UserError(f"{parameter}: {error}") from None


def _info(
    settings: Originals | EvaluationSet, dataset: str, classes: tuple[str, ...], unreadable: list[str]
) -> ManifestInfo:
    return ManifestInfo(
        dataset=dataset,
        classes=list(classes),
        image_size=settings.image_size,
        center_crop=settings.center_crop,
        turn_by_exif=settings.turn_by_exif,
        unreadable=unreadable,
    )
