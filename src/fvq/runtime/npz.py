"""Archives of arrays (``.npz``) written as a stream: 50,000 samples of 256 pixels take 9.8 GB, and memory a chunk."""

import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fvq.runtime.files import write_atomically

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows; equal arrays give equal bytes


@dataclass(frozen=True)
class ArrayStream:
    """An array that comes in chunks along its first axis, each of any number of rows."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    chunks: Iterable[npt.NDArray[Any]]


def write_npz(path: Path | str, arrays: Sequence[ArrayStream]) -> None:
    """Write an uncompressed archive that ``numpy.load`` reads, whole or not at all.

    The chunks are asked for one after another and none is kept. Equal arrays give equal bytes, however they are cut
    into chunks. Arrays and archive may exceed 4 GiB.

    Raises:
        ValueError: a chunk's dtype or the shape of its rows is not the array's, its chunks have too few or too many
            rows, a dtype is of Python objects, an array has no axis, two have the same name.
    """
    names = [array.name for array in arrays]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two arrays have the same name ({', '.join(names)})")
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays:
            entry = zipfile.ZipInfo(f"{array.name}.npy", _FIXED_DATE)
            entry.external_attr = 0o644 << 16  # readable where it is unpacked
            with archive.open(entry, "w", force_zip64=True) as member:
                _write_array(member, array)


def _write_array(member: IO[bytes], array: ArrayStream) -> None:
    dtype, shape = np.dtype(array.dtype), tuple(array.shape)
    if dtype.hasobject or not shape:
        raise ValueError(f"{array.name}: {dtype} {shape} cannot be written in chunks of rows")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    rows = 0
    for chunk in array.chunks:
        if chunk.dtype != dtype or chunk.shape[1:] != shape[1:] or not chunk.shape:
            raise ValueError(
                f"{array.name}: a chunk is {chunk.dtype} {chunk.shape}, not rows of the array's {dtype} {shape}"
            )
        rows += len(chunk)
        if rows > shape[0]:
            raise ValueError(f"{array.name}: its chunks have more than its {shape[0]} rows")
        if math.prod(chunk.shape):
            member.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
    if rows < shape[0]:
        raise ValueError(f"{array.name}: its chunks have {rows} rows, not {shape[0]}")
