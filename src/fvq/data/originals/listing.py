"""Images in their containers before any of them is read."""

from pathlib import PurePath
from typing import Literal, NamedTuple

from fvq.data.sources.folder import EXTENSIONS
from fvq.runtime.errors import UserError


class Original(NamedTuple):
    """Where the bytes of one image lie."""

    file: str
    offset: int
    """Of the first byte in the file."""
    length: int | None
    """Bytes; None for all of the file."""
    label: int
    source: str
    """Class and name, or shard and name, or only a name: the same in a class folder as in a tar of that class."""


class Listing(NamedTuple):
    """The images of one container, by class and name, or as Parquet shards hold them."""

    path: str
    classes: tuple[str, ...]
    naming: Literal["names", "numbers", "container"]
    """What the classes are: names, mere numbers, or one class called after the folder or file."""
    images: list[Original]


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image. Names that begin with a dot are not."""
    path = PurePath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def common_classes(train: Listing, validation: Listing) -> tuple[str, ...]:
    """The classes of both parts; UserError where they differ.

    Numbers go up to the larger part's, and two containers without classes are one class, called after that of train.
    """
    if train.naming == validation.naming == "numbers":
        return max(train.classes, validation.classes, key=len)
    if train.naming == validation.naming == "container" or train.classes == validation.classes:
        return train.classes
    where = f"{validation.path}: its classes are not those of {train.path}"
    different = sorted(set(train.classes) ^ set(validation.classes))
    if not different:
        raise UserError(f"{where}: they are the same names in another order")
    names = f"{different[0]}{f' and {len(different) - 1} more' if len(different) > 1 else ''}"
    raise UserError(f"{where} ({len(validation.classes)} and {len(train.classes)}; only one holds {names})")
