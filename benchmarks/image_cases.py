"""Measures of images: SSIM, and reading what is measured."""

import functools
import io
import tarfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cases import Case, Work, tokens
from evaluation_inputs import SIDE, process_folder, random_images
from PIL import Image
from torch import Tensor

from fvq.evaluate.image_sets import open_image_set
from fvq.evaluate.ssim import ssim_g11, ssim_u7
from fvq.evaluate.summary import BATCH

OURS_READING = "open_image_set, batches"


def image_cases() -> list[Case]:
    """Similarities, and reading."""
    return [*_similarities(), *_reading()]


def _similarities() -> list[Case]:
    """Bound by the sums over the window in float64, a few dozen passes over each image. scikit-image has one thread."""
    count = tokens(64)
    uniform = {"channel_axis": -1, "data_range": 255}
    gaussian = uniform | {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        Case(
            title=f"SSIM: {count} images of {SIDE} pixels, {window}",
            base=ours.__name__,
            rivals={
                ours.__name__: partial(_similarity, ours, count),
                "scikit-image structural_similarity, image by image": partial(_similarity_elsewhere, settings, count),
            },
            agree=_same_similarity,
            rate=(count, "images"),
        )
        for window, ours, settings in (
            ("Gaussian window of 11x11", ssim_g11, gaussian),
            ("uniform window of 7x7", ssim_u7, uniform),
        )
    ]


def _two_versions(count: int) -> tuple[Tensor, Tensor]:
    images = random_images(count)
    return images, images // 8 * 8


def _similarity(similarity: Callable[[Tensor, Tensor], Tensor], count: int) -> Work:
    original, coarser = _two_versions(count)
    return lambda: similarity(original, coarser)


def _similarity_elsewhere(settings: dict[str, Any], count: int) -> Work:
    from skimage.metrics import structural_similarity

    pairs = [images.permute(0, 2, 3, 1).contiguous().numpy() for images in _two_versions(count)]
    return lambda: torch.tensor([structural_similarity(*pair, **settings) for pair in zip(*pairs, strict=True)])


def _same_similarity(result_b: Tensor, expected_b: Tensor) -> None:
    torch.testing.assert_close(result_b.double(), expected_b, rtol=0, atol=1e-6)


def _reading() -> list[Case]:
    """From the page cache: bound by the decoding of PNG, by copying and the archive's checksum where it is an npz."""
    forms: dict[str, tuple[str, Callable[[Path], Iterable[np.ndarray]]]] = {
        "images.npz": ("numpy.load of the whole array", _load_archive),
        "images": ("a loop of Image.open and numpy.asarray", _open_files),
        "images.tar": ("a loop of tarfile, Image.open and numpy.asarray", _open_members),
        "images.parquet": ("a loop of pyarrow, Image.open and numpy.asarray", _open_rows),
    }
    words = {"images.npz": "npz", "images": "folder of PNG", "images.tar": "tar of PNG", "images.parquet": "Parquet"}
    count = tokens(256)
    return [
        Case(
            title=f"Reading: {count} images of {SIDE} pixels, {words[name]}",
            base=OURS_READING,
            rivals={OURS_READING: partial(_read, name, count), loop: partial(_read_by, by, name, count)},
            agree=_same_corners,
            rate=(count, "images"),
        )
        for name, (loop, by) in forms.items()
    ]


def _same_corners(result_nc: Tensor, expected_nc: Tensor) -> None:
    """Every image, in order."""
    assert torch.equal(result_nc, expected_nc)


def _read(name: str, count: int) -> Work:
    path = _stored(name, count)

    def work() -> Tensor:
        images = open_image_set(path)
        return torch.cat([batch_bchw[:, :, -1, -1].clone() for batch_bchw in images.batches(0, len(images), BATCH)])

    return work


def _read_by(by: Callable[[Path], Iterable[np.ndarray]], name: str, count: int) -> Work:
    path = _stored(name, count)
    return lambda: torch.stack([torch.from_numpy(image_hwc[-1, -1].copy()) for image_hwc in by(path)])


def _load_archive(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return archive["arr_0"]


def _open_files(path: Path) -> Iterable[np.ndarray]:
    return (np.asarray(Image.open(file)) for file in sorted(path.iterdir()))


def _open_members(path: Path) -> Iterable[np.ndarray]:
    with tarfile.open(path) as archive:
        for member in archive:
            yield np.asarray(Image.open(archive.extractfile(member)))


def _open_rows(path: Path) -> Iterable[np.ndarray]:
    return (np.asarray(Image.open(io.BytesIO(row.as_py()))) for row in pq.read_table(path)["image"])


@functools.cache
def _stored(name: str, count: int) -> Path:
    """The images in one of the forms."""
    path = process_folder() / name
    images_bhwc = random_images(count).permute(0, 2, 3, 1).contiguous().numpy()
    if path.suffix == ".npz":
        np.savez(path, arr_0=images_bhwc)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"image": [_png(image_hwc) for image_hwc in images_bhwc]}), path)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for file in sorted(_stored("images", count).iterdir()):
                archive.add(file, file.name)
    else:
        path.mkdir()
        for number, image_hwc in enumerate(images_bhwc):
            (path / f"{number:05d}.png").write_bytes(_png(image_hwc))
    return path


def _png(image_hwc: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
