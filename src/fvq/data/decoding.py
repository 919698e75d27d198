"""From an encoded image to RGB pixels: one rule for grey, CMYK, transparent, turned and damaged images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fvq.runtime.errors import UserError


def decode_rgb(encoded: bytes, *, turn_by_exif: bool) -> Image.Image:
    """The image in RGB; of several frames the first.

    Grey is replicated (of 16-bit grey the upper 8 bits), CMYK and palettes are converted as Pillow does, transparency
    is dropped. With ``turn_by_exif`` the image is turned and mirrored as its EXIF record says, otherwise it stays as
    stored.

    Raises:
        ValueError: it cannot be decoded whole, or its pixels have no fixed range; a short reason in one line.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            turned = ImageOps.exif_transpose(image) if turn_by_exif else image
            if turned.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
                return Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8)).convert("RGB")
            if turned.mode in ("I", "F"):
                raise ValueError(f"pixels of Pillow's mode {turned.mode} have no fixed range")
            if "transparency" in turned.info:
                turned = turned.convert("RGBA")
            return turned.convert("RGB")
    except UnidentifiedImageError:  # its own text shows an address in memory
        raise ValueError("no image format that Pillow knows") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def read_rgb_image(path: Path) -> Image.Image:
    """The image in RGB as ``decode_rgb`` gives it, turned as its EXIF record says. UserError naming a damaged file."""
    try:
        return decode_rgb(path.read_bytes(), turn_by_exif=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable image ({' '.join(str(error).split())})") from error
