"""Images that a person names on the command line: files, folders, archives and tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvq.data.crops import center_crop_adm
from fvq.data.decoding import read_rgb_image
from fvq.data.open import open_images
from fvq.data.records import map_in_threads
from fvq.data.sources.folder import EXTENSIONS
from fvq.runtime.errors import UserError
from fvq.runtime.progress import track


def list_files(paths: Sequence[Path]) -> list[Path]:
    """The given files, and in a folder's place all images below it, sorted; hidden ones are passed over.

    Raises:
        UserError: nothing at a path, or a folder without images.
    """
    files = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in EXTENSIONS
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not found:
                raise UserError(f"{path}: holds no images ({', '.join(sorted(EXTENSIONS))})")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return files


def read_files(files: Sequence[Path], size: int | None) -> Tensor:
    """Images uint8 (N, 3, H, W), scaled and centre-cropped to ``size``; None takes them as they are, all of one size.

    Raises:
        UserError: a file that is no image, or images of different sizes.
    """

    def read(file: Path) -> NDArray[np.uint8]:
        image = read_rgb_image(file)
        return np.asarray(image if size is None else center_crop_adm(image, size)).transpose(2, 0, 1)

    images_nchw: NDArray[np.uint8] | None = None
    with track("reading images", len(files)) as advance:
        for number, image_chw in enumerate(map_in_threads(read, files)):
            if images_nchw is None:
                images_nchw = np.empty((len(files), *image_chw.shape), np.uint8)
            if image_chw.shape != images_nchw.shape[1:]:
                height, width = image_chw.shape[1:]
                raise UserError(
                    f"{files[number]}: has {width}x{height} pixels, and {files[0]} has "
                    f"{images_nchw.shape[3]}x{images_nchw.shape[2]}; --size scales and crops all to one size"
                )
            images_nchw[number] = image_chw
            advance(1)
    if images_nchw is None:
        raise UserError("no images were given")
    return torch.from_numpy(images_nchw)


def read_image_set(path: Path, size: int | None) -> Tensor:
    """Images uint8 (N, 3, H, W) of an npz archive (``arr_0`` uint8 NHWC), a folder or a Parquet image table.

    ``size`` is for folders, as in ``read_files``.

    Raises:
        UserError: nothing at the path, something else, or damaged.
    """
    if path.is_dir():
        return read_files(list_files([path]), size)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".npz":
        from fvq.study.archives import image_shape, read_images  # its package imports matplotlib: a second

        count = image_shape(path, "arr_0")[0]
        with track(f"reading {path.name}", count) as advance:
            images_nhwc = read_images(path, "arr_0", range(count))
            advance(count)
        return torch.from_numpy(images_nhwc).permute(0, 3, 1, 2).contiguous()
    if path.suffix.lower() == ".parquet":
        table = open_images(path)
        with track(f"reading {path.name}", len(table)) as advance:
            images = table.images()
            advance(len(table))
        return images
    raise UserError(f"{path}: neither an npz archive, nor a Parquet image table, nor a folder of images")
