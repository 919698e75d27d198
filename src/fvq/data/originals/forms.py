"""Which form of container a path is, and the images in it."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from fvq.data.originals.listing import Listing, Original, is_image_name
from fvq.data.originals.shards import list_shards
from fvq.data.originals.tars import compression_of, list_tar
from fvq.data.sources.folder import list_images
from fvq.runtime.errors import UserError

FORMS = (
    "a folder of class folders, a folder of images, an uncompressed .tar of images or with one .tar per class, "
    "a folder of Parquet shards or a pattern of their names"
)


class Container(NamedTuple):
    """A path whose form was recognised."""

    path: str
    """As it was given."""
    form: Literal["class folders", "images", "tar", "parquet"]
    files: list[Path]
    """The shards, or the one folder or tar."""


def recognise(path: str) -> Container:
    """The form of the container ``path``; ~ stands for the home folder. UserError where it has none of the forms."""
    place = Path(path).expanduser()
    if place.is_dir():
        shards = sorted(entry for entry in place.glob("*.parquet") if not entry.name.startswith("."))
        if shards:
            return Container(path, "parquet", shards)
        if any(entry.is_dir() for entry in _visible(place)):
            return Container(path, "class folders", [place])
        if any(is_image_name(entry.name) for entry in _visible(place)):
            return Container(path, "images", [place])
    elif place.is_file():
        compression = compression_of(place)
        if compression:
            raise UserError(f"{path}: compressed ({compression}), so that no image can be read alone; decompress it")
        if place.suffix == ".parquet":
            return Container(path, "parquet", [place])
        if place.suffix == ".tar":
            return Container(path, "tar", [place])
    elif glob.has_magic(path):
        shards = sorted(map(Path, glob.glob(str(place))))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if shards and all(shard.suffix == ".parquet" for shard in shards):
            return Container(path, "parquet", shards)
        raise UserError(f"{path}: matches {shards[0] if shards else 'nothing'}; a pattern names .parquet files alone")
    else:
        raise UserError(f"{path}: no such file or folder")
    raise UserError(f"{path}: should be {FORMS}")


def list_originals(container: Container, unpack_folder: str | None) -> Listing:
    """The images in the container, none of them read yet.

    Class folders, images and tars come by class and name; images directly in the class folders count, others do not.
    Parquet shards are first copied to ``unpack_folder``.

    Raises:
        UserError: no images, a class without images, a damaged container, Parquet shards without ``unpack_folder``.
        OSError: from the copying, such as a full disk.
    """
    place = container.files[0]
    match container.form:
        case "class folders":
            found = list_images(place)
            images = [
                Original(str(place / name / image), 0, None, label, f"{name}/{image}")
                for label, (name, names) in enumerate(found.items())
                for image in names
            ]
            return Listing(container.path, tuple(found), "names", images)
        case "images":
            names = sorted(entry.name for entry in _visible(place) if is_image_name(entry.name))
            images = [Original(str(place / name), 0, None, 0, name) for name in names]
            return Listing(container.path, (place.resolve().name,), "container", images)
        case "tar":
            return list_tar(place)
        case "parquet":
            if unpack_folder is None:
                raise UserError(
                    f"{container.path}: Parquet shards cannot be read at random; prepare_data.unpack_folder must name "
                    "a folder for copies of their images"
                )
            return list_shards(container.path, container.files, Path(unpack_folder).expanduser())


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))
