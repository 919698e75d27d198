"""Archives of arrays (``.npz``) as streams: 50,000 samples of 256 pixels take 9.8 GB, and memory a chunk."""

import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows; equal arrays give equal bytes
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: it ends with the lengths of its name and its extra field
_BLOCK = 2**20


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


def array_names(path: Path | str) -> list[str]:
    """Names of the arrays in an archive, in its order; UserError unless it is a whole zip."""
    with _open_archive(Path(path)) as archive:
        return _names(archive)


def open_array(path: Path | str, name: str) -> "ArrayReader":
    """The array ``name`` of an archive, of which only the header is read.

    Archive and array may exceed 4 GiB and be compressed.

    Raises:
        UserError: no such file, no whole zip, no such array (the line names those that are there), a damaged header, an
            array that is shorter or longer than its header says, one stored column-major or of Python objects.
    """
    path = Path(path)
    with _open_archive(path) as archive:
        try:
            entry = archive.getinfo(f"{name}.npy")
        except KeyError:
            names = ", ".join(_names(archive)) or "none"
            raise UserError(f"{path}: lacks the array {name}; its arrays: {names}") from None
        with _damage_as_user_errors(path, name):
            with archive.open(entry) as member:
                shape, column_major, dtype = _read_header(member)
                header = member.tell()
            begin = _find_in_file(path, entry) if entry.compress_type == zipfile.ZIP_STORED else None
    if dtype.hasobject or (column_major and len(shape) > 1):
        what = "Python objects" if dtype.hasobject else "an array stored column-major"
        raise UserError(f"{path}: {name} holds {what}; save numpy.ascontiguousarray of it, of numbers")
    expected = header + math.prod(shape) * dtype.itemsize
    if entry.file_size != expected:
        raise UserError(
            f"{path}: {name} is damaged (its header says {dtype} {shape}, {expected} bytes, and it has "
            f"{entry.file_size})"
        )
    return ArrayReader(path, name, shape, dtype, header, entry.CRC, begin)


@dataclass(frozen=True)
class ArrayReader:
    """An array in an archive, read in rows along its first axis. Open it with ``open_array``."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _header: int
    """Bytes before the first row."""
    _checksum: int
    """The archive's CRC-32 of the array with its header."""
    _begin: int | None
    """Where it begins in the file; None where it is compressed."""

    def rows(self, start: int, stop: int, chunk: int) -> Iterator[npt.NDArray[Any]]:
        """The rows from ``start`` to ``stop`` in arrays of ``chunk`` rows, the last of which may be shorter.

        An uncompressed array is read at that place; a compressed one is unpacked from its beginning. All rows are
        compared with the archive's checksum before the last are handed over; part of the rows is not, and ``digest``
        does that.

        Raises:
            UserError: a damaged archive, or one that ends too early.
            ValueError: rows outside the array.
        """
        if not self.shape or not 0 <= start <= stop <= self.shape[0] or chunk < 1:
            raise ValueError(f"{self.name}: rows {start} to {stop} by {chunk} of an array {self.shape}")
        return self._chunks(start, stop, chunk)

    def _chunks(self, start: int, stop: int, chunk: int) -> Iterator[npt.NDArray[Any]]:
        checked = start == 0 and stop == self.shape[0] and self._begin is not None  # zipfile checks what is compressed
        with self._open() as stream:
            checksum = 0
            if checked:
                stream.seek(self._begin or 0)
                checksum = zlib.crc32(stream.read(self._header))
            self._seek(stream, start)
            for first in range(start, stop, chunk):
                rows = np.empty((min(chunk, stop - first), *self.shape[1:]), self.dtype)
                checksum = self._fill(stream, rows, checksum if checked else None)
                if checked and first + chunk >= stop:
                    self._compare(checksum)
                yield rows

    def take(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        """The rows at ``indices``, one or more; from a compressed array fastest in ascending order.

        Raises:
            UserError: as ``rows``.
            IndexError: an index outside the array.
        """
        if not 0 <= min(indices) <= max(indices) < self.shape[0]:
            raise IndexError(f"{self.name}: index outside the array's {self.shape[0]} rows")
        rows = np.empty((len(indices), *self.shape[1:]), self.dtype)
        with self._open() as stream:
            for place, index in enumerate(indices):
                self._seek(stream, index)
                self._fill(stream, rows[place : place + 1], None)
        return rows

    def digest(self) -> str:
        """SHA-256 of the archive's bytes, hexadecimal; the array is compared with its checksum in the same pass.

        Raises:
            UserError: the array is damaged.
        """
        sha256, checksum, position = hashlib.sha256(), 0, 0
        begin = self._begin or 0
        end = begin + self._header + math.prod(self.shape) * self.dtype.itemsize
        block = memoryview(bytearray(_BLOCK))
        with _damage_as_user_errors(self.path, self.name), self.path.open("rb", buffering=0) as file:
            while length := file.readinto(block):
                sha256.update(block[:length])
                mine = block[max(begin - position, 0) : max(min(end - position, length), 0)]
                checksum = zlib.crc32(mine, checksum)
                position += length
        if self._begin is not None:
            self._compare(checksum)
        else:
            with self._open() as member:
                while member.read(_BLOCK):  # at the end zipfile compares
                    pass
        return sha256.hexdigest()

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """The file, or the compressed array as it unpacks."""
        with _damage_as_user_errors(self.path, self.name):
            if self._begin is not None:
                with self.path.open("rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as member:
                    yield member

    def _seek(self, stream: IO[bytes], row: int) -> None:
        stream.seek((self._begin or 0) + self._header + row * math.prod(self.shape[1:]) * self.dtype.itemsize)

    def _fill(self, stream: IO[bytes], rows: npt.NDArray[Any], checksum: int | None) -> int:
        """Read contiguous ``rows``; the CRC-32 that goes on from ``checksum``, where one is given."""
        rest: memoryview = rows.reshape(-1).view(np.uint8).data if rows.nbytes else memoryview(b"")
        while len(rest):
            length: int = stream.readinto(rest)  # type: ignore[attr-defined]
            if not length:
                raise EOFError("it ends too early")
            if checksum is not None:
                checksum = zlib.crc32(rest[:length], checksum)
            rest = rest[length:]
        return checksum or 0

    def _compare(self, checksum: int) -> None:
        if checksum != self._checksum:
            raise UserError(f"{self.path}: {self.name} is damaged (its bytes do not have the archive's checksum)")


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # zipfile raises nearly anything on damaged bytes
        raise UserError(f"{path}: not a valid npz archive ({' '.join(str(error).split())})") from None
    with archive:
        yield archive


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextmanager
def _damage_as_user_errors(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # as above, and numpy's reading of headers too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: {name} is damaged ({reason})") from None


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, column_major, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, column_major, dtype = np.lib.format.read_array_header_2_0(member)
    if min(shape, default=0) < 0:
        raise ValueError(f"its header says {shape}")
    return shape, column_major, dtype


def _find_in_file(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin; its local header's length may differ from the directory's."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        begin = entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
    if begin + entry.file_size > path.stat().st_size or entry.compress_size != entry.file_size:
        raise ValueError("it ends too early")
    return begin
