"""Files that appear whole or not at all, and their hashes."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvq.runtime.errors import UserError


@contextlib.contextmanager
def write_atomically(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed onto ``path``, on failure it is removed.

    The caller writes a file (or makes a folder) at the temporary path. What stood at ``path`` before stays as it was
    until the rename, and for good where the writing fails. Parent folders are created.

    Raises:
        OSError: from the writing itself; it names ``path``, not the temporary one.
        UserError: nothing was written at the temporary path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        if not temporary.exists():
            raise UserError(f"{path}: nothing was written")
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            _flush_to_disk(temporary)
            temporary.replace(path)
    except OSError as error:
        if error.filename is not None and not Path(str(error.filename)).is_relative_to(temporary):
            raise  # about some other file that the caller touched
        code = error.errno or errno.EIO
        raise OSError(code, error.strerror or str(error), str(path)) from error
    finally:
        _remove(temporary)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder but for hidden files, whole or not at all; one that is not there gives an empty one."""
    with write_atomically(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(".*"))
        else:
            temporary.mkdir()


def _replace_folder(new: Path, path: Path) -> None:
    """Folders cannot be renamed onto each other: move the old one aside first."""
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _remove(old)


def _flush_to_disk(path: Path) -> None:
    """A rename may reach the disk before the data does; a power cut then leaves an empty file under the final name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, data: Any) -> None:
    """Write ``data`` as indented JSON, whole or not at all. NaN and infinity are refused: JSON has no such numbers."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file; UserError where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
