"""Square crops of photographs: the two centre crops of the published evaluations and the random crop of training."""

import math
from collections.abc import Sequence

from PIL import Image


def center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and cut the centre square, as ``center_crop_arr`` of guided-diffusion does.

    Halvings with a box filter while at least twice the size is left, then bicubic (Dhariwal and Nichol, 2021,
    https://github.com/openai/guided-diffusion, image_datasets.py).
    """
    image = _scale_shorter_side(image, size)
    return _cut(image, (image.height - size) // 2, (image.width - size) // 2, size)


def center_crop_plain(image: Image.Image, size: int) -> Image.Image:
    """Cut the centre square without scaling, black where the image is smaller, as torchvision's ``CenterCrop`` does.

    FVQ's released evaluation sees its images so (https://github.com/yfChang-cv/FVQ, eval_fid_release.py).
    """
    return _cut(image, _plain_start(image.height, size), _plain_start(image.width, size), size)


def random_crop(image: Image.Image, size: int, least: float, most: float, draws: Sequence[float]) -> Image.Image:
    """Scale the shorter side to a random length and cut a random square, as guided-diffusion and LlamaGen train.

    It is their ``random_crop_arr`` (guided-diffusion's image_datasets.py, LlamaGen's dataset/augmentation.py) with the
    chance given from outside. The shorter side becomes a whole number from ceil(``size`` / ``most``) to
    ceil(``size`` / ``least``), with filters as in ``center_crop_adm``; the square's top and left then lie anywhere that
    it fits. All bounds are included.

    Args:
        image: RGB.
        size: side of the square, pixels.
        least: share of the shorter side that a square covers at the least, above 0.
        most: and at the most, from ``least`` to 1. With both 1, the square moves along the longer side alone.
        draws: three numbers in [0, 1), for side, top and left; each chooses uniformly from its whole numbers.
    """
    shortest, longest = math.ceil(size / most), math.ceil(size / least)
    image = _scale_shorter_side(image, shortest + math.floor(draws[0] * (longest - shortest + 1)))
    top = math.floor(draws[1] * (image.height - size + 1))
    left = math.floor(draws[2] * (image.width - size + 1))
    return _cut(image, top, left, size)


def _scale_shorter_side(image: Image.Image, side: int) -> Image.Image:
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _plain_start(length: int, size: int) -> int:
    # torchvision rounds halves to even where it cuts, and down where it pads.
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def _cut(image: Image.Image, top: int, left: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
