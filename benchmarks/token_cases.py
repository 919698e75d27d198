"""Token tables beside a file per image, the released form: writing them, and an epoch of batches in random order."""

import functools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import torch
from cases import Case, Work, tokens
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fvq.tokens import TableSize, TokenBatch, TokenTableInfo, describe_size, open_token_table, write_token_shards

GRID = (16, 16)
CLASSES = 1000
BATCH = 256
WORKERS = 2
FILES = "a .npy file per image, int64, DataLoader of 2 workers"
TABLE = "open_token_table, batch"
SAVED = "np.save of a file per image, int64: 64 bits per token and headers"


def token_cases(device: str) -> list[Case]:
    """Reading and writing, which no GPU has a part in."""
    if device != "cpu":
        return []
    images = tokens(16384)
    reading = [
        Case(
            title=f"Reading tokens: {images:,} images of 256 tokens in random order, {views} views, 16,384 codes",
            base=FILES if FILES in rivals else None,
            rivals={name: partial(rival, images, views) for name, rival in rivals.items()},
            agree=_agree,
        )
        for views, rivals in ((2, {TABLE: _read_table, FILES: _read_files}), (10, {TABLE: _read_table}))
    ]
    writing = [
        Case(
            title=f"Writing tokens: {images:,} images of 256 tokens, 2 views, {codebook_size:,} codes used {use}",
            base=SAVED,
            rivals={
                "write_token_shards": partial(_write_table, images, codebook_size, use),
                SAVED: partial(_write_files, images, codebook_size, use),
            },
            agree=lambda result, expected: None,
        )
        for codebook_size, use in ((1024, "equally"), (16384, "equally"), (1024, "unequally"))
    ]
    return reading + writing


def _agree(labels: Tensor, expected: Tensor) -> None:
    """All images were seen once, which their labels stand for."""
    assert torch.equal(labels.sort().values, expected.sort().values)


def _info(images: int, views: int, codebook_size: int) -> TokenTableInfo:
    return TokenTableInfo(
        tokenizer_sha256="0" * 64,
        codebook_size=codebook_size,
        grid=GRID,
        views=tuple(f"view {number}" for number in range(views)),
        classes=tuple(map(str, range(CLASSES))),
        crop="none",
        images=images,
        seed=0,
    )


@functools.lru_cache(maxsize=2)
def _codes(images: int, views: int, codebook_size: int, use: str = "equally") -> np.ndarray:
    """Codes int64 (N, V, 256); used unequally, code 0 is the likeliest, and frequencies fall off exponentially."""
    rng = np.random.default_rng(0)
    shape = (images, views, GRID[0] * GRID[1])
    if use == "equally":
        return rng.integers(codebook_size, size=shape)
    frequencies = -np.log((np.arange(codebook_size) + 0.5) / codebook_size)
    return rng.choice(codebook_size, shape, p=frequencies / frequencies.sum())


def _labels(images: int) -> np.ndarray:
    return np.arange(images) % CLASSES


def _write_shards(folder: Path, codes_nvt: np.ndarray, codebook_size: int) -> None:
    info = _info(len(codes_nvt), codes_nvt.shape[1], codebook_size)
    labels = _labels(len(codes_nvt))

    def encode(image_ids: Tensor) -> Iterator[TokenBatch]:
        for ids in image_ids.split(BATCH):
            for number, view in enumerate(info.views):
                rows = ids.numpy()
                yield TokenBatch(ids, torch.from_numpy(labels[rows]), view, torch.from_numpy(codes_nvt[rows, number]))

    write_token_shards(folder, encode, info)


def _save_files(folder: Path, codes_nvt: np.ndarray) -> None:
    for part in ("codes", "labels"):
        (folder / part).mkdir()
    for number, (codes_vt, label) in enumerate(zip(codes_nvt, _labels(len(codes_nvt)), strict=True)):
        np.save(folder / "codes" / f"{number}.npy", codes_vt[None])
        np.save(folder / "labels" / f"{number}.npy", label[None])


@functools.cache
def _written(name: str, images: int, views: int) -> Path:
    """A folder of the process's lifetime with what is read."""
    folder = Path(tempfile.mkdtemp(prefix="fvq-benchmark-"))
    # Runs at the end of the processes that measure memory, too, and not in a DataLoader's.
    Finalize(None, shutil.rmtree, args=(folder,), exitpriority=0)
    codes_nvt = _codes(images, views, 16384)
    if name == TABLE:
        _write_shards(folder, codes_nvt, 16384)
    else:
        _save_files(folder, codes_nvt)
    return folder


def _read_table(images: int, views: int) -> Work:
    folder = _written(TABLE, images, views)

    def work() -> Tensor:
        table = open_token_table(folder)
        return _all_labels(table.batch(step, BATCH, 0) for step in range(images // BATCH))

    return work


def _read_files(images: int, views: int) -> Work:
    loader = DataLoader(
        _Files(_written(FILES, images, views), images),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
    )
    return lambda: _all_labels(loader)


def _all_labels(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([labels for _, labels in batches])


class _Files(Dataset[tuple[Tensor, Tensor]]):
    """An image's codes in one of its views, and its label."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.images = folder, images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        codes_vt = np.load(self.folder / "codes" / f"{number}.npy")[0]
        label = np.load(self.folder / "labels" / f"{number}.npy")[0]
        return torch.from_numpy(codes_vt[int(torch.randint(len(codes_vt), ()))]), torch.tensor(label)


def _write_table(images: int, codebook_size: int, use: str) -> Work:
    codes_nvt = _codes(images, 2, codebook_size, use)

    def work() -> TableSize:
        with tempfile.TemporaryDirectory(prefix="fvq-benchmark-") as folder:
            _write_shards(Path(folder), codes_nvt, codebook_size)
            return describe_size(folder)

    return work


def _write_files(images: int, codebook_size: int, use: str) -> Work:
    codes_nvt = _codes(images, 2, codebook_size, use)

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="fvq-benchmark-") as folder:
            _save_files(Path(folder), codes_nvt)

    return work
