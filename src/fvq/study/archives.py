"""Images out of npz archives, record by record: a full study's samples take gigabytes, and a page shows eighty."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError

Images = npt.NDArray[np.uint8]


def image_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array of images in an archive, uint8 (n, H, W, 3), from its header."""
    with _Member(path, name) as member:
        if member.dtype != np.uint8 or len(member.shape) != 4 or member.shape[3] != 3 or 0 in member.shape:
            raise UserError(f"{path}: {name} must be uint8 (n, H, W, 3), not {member.dtype} {member.shape}")
        return member.shape


def read_images(path: Path, name: str, indices: Sequence[int]) -> Images:
    """The images at ``indices`` (ascending), uint8 (n, H, W, 3)."""
    shape = image_shape(path, name)
    size = math.prod(shape[1:])
    images = []
    with _Member(path, name) as member:
        for index in range(indices[-1] + 1):
            data = member.read(size)
            if index in indices:
                images.append(np.frombuffer(data, np.uint8).reshape(shape[1:]))
    return np.stack(images)


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """The labels `arr_1` beside an archive's samples, int64 (n,)."""
    with _Member(path, "arr_1") as member:
        if not np.issubdtype(member.dtype, np.integer) or len(member.shape) != 1 or member.shape[0] == 0:
            raise UserError(f"{path}: arr_1 must hold integer labels (n,), not {member.dtype} {member.shape}")
        data = member.read(member.shape[0] * member.dtype.itemsize)
    return np.frombuffer(data, member.dtype).astype(np.int64)


class _Member:
    """One array of an npz archive as a stream: ``shape`` and ``dtype`` from its header, then its bytes."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: not a valid npz archive ({error})") from None
        try:
            self._stream = self._archive.open(f"{name}.npy")
            version = np.lib.format.read_magic(self._stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            self.shape, fortran_order, self.dtype = read_header(self._stream)
        except KeyError:
            self._archive.close()
            raise UserError(f"{path}: lacks the array {name}") from None
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, OSError) as error:
            self._archive.close()
            raise UserError(f"{path}: {name} is damaged ({error})") from None
        if fortran_order and len(self.shape) > 1:
            self._archive.close()
            raise UserError(f"{path}: {name} must be stored row-major")

    def __enter__(self) -> "_Member":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()

    def read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise UserError(f"{self.path}: {self.name} is damaged ({error})") from None
        if len(data) != size:
            raise UserError(f"{self.path}: {self.name} is cut short")
        return data
