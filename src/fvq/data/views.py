"""Named views of an image, the same every time: what a token table caches several of."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fvq.data.crops import center_crop_adm, center_crop_plain
from fvq.runtime.errors import UserError

_CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
_LARGEST_SCALE = 2.0
_NUMBER = r"\d+(?:\.\d+)?"
_VIEW = re.compile(rf"(center|{'|'.join(_CORNERS)})(?:@({_NUMBER}))?(_flip)?")
_TEN_CROP = re.compile(rf"ten_crop@({_NUMBER})")
_KNOWN = (
    "there are center, at a scale such as 1.1 center@1.1, "
    f"{', '.join(f'{corner}@1.1' for corner in _CORNERS)}, each also with _flip, "
    "and for several at once adm and ten_crop@1.1"
)


@dataclass(frozen=True)
class View:
    """What a view's name says.

    It is cut from a square. Without a scale this is the centre crop of S pixels a side that the images' table or
    manifest defines; with a scale s the shorter side is scaled to int(S·s), which must exceed S, and the centre square
    cut, as by ``center_crop_adm``. With ``flip`` the square is mirrored left to right. Of the outcome the S×S pixels in
    a corner or the middle are the view: ``top_left@1.1_flip`` is what the mirrored picture has at its top left.
    """

    place: str
    scale: float | None
    flip: bool


def parse_view(name: str) -> View:
    """The view of that name: ``center``, ``center@1.1``, ``top_left@1.1``, …, each also with ``_flip``.

    Raises:
        UserError: no view has this name, or its scale is not above 1 and at most 2.
    """
    found = _VIEW.fullmatch(name)
    if found is None or (found[1] != "center" and found[2] is None):
        raise UserError(f"view {name!r} is unknown; {_KNOWN}")
    scale = None if found[2] is None else float(found[2])
    if scale is not None and not 1 < scale <= _LARGEST_SCALE:
        raise UserError(f"view {name!r}: the scale must be above 1 and at most {_LARGEST_SCALE:g}")
    return View(found[1], scale, found[3] is not None)


def expand_views(names: Iterable[str]) -> tuple[str, ...]:
    """The names of single views, with those that stand for several written out, in the order given.

    ``adm`` is the image and its mirror image, ``center`` and ``center_flip``. Views without a scale, these are the
    images' own crop: of a manifest whose centre crop is ``plain``, the plain one. ``ten_crop@1.1`` are LlamaGen's ten
    (extract_codes_c2i.py with ``--ten-crop --crop-range 1.1``) in the order of torchvision's ``TenCrop``: the four
    corners and the middle of the square of int(1.1·S) pixels, then those of its mirror image.

    Raises:
        UserError: a name that is unknown, a scale out of range, or one view twice.
    """
    expanded = tuple(single for name in names for single in _expand(name))
    views = [parse_view(name) for name in expanded]
    for number, view in enumerate(views):
        if view in views[:number]:
            raise UserError(f"view {expanded[number]!r} is named twice")
    return expanded


def _expand(name: str) -> tuple[str, ...]:
    if name == "adm":
        return ("center", "center_flip")
    if found := _TEN_CROP.fullmatch(name):
        return tuple(f"{place}@{found[1]}{flip}" for flip in ("", "_flip") for place in (*_CORNERS, "center"))
    return (name,)


def describe_crops(names: Iterable[str], size: int, center_crop: str | None) -> str:
    """Which squares the views of ``size`` pixels are cut from, in words.

    ``center_crop`` is the crop that a manifest names; None stands for a table, whose images are squares already.

    Raises:
        UserError: as by ``expand_views``, or a scale that makes int(size · scale) no more than ``size``.
    """
    crops = []
    for scale in dict.fromkeys(parse_view(name).scale for name in expand_views(names)):
        if scale is None:
            crops.append(f"centre crop {center_crop} to {size}" if center_crop else f"as stored, {size} pixels a side")
        else:
            how = "centre crop adm" if center_crop else f"as stored, enlarged from {size}"
            crops.append(f"{how} to {_side(size, scale)} for scale {scale:g}")
    return "; ".join(crops)


def _side(size: int, scale: float) -> int:
    side = int(size * scale)
    if side <= size:
        least = math.ceil((size + 1) / size * 1000) / 1000
        raise UserError(
            f"views at scale {scale:g}: the square to cut views of {size} pixels from has int({size} · {scale:g}) = "
            f"{side}, no more than a view; the scale must be {least:g} or larger"
        )
    return side


def cut_views(
    original: Image.Image, views: Sequence[View], size: int, center_crop: Callable[[Image.Image, int], Image.Image]
) -> NDArray[np.uint8]:
    """The views of an RGB image, uint8 (V, size, size, 3); ``center_crop`` cuts those without a scale.

    Raises:
        UserError: a scale that makes int(size · scale) no more than ``size``.
    """
    squares = {
        scale: center_crop(original, size) if scale is None else center_crop_adm(original, _side(size, scale))
        for scale in {view.scale for view in views}
    }
    mirrored = {scale: ImageOps.mirror(squares[scale]) for scale in {view.scale for view in views if view.flip}}
    return np.stack(
        [_cut(mirrored[view.scale] if view.flip else squares[view.scale], view.place, size) for view in views]
    )


def _cut(square: Image.Image, place: str, size: int) -> NDArray[np.uint8]:
    if place == "center":
        return np.asarray(center_crop_plain(square, size))  # rounds as torchvision's TenCrop
    top = square.height - size if place.startswith("bottom") else 0
    left = square.width - size if place.endswith("right") else 0
    return np.asarray(square.crop((left, top, left + size, top + size)))
