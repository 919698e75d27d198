"""Images in uncompressed tars, addressed as ranges of the outermost file's bytes."""

import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fvq.data.originals.listing import Listing, Original, is_image_name
from fvq.runtime.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    """Of its first byte in the outermost file."""
    length: int


def compression_of(path: Path) -> str | None:
    """The name of the compression that the file's first bytes tell of, None where it is none of the usual ones."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def list_members(path: Path, tar: Member | None = None) -> list[Member]:
    """The regular files of the tar ``path``, or of the tar ``tar`` inside it, in their order.

    Raises:
        UserError: not a tar, or one that does not go on to its mark of the end, as an interrupted download leaves it.
    """
    where = f"{path}: {tar.name}" if tar else str(path)
    start = tar.offset if tar else 0
    end = start + tar.length if tar else path.stat().st_size
    members = []
    with path.open("rb") as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    if entry.isfile():
                        members.append(Member(entry.name, entry.offset_data, entry.size))
                after = archive.offset
        except tarfile.TarError as error:
            raise UserError(f"{where}: not a whole tar ({error})") from None
        # tarfile takes a damaged header for the end.
        file.seek(after)
        if after + tarfile.BLOCKSIZE > end or file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise UserError(
                f"{where}: not a whole tar (damaged or cut off at byte {min(after, end) - start} of {end - start})"
            )
    return members


def list_tar(path: Path) -> Listing:
    """A tar with one tar per class, whose names are the classes, or a flat tar of images, which is one class.

    Images come by class and name. Names that begin with a dot and other files are passed over.

    Raises:
        UserError: no whole tar, a class without images, neither images nor tars or both, images in several folders.
    """
    members = list_members(path)
    inner = sorted((member for member in members if member.name.endswith(".tar")), key=lambda tar: _stem(tar.name))
    images = sorted(member for member in members if is_image_name(member.name))
    if inner and images:
        raise UserError(f"{path}: holds both images and tars; one tar per class or only images would work")
    if images:
        folders = sorted({str(PurePosixPath(image.name).parent) for image in images})
        if len(folders) > 1:
            raise UserError(
                f"{path}: holds images in several folders ({folders[0]}, {folders[1]}, …); unpack it to use them as "
                "class folders"
            )
        originals = [_original(path, image, 0, "") for image in images]
        return Listing(str(path), (path.stem,), "container", originals)
    if not inner:
        raise UserError(f"{path}: holds neither images nor one tar per class")
    classes = tuple(_stem(tar.name) for tar in inner)
    if len(set(classes)) < len(classes):
        raise UserError(f"{path}: holds two tars of one name")
    originals = []
    for label, tar in enumerate(inner):
        found = sorted(member for member in list_members(path, tar) if is_image_name(member.name))
        if not found:
            raise UserError(f"{path}: {tar.name}: the class {classes[label]} has no images")
        originals += [_original(path, image, label, f"{classes[label]}/") for image in found]
    return Listing(str(path), classes, "names", originals)


def _original(path: Path, member: Member, label: int, prefix: str) -> Original:
    source = prefix + PurePosixPath(member.name).name
    return Original(str(path), member.offset, member.length, label, source)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
