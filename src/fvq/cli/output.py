"""Where commands write: checked before the work, told after it."""

import os
from pathlib import Path

from fvq.runtime.errors import UserError


def check_output(path: Path, endings: tuple[str, ...], *, force: bool) -> None:
    """UserError unless ``path`` has one of the ``endings``, can be written, and is not there yet (or ``force``)."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{path}: the output must end in {' or '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; --force overwrites it")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{path}: cannot be written in {nearest}")


def provenance_path(path: Path) -> Path:
    """Where the record of the output at ``path`` goes: ``samples.npz`` -> ``samples.npz.provenance.json``."""
    return path.with_name(f"{path.name}.provenance.json")


def tell_written(path: Path, what: str) -> None:
    """Say on standard output that ``path`` was written, and ``what`` it holds."""
    print(f"wrote {path} ({what})")
