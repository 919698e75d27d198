"""The order of images that are told apart by their names alone, on which the Inception Score depends.

Images come by their paths, folder by folder, and runs of digits count as numbers: ``9.png`` comes before ``10.png``, so
that samples written under their numbers have the order, and the figures, of an archive that holds them.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from fvq.data.originals.listing import is_image_name
from fvq.data.sources.folder import EXTENSIONS
from fvq.runtime.errors import UserError


def list_images_below(folder: Path) -> list[str]:
    """Paths within ``folder`` of the images in it and in its subfolders, in order; links to folders are not followed.

    Names that begin with a dot are passed over.

    Raises:
        UserError: there are none.
        OSError: a folder that may not be read.
    """
    names = []
    for parent, _, files in os.walk(folder, onerror=_raise):
        below = Path(parent).relative_to(folder)
        names += [(below / file).as_posix() for file in files]
    return order_images(folder, names)


def order_images(where: Path, names: Iterable[str]) -> list[str]:
    """The paths of images among ``names`` but for hidden ones, in order; UserError where there are none."""
    images = [name for name in names if is_image_name(name) and not _is_hidden(name)]
    if not images:
        raise UserError(f"{where}: holds no images ({', '.join(sorted(EXTENSIONS))})")
    return sorted(images, key=_natural_key)


def check_same_order(names: Sequence[str], others: Sequence[str], where: str, elsewhere: str) -> None:
    """UserError, which calls the two sets ``where`` and ``elsewhere``, unless images in the same place match by name.

    Suffixes of image files do not count, nor do folders where file names alone tell the images of each set apart.
    """
    ours, theirs = ([_without_suffix(name) for name in some] for some in (names, others))
    if all(len({name.name for name in some}) == len(some) for some in (ours, theirs)):
        ours, theirs = ([PurePosixPath(name.name) for name in some] for some in (ours, theirs))
    for number, (name, other) in enumerate(zip(ours, theirs, strict=False)):
        if name != other:
            raise UserError(
                f"{where} and {elsewhere}: pairs need the same names without suffix, and image {number} is {name} "
                f"in the one and {other} in the other; npz archives are paired by position"
            )


def _without_suffix(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    return path.with_suffix("") if is_image_name(name) else path


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _natural_key(name: str) -> tuple[list[list[str | int]], str]:
    # Text and numbers alternate, so that like meets like; equal numbers (1 and 01) fall back on the text.
    parts = (re.split("([0-9]+)", part) for part in PurePosixPath(name).parts)
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(part)] for part in parts], name
