"""Images out of npz archives: a full study's samples take gigabytes, and a page shows eighty."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError
from fvq.runtime.npz import ArrayReader, open_array

Images = npt.NDArray[np.uint8]


def image_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array of images in an archive, uint8 (n, H, W, 3), from its header."""
    return _open_images(path, name).shape


def read_images(path: Path, name: str, indices: Sequence[int]) -> Images:
    """The images at ``indices`` (ascending), uint8 (n, H, W, 3)."""
    return _open_images(path, name).take(indices)


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """The labels `arr_1` beside an archive's samples, int64 (n,)."""
    array = open_array(path, "arr_1")
    if not np.issubdtype(array.dtype, np.integer) or len(array.shape) != 1 or array.shape[0] == 0:
        raise UserError(f"{path}: arr_1 must hold integer labels (n,), not {array.dtype} {array.shape}")
    (labels,) = array.rows(0, array.shape[0], array.shape[0])
    return labels.astype(np.int64)


def _open_images(path: Path, name: str) -> ArrayReader:
    array = open_array(path, name)
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise UserError(f"{path}: {name} must be uint8 (n, H, W, 3), not {array.dtype} {array.shape}")
    return array
