"""Crops of the ten colour photographs that are installed with scikit-image and scikit-learn.

Each photograph is cut into a 5×5 grid. The cells with (row + 2·column) mod 5 = 0 are held out: one in each row and each
column. A validation crop lies inside one held-out cell; no training crop touches any. Cells and crops are counted in
pixels of the photograph as prepared, that is after it was scaled down to ``short_side_max``.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvq.data.records import ImageRecord, ImageSource
from fvq.data.settings import PhotoCrops
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import seed_from

PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "immunohistochemistry": ("skimage", "data/ihc.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "stereo_motorcycle": ("skimage", "data/motorcycle_left.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
"""Class name -> package and file within it. skimage.data's own loaders would write to the user's home folder."""

GRID = 5
HELD_OUT = (np.arange(GRID)[:, None] + 2 * np.arange(GRID)[None, :]) % GRID == 0
"""bool (row, column): cells that only validation crops see."""


def open_photos(settings: PhotoCrops, seed: int) -> ImageSource:
    """Square crops, their sides drawn uniformly from the given range, resized (antialiased bicubic) to ``image_size``.

    Classes take turns, so any run of rows holds all of them. The source of a crop reads ``photograph@left,top,side``.

    Raises:
        UserError: a crop of ``crop_side_max`` does not fit into the cells of some photograph.
    """
    photos = {name: load_photo(name, settings.short_side_max) for name in PHOTOS}
    for name, photo in photos.items():
        smallest = min(np.diff(cell_edges(length)).min() for length in photo.size)
        if settings.crop_side_max > smallest:
            raise UserError(
                f"prepare_data.crop_side_max: {settings.crop_side_max} pixels do not fit into the held-out cells of "
                f"the photograph {name}, which measure {smallest}"
            )

    def records(split: str, count: int) -> Iterator[ImageRecord]:
        size = (settings.image_size, settings.image_size)
        names = tuple(photos)
        boxes = {}
        for position, name in enumerate(names):
            share = count // len(names) + (position < count % len(names))
            rng = np.random.default_rng(seed_from(seed, "photo crops", split, name))
            sides = rng.integers(settings.crop_side_min, settings.crop_side_max, share, endpoint=True)
            draw = draw_training_boxes if split == "train" else draw_validation_boxes
            boxes[name] = draw(photos[name].size, sides, rng).tolist()
        for row in range(count):
            turn, label = divmod(row, len(names))
            left, top, side = boxes[names[label]][turn]
            # Cut first: resizing with a box would let the filter see pixels outside it.
            crop = photos[names[label]].crop((left, top, left + side, top + side))
            image = crop.resize(size, Image.Resampling.BICUBIC)
            yield ImageRecord(image, label, f"{names[label]}@{left},{top},{side}")

    return ImageSource(
        tuple(photos), records("train", settings.train_crops), records("validation", settings.validation_crops)
    )


def load_photo(name: str, short_side_max: int) -> Image.Image:
    """The photograph in RGB, scaled down (Lanczos) so that its shorter side is at most ``short_side_max`` pixels."""
    package, path = PHOTOS[name]
    spec = find_spec(package)  # importlib.resources would import the package, which takes seconds
    if spec is None or spec.origin is None:
        raise UserError(f"prepare_data.source: photos needs the Python package {package}, which is not installed")
    with Image.open(Path(spec.origin).parent / path) as image:
        photo = image.convert("RGB")
    shrink = short_side_max / min(photo.size)
    if shrink < 1:
        width, height = (max(1, round(length * shrink)) for length in photo.size)
        photo = photo.resize((width, height), Image.Resampling.LANCZOS)
    return photo


def cell_edges(length: int) -> NDArray[np.int64]:
    """Where the cells of a side of ``length`` pixels begin, and the last one ends: (GRID + 1,)."""
    return np.arange(GRID + 1, dtype=np.int64) * length // GRID


def draw_validation_boxes(
    photo_size: tuple[int, int], sides: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Boxes (n, 3) of left, top, side, each inside one held-out cell. ``photo_size`` is (width, height)."""
    x_edges, y_edges = (cell_edges(length) for length in photo_size)
    rows, columns = np.nonzero(HELD_OUT)
    cells = rng.integers(len(rows), size=len(sides))
    left = rng.integers(x_edges[columns[cells]], x_edges[columns[cells] + 1] - sides, endpoint=True)
    top = rng.integers(y_edges[rows[cells]], y_edges[rows[cells] + 1] - sides, endpoint=True)
    return np.stack([left, top, sides], axis=1)


def draw_training_boxes(
    photo_size: tuple[int, int], sides: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Boxes (n, 3) of left, top, side, uniform among those that touch no held-out cell. No side may exceed a cell's."""
    width, height = photo_size
    boxes = np.stack([np.zeros_like(sides), np.zeros_like(sides), sides], axis=1)
    pending = np.arange(len(sides))
    while pending.size:  # a fifth of the positions or more will do, even for the largest side
        boxes[pending, 0] = rng.integers(0, width - sides[pending], endpoint=True)
        boxes[pending, 1] = rng.integers(0, height - sides[pending], endpoint=True)
        pending = pending[_touch_held_out(photo_size, boxes[pending])]
    return boxes


def _touch_held_out(photo_size: tuple[int, int], boxes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which boxes share a pixel with a held-out cell. None is larger than a cell, so its corners tell."""
    x_edges, y_edges = (cell_edges(length) for length in photo_size)
    left, top, side = boxes.T
    touched = np.zeros(len(boxes), dtype=np.bool_)
    for x in (left, left + side - 1):
        for y in (top, top + side - 1):
            row, column = (np.searchsorted(edges, at, side="right") - 1 for edges, at in ((y_edges, y), (x_edges, x)))
            touched |= HELD_OUT[row, column]
    return touched
