"""A folder of class folders with images in them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvq.data.crops import center_crop_adm
from fvq.data.decoding import read_rgb_image
from fvq.data.records import ImageRecord, ImageSource, map_in_threads
from fvq.data.settings import ImageFolder
from fvq.data.split import split_by_class
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import seed_from

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VALIDATION_NAMES = ("val", "validation")


def open_folder(settings: ImageFolder, seed: int) -> ImageSource:
    """The images under ``settings.folder``, each read, scaled and cropped when its turn comes.

    Classes are the class folders' names in order. Where the folder holds ``train`` and ``val`` (or ``validation``),
    these are the parts, with the same class folders in both; otherwise each class is split by a draw that follows from
    ``seed``. Both parts come in random order. Names that begin with a dot are passed over. The source of an image is
    its path within the folder.

    Raises:
        UserError: no such folder, no class folder, a class without images, classes that differ between the parts; while
            reading, an image that is damaged.
    """
    root = Path(settings.folder).expanduser()
    if not root.is_dir():
        raise UserError(f"prepare_data.folder: there is no folder {settings.folder}")
    rng = np.random.default_rng(seed_from(seed, "folder split"))
    validation_folders = [name for name in VALIDATION_NAMES if (root / name).is_dir()]
    if (root / "train").is_dir() and validation_folders:
        if len(validation_folders) > 1:
            raise UserError(f"{root}: holds both val and validation; which is meant?")
        train, validation = list_images(root / "train"), list_images(root / validation_folders[0])
        for name in sorted(train.keys() ^ validation.keys()):
            raise UserError(f"{root}: the class {name} has no folder in both train and {validation_folders[0]}")
        train_paths, train_labels = _flatten(root, root / "train", train)
        validation_paths, validation_labels = _flatten(root, root / validation_folders[0], validation)
        train_rows, validation_rows = rng.permutation(len(train_paths)), rng.permutation(len(validation_paths))
    else:
        train = list_images(root)
        train_paths, train_labels = validation_paths, validation_labels = _flatten(root, root, train)
        train_rows, validation_rows = split_by_class(train_labels, settings.validation_fraction, rng)
        if not len(validation_rows):
            raise UserError(f"{root}: one image in each class leaves none for validation")

    def records(paths: list[str], labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[ImageRecord]:
        def read(row: int) -> ImageRecord:
            image = read_rgb_image(root / paths[row])
            return ImageRecord(center_crop_adm(image, settings.image_size), int(labels[row]), paths[row])

        yield from map_in_threads(read, rows.tolist())

    return ImageSource(
        tuple(train),
        records(train_paths, train_labels, train_rows),
        records(validation_paths, validation_labels, validation_rows),
    )


def list_images(folder: Path) -> dict[str, list[str]]:
    """Class name -> names of its images, both sorted. UserError where there is no class or one without images."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{folder}: holds no class folders")
    images = {}
    for name in classes:
        images[name] = sorted(
            entry.name
            for entry in (folder / name).iterdir()
            if entry.suffix.lower() in EXTENSIONS and not entry.name.startswith(".")
        )
        if not images[name]:
            raise UserError(f"{folder / name}: the class {name} has no images ({', '.join(sorted(EXTENSIONS))})")
    return images


def _flatten(root: Path, folder: Path, images: dict[str, list[str]]) -> tuple[list[str], NDArray[np.int64]]:
    """Paths relative to ``root`` as text (a Path object takes ten times the memory), and their labels."""
    prefix = folder.relative_to(root)
    paths = [(prefix / name / image).as_posix() for name, names in images.items() for image in names]
    return paths, np.repeat(np.arange(len(images)), [len(names) for names in images.values()])
