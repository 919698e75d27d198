"""Which image stands where: shards and row groups that are random samples of the images, from the counts alone."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fvq.runtime.seeds import generator
from fvq.tokens.schema import TokenTableInfo

SHARD_CODES = 2**24  # 32 MiB at two bytes a code; what a kill costs, and what several processes share out
ROW_GROUP_CODES = 2**20  # what a reader decodes at once

_NAME = re.compile(r"tokens-(\d{5})-of-(\d{5})\.parquet")


def number_of_shards(info: TokenTableInfo) -> int:
    """Shards of a table, none without an image."""
    return max(1, min(info.images, round(info.rows * info.tokens_per_image / SHARD_CODES)))


def shard_name(number: int, count: int) -> str:
    """The file name of shard ``number`` (from 0) of ``count``."""
    return f"tokens-{number:05d}-of-{count:05d}.parquet"


def parse_shard_name(path: Path) -> tuple[int, int] | None:
    """Number and count of a file of that name; None for any other file."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2])) if found else None


def row_groups(info: TokenTableInfo, number: int) -> list[NDArray[np.int64]]:
    """Ids of the images of each row group of a shard.

    The images are shuffled by the table's seed and dealt out in that order, so that a row group is a random sample.
    Within it ids ascend, which takes fewer bits.
    """
    order_n = _order(info.images, info.seed)
    count = number_of_shards(info)
    first, end = (info.images * edge // count for edge in (number, number + 1))
    step = max(1, ROW_GROUP_CODES // (len(info.views) * info.tokens_per_image))
    return [np.sort(order_n[start : min(start + step, end)]) for start in range(first, end, step)]


@lru_cache(maxsize=1)
def _order(images: int, seed: int) -> NDArray[np.int64]:
    """A permutation of the image ids; kept, for a writer asks for each shard's row groups several times."""
    order_n: NDArray[np.int64] = torch.randperm(images, generator=generator(seed, "token table order")).numpy()
    return order_n
