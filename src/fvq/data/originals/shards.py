"""Parquet shards as Hugging Face's ``datasets`` writes them: image bytes and labels.

Shards cannot be read at random (a row group of ImageNet's holds a hundred images), so their images are copied once.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fvq.data.originals.listing import Listing, Original
from fvq.data.originals.tars import list_members
from fvq.data.records import map_in_threads
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file, write_atomically
from fvq.runtime.parquet import column_type, unreadable_as_user_errors
from fvq.runtime.progress import track

_BATCH_ROWS = 64


def list_shards(path: str, shards: Sequence[Path], unpack_folder: Path) -> Listing:
    """The images of the shards in their order, copied into tars in ``unpack_folder``, bytes unchanged.

    Each shard becomes one tar, named after it and the beginning of its SHA-256; what stands there already is kept.
    Columns are ``image`` (struct of ``bytes`` and perhaps ``path``) and ``label`` (integers). The classes are the
    label's names in the schema's metadata, or else numbers.

    Raises:
        UserError: a damaged shard, other columns, shards with different classes or from several splits, a row without
            bytes or with a label that has no class, a tar in ``unpack_folder`` that is not the shard's.
        OSError: from the copying, such as a full disk.
    """
    _check_one_split(path, shards)
    names = _class_names(shards[0])
    for shard in shards:
        if _class_names(shard) != names:
            raise UserError(f"{shard}: its classes are not those of {shards[0].name}")
    labels = [_read_labels(shard, names) for shard in shards]
    originals = []
    with track("unpacking shards", total=len(shards)) as advance:
        tars = map_in_threads(lambda shard: unpack_shard(shard, unpack_folder), shards)
        for shard, shard_labels, tar in zip(shards, labels, tars, strict=True):
            members = list_members(tar)
            if len(members) != len(shard_labels):
                raise UserError(
                    f"{tar}: holds {len(members)} images, and {shard.name} holds {len(shard_labels)}; remove the tar "
                    "to have it made anew"
                )
            originals += [
                Original(str(tar), member.offset, member.length, label, f"{shard.stem}/{member.name}")
                for member, label in zip(members, shard_labels, strict=True)
            ]
            advance(1)
    if names is None:
        numbers = range(max((image.label for image in originals), default=-1) + 1)
        return Listing(path, tuple(map(str, numbers)), "numbers", originals)
    return Listing(path, names, "names", originals)


def unpack_shard(shard: Path, folder: Path) -> Path:
    """Copy the shard's images into a tar in ``folder``, whole or not at all, unless it is there; the tar's path.

    Members come in the shard's order and are called by row and, where the shard tells it, name.
    """
    tar_path = folder / f"{shard.stem}-{sha256_file(shard)[:16]}.tar"
    if tar_path.exists():
        return tar_path
    with write_atomically(tar_path) as temporary, tarfile.open(temporary, "w") as tar:
        for row, image in enumerate(_read_images(shard)):
            encoded = image["bytes"] if image else None
            if image is None or encoded is None:
                raise UserError(f"{shard}: row {row}: holds no image bytes")
            name = PurePosixPath(image.get("path") or "image").name
            member = tarfile.TarInfo(f"{row:06d}-{name}")
            member.size = len(encoded)
            tar.addfile(member, pa.BufferReader(encoded))
    return tar_path


def _read_images(shard: Path) -> Iterator[dict[str, Any] | None]:
    with unreadable_as_user_errors(shard):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=_BATCH_ROWS, columns=["image"]):
            yield from batch.column("image").to_pylist()


def _check_one_split(path: str, shards: Sequence[Path]) -> None:
    """Shards of several splits often share a folder: train-00000-of-00294.parquet and so on."""
    splits = sorted({match[1] for shard in shards if (match := re.match(r"(.+)-\d+-of-\d+", shard.name))})
    if len(splits) > 1:
        raise UserError(
            f"{path}: holds shards of several splits ({', '.join(splits)}); a pattern such as "
            f"{shards[0].parent / splits[0]}-*.parquet names those of one"
        )


def _class_names(shard: Path) -> tuple[str, ...] | None:
    """From the metadata, None where it tells none. The columns are checked too."""
    with unreadable_as_user_errors(shard):
        schema = pq.ParquetFile(shard).schema_arrow
    image, label = column_type(shard, schema, "image"), column_type(shard, schema, "label")
    fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
    if fields.get("bytes") not in (pa.binary(), pa.large_binary()):
        raise UserError(f"{shard}: column image holds {image}, and a struct with bytes was expected")
    if not pa.types.is_integer(label):
        raise UserError(f"{shard}: column label holds {label}, and integers were expected")
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{shard}: metadata: the label's names should be a list of text")
    return tuple(names)


def _read_labels(shard: Path, names: tuple[str, ...] | None) -> list[int]:
    with unreadable_as_user_errors(shard):
        labels: list[int | None] = pq.read_table(shard, columns=["label"]).column("label").to_pylist()
    known = []
    for row, label in enumerate(labels):
        if label is None or label < 0 or (names is not None and label >= len(names)):
            raise UserError(f"{shard}: row {row}: label {label} is no class (test splits come without labels)")
        known.append(label)
    return known
