"""ILSVRC 2012's development kit: the labels of the validation images, which lie in one flat tar."""

import io
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from fvq.data.originals.listing import Listing
from fvq.runtime.errors import UserError

GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"


def with_labels(images: Listing, kit: Path) -> Listing:
    """The flat listing with the kit's labels; classes are the sorted ids of its synsets (WordNet, n01440764 and so on).

    An image's label follows from the number that its name ends with: line 1 of the kit's ground truth is that of
    ILSVRC2012_val_00000001.JPEG.

    Raises:
        UserError: the kit lacks a file or holds a damaged one; an image's name has no number, or one beyond the kit's.
    """
    classes, labels = read_development_kit(kit)
    labelled = []
    for image in images.images:
        number = re.search(r"(\d+)\.\w+$", image.source)
        if not number or not 1 <= int(number[1]) <= len(labels):
            raise UserError(
                f"{images.path}: {image.source}: its name ends with no number from 1 to {len(labels)}, and {kit} "
                "labels the images by that"
            )
        label = labels[int(number[1]) - 1]
        labelled.append(image._replace(label=label, source=f"{classes[label]}/{image.source}"))
    return Listing(images.path, classes, "names", labelled)


def read_development_kit(kit: Path) -> tuple[tuple[str, ...], list[int]]:
    """Sorted synset ids, and of each validation image, in order of its number, the index into them.

    ``kit`` is ILSVRC2012_devkit_t12.tar.gz, or the folder that was in it. The ids come from ``data/meta.mat``: its
    synsets without children, whose ILSVRC2012_ID the lines of the ground truth name.

    Raises:
        UserError: no such file or folder, a file missing in it, a file that is damaged or of another form.
    """
    from scipy.io import loadmat  # here, for it takes a while to import

    meta, ground_truth = _read_files(kit)
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        names = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets if not int(synset["num_children"])
        }
    except Exception as error:  # loadmat raises nearly anything on damaged bytes
        reason = " ".join(str(error).split())
        raise UserError(f"{kit}: {META} does not read as the kit's ({reason or type(error).__name__})") from error
    classes = tuple(sorted(names.values()))
    indices = {number: classes.index(name) for number, name in names.items()}
    labels = []
    for row, line in enumerate(ground_truth.splitlines(), start=1):
        if not line.isdigit() or int(line) not in indices:
            raise UserError(f"{kit}: {GROUND_TRUTH}: line {row} is no ILSVRC2012_ID of {META}")
        labels.append(indices[int(line)])
    return classes, labels


def _read_files(kit: Path) -> tuple[bytes, str]:
    """The content of ``META`` and of ``GROUND_TRUTH``."""
    found: dict[str, bytes] = {}
    if kit.is_dir():
        for file in (META, GROUND_TRUTH):
            for path in (*kit.glob(file), *kit.glob(f"*/{file}")):
                found[file] = path.read_bytes()
    elif kit.is_file():
        try:
            with tarfile.open(kit) as archive:
                for entry in archive:
                    for file in (META, GROUND_TRUTH):
                        if entry.isfile() and entry.name.endswith(file):
                            content = archive.extractfile(entry)
                            assert content is not None
                            found[file] = content.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{kit}: not a readable tar ({error})") from None
    else:
        raise UserError(f"{kit}: no such file or folder")
    for file in (META, GROUND_TRUTH):
        if file not in found:
            raise UserError(f"{kit}: holds no {file}; the development kit for tasks 1 and 2 of ILSVRC 2012 does")
    return found[META], found[GROUND_TRUTH].decode("ascii", errors="replace")
