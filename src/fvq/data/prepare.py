"""From a source of labelled images to the two image tables of a study."""

from pathlib import Path

from fvq.data.image_table import write_rows
from fvq.data.settings import Digits, ImageFolder, PhotoCrops
from fvq.data.sources import open_source
from fvq.runtime.files import write_atomically


def prepare_images(
    settings: PhotoCrops | Digits | ImageFolder, seed: int, train_path: Path | str, validation_path: Path | str
) -> None:
    """Write the training and the validation table of the data set that ``settings`` describe: both or neither.

    Raises:
        UserError: the source cannot be read; what parameters and folders tell is found before any work. Or an image of
            it is damaged.
        OSError: from the writing, such as a full disk.
    """
    source = open_source(settings, seed)
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
