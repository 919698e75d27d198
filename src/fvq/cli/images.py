"""Images that a person names on the command line: files and folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvq.data.crops import center_crop_adm
from fvq.data.decoding import read_rgb_image
from fvq.data.records import map_in_threads
from fvq.evaluate.image_order import list_images_below
from fvq.runtime.errors import UserError
from fvq.runtime.progress import track


def list_files(paths: Sequence[Path]) -> list[Path]:
    """The given files, and in a folder's place all images below it in the order of ``fvq.evaluate.image_order``.

    Raises:
        UserError: nothing at a path, or a folder without images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [path / name for name in list_images_below(path)]
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
