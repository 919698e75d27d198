"""What a source of images hands over, and the work on it that several threads can share."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageRecord(NamedTuple):
    """One labelled image."""

    image: NDArray[np.uint8] | Image.Image
    """uint8 (H, W, 3), RGB, or a PIL image."""
    label: int
    """Index into the class names."""
    source: str
    """Where the image came from, for people."""


class ImageSource(NamedTuple):
    """A data set: its class names and two streams of records, each to be read once."""

    classes: tuple[str, ...]
    train: Iterable[ImageRecord]
    validation: Iterable[ImageRecord]


def in_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` successive items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], chunk_size: int = 256
) -> Iterator[Result]:
    """``map`` on as many threads as torch was given, in order, at most ``chunk_size`` results ahead of the reader.

    Pillow lets go of the interpreter while it decodes, encodes and resizes, so threads suffice.
    """
    threads = torch.get_num_threads()
    if threads == 1:  # a pool of one would add a third to the time of a small image
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        for chunk in in_chunks(items, chunk_size):
            yield from pool.map(function, chunk)
