"""Reading every image once: what it holds, and whether it can be decoded."""

import hashlib
import io
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from PIL import ExifTags, Image

from fvq.data.decoding import decode_rgb
from fvq.data.manifest import ManifestRecord
from fvq.data.originals.listing import Listing, Original
from fvq.data.records import map_in_threads
from fvq.runtime.errors import UserError
from fvq.runtime.progress import track


class Index(NamedTuple):
    """The images of a listing, in its order."""

    records: list[ManifestRecord]
    unreadable: list[str]
    """Sources of the images that were left out."""


def index_originals(
    listing: Listing, *, turn_by_exif: bool, unreadable: Literal["stop", "skip"], description: str
) -> Index:
    """Read and decode each image of the listing, on as many threads as torch was given.

    Every image is decoded at its full size, so it takes about as long as one epoch of decoding the originals does.
    Nothing is kept of an index that was interrupted. A million images take about 0.6 GB of memory meanwhile.

    Raises:
        UserError: a file that cannot be read; an image that cannot be decoded, under ``stop``; a class of which no
            image can.
    """
    records, left_out = [], []

    def index(image: Original) -> ManifestRecord | str:
        return index_image(image, turn_by_exif=turn_by_exif)

    with warnings.catch_warnings(), track(description, total=len(listing.images)) as advance:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd EXIF records, without the file's name
        for image, result in zip(listing.images, map_in_threads(index, listing.images), strict=True):
            if isinstance(result, ManifestRecord):
                records.append(result)
            elif unreadable == "skip":
                left_out.append(image.source)
            else:
                raise UserError(f"{_where(image)}: not a readable image ({result}); unreadable: skip leaves it out")
            advance(1)
    for label in sorted({image.label for image in listing.images} - {record.label for record in records}):
        raise UserError(f"{listing.path}: the class {listing.classes[label]} has no readable image")
    return Index(records, left_out)


def index_image(image: Original, *, turn_by_exif: bool) -> ManifestRecord | str:
    """The image's record, or why it cannot be decoded. UserError where its file cannot be read."""
    try:
        f"{image.file}{image.source}".encode()
    except UnicodeEncodeError:
        raise UserError(f"{_where(image)!a}: the name is not valid UTF-8") from None
    try:
        with open(image.file, "rb") as file:  # noqa: PTH123 (a Path for each of a million files takes longer)
            file.seek(image.offset)
            encoded = file.read() if image.length is None else file.read(image.length)
    except OSError as error:
        raise UserError(f"{_where(image)}: {error.strerror}") from error
    try:
        decode_rgb(encoded, turn_by_exif=turn_by_exif)
    except ValueError as error:
        return str(error)
    with Image.open(io.BytesIO(encoded)) as opened:
        (width, height), mode = opened.size, sys.intern(opened.mode)
        orientation = _orientation(opened)
    digest = hashlib.sha256(encoded).digest()
    return ManifestRecord(
        image.file, image.offset, len(encoded), image.label, image.source, width, height, mode, orientation, digest
    )


def describe_index(part: str, records: Sequence[ManifestRecord], unreadable: int, *, turn_by_exif: bool) -> str:
    """One line of counts: images, and among them CMYK, grey, with an EXIF turn; those left out are not among them."""
    modes = Counter(record.mode for record in records)
    grey = sum(count for mode, count in modes.items() if mode in ("1", "L", "LA", "La") or mode.startswith("I;16"))
    turned = sum(record.orientation != 1 for record in records)
    return (
        f"{part}: {len(records):,} images; {modes['CMYK']:,} CMYK, {grey:,} grey, {turned:,} with an EXIF turn "
        f"({'applied' if turn_by_exif else 'ignored'}), {unreadable:,} unreadable left out"
    )


def _orientation(image: Image.Image) -> int:
    """EXIF's, from 1 to 8; 1 where there is none or no valid one."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged record; whether that matters is decode_rgb's to say
        return 1
    return int(value) if value is not None and value in range(1, 9) else 1


def _where(image: Original) -> str:
    return image.file if image.length is None else f"{image.file}: {image.source}"
