"""Labelled images of either kind: a table that holds them, or a manifest that says where they lie."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from fvq.data import image_table, manifest
from fvq.data.image_table import ImageTable
from fvq.data.manifest import ImageManifest
from fvq.runtime.errors import UserError
from fvq.runtime.parquet import KEY, unreadable_as_user_errors

LabelledImages = ImageTable | ImageManifest


def open_images(path: Path | str) -> LabelledImages:
    """Open the table or the manifest at ``path``, whichever its metadata names; UserError for anything else."""
    path = Path(path)
    with unreadable_as_user_errors(path):
        metadata = pq.read_schema(path).metadata or {}
    try:
        found = json.loads(metadata[KEY])["format"]
    except (KeyError, ValueError, TypeError):
        found = None
    if found == image_table.FORMAT:
        return ImageTable.open(path)
    if found == manifest.FORMAT:
        return ImageManifest.open(path)
    names = "no fvq format" if found is None else f"format {found!r}"
    raise UserError(f"{path}: holds {names}, and {image_table.FORMAT!r} or {manifest.FORMAT!r} was expected")
