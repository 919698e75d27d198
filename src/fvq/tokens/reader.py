"""Training batches from token tables of any size, in shuffled order and constant memory."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvq.runtime.batches import steps_per_epoch
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator
from fvq.tokens.layout import parse_shard_name, shard_name
from fvq.tokens.schema import Codes, TokenTableInfo, code_dtype
from fvq.tokens.shard import Shard, TokenPart

# Codes of a window, one view of each image: 32 MiB at two bytes a code. Two windows are in memory.
WINDOW_CODES = 2**24
# A table of so many codes, all views counted, is read once and kept, and is one window.
KEPT_CODES = 2**25
_READERS = 2


def open_token_table(
    folder: Path | str, tokenizer_sha256: str | None = None, codebook_size: int | None = None
) -> "TokenTable":
    """The table in ``folder``, of which descriptions are read and no rows.

    That no image stands there twice, in two shards or in one, is looked at by ``TokenTable.parts`` and ``read``, which
    see all rows, and not by ``batch``.

    Args:
        folder: where ``write_token_shards`` wrote.
        tokenizer_sha256: the tokenizer that must have made it, if that matters.
        codebook_size: the codebook size it must have, if that matters.

    Raises:
        UserError: no such folder or no shard in it, a missing shard, shards of two tables, a damaged file, another
            format, another tokenizer or codebook size, a wrong or missing column. It names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: is no folder of shards")
    places = {path: place for path in folder.iterdir() if (place := parse_shard_name(path))}
    if not places:
        raise UserError(f"{folder}: holds no token table (files {shard_name(0, 1)} and so on)")
    examples = {count: path.name for path, (_, count) in places.items()}
    if len(examples) > 1:
        raise UserError(f"{folder}: shards of several tables, such as {' and '.join(sorted(examples.values()))}")
    shards = [Shard(folder / shard_name(number, count)) for count in examples for number in range(count)]
    info = shards[0].info
    if tokenizer_sha256 is not None and info.tokenizer_sha256 != tokenizer_sha256:
        raise UserError(
            f"{shards[0].path} was made by another tokenizer: its file has SHA-256 {info.tokenizer_sha256}, "
            f"and {tokenizer_sha256} was expected"
        )
    if codebook_size is not None and info.codebook_size != codebook_size:
        raise UserError(f"{shards[0].path}: made with {info.codebook_size} codes, and {codebook_size} were expected")
    for shard in shards:
        if shard.info != info:
            raise UserError(f"{shard.path}: belongs to another table than {shards[0].path.name}")
    images = sum(sum(shard.group_images) for shard in shards)
    if images != info.images:
        raise UserError(f"{folder}: its shards hold {images} images, and {info.images} were expected")
    return TokenTable(info, shards)


@dataclass(frozen=True, eq=False)
class _Order:
    """In which order an epoch visits the row groups, and how they form windows."""

    groups: NDArray[np.int64]
    starts: NDArray[np.int64]
    """The place in the epoch of each window's first image."""


@dataclass(frozen=True, eq=False)
class _Window:
    """Images in one view each, and the order in which they are visited."""

    codes: Codes
    """(n, h·w)"""
    labels: NDArray[np.int32]
    order: NDArray[np.int64]


class TokenTable:
    """A token table on disk; ``open_token_table`` opens one.

    An epoch takes the row groups, each a random sample of the images, in shuffled order and some at a time: a window,
    whose images are shuffled. The next window is read in the background. What a step sees follows from its number, the
    batch size and the seed.
    """

    def __init__(self, info: TokenTableInfo, shards: list[Shard]) -> None:
        self.info = info
        self._groups = [(shard, number) for shard in shards for number in range(len(shard.group_images))]
        self._group_images = np.array([images for shard in shards for images in shard.group_images])
        kept = info.rows * info.tokens_per_image <= KEPT_CODES
        self._kept: dict[int, TokenPart] | None = {} if kept else None
        per_group = int(self._group_images.max()) * info.tokens_per_image
        self._groups_per_window = len(self._groups) if kept else max(1, WINDOW_CODES // per_group)
        self._windows: dict[tuple[int, int, int], Future[_Window]] = {}
        self._ahead, self._readers = ThreadPoolExecutor(1), ThreadPoolExecutor(_READERS)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __len__(self) -> int:
        return self.info.rows

    @property
    def images(self) -> int:
        """Number of images, views not counted."""
        return self.info.images

    @property
    def paths(self) -> list[Path]:
        """The shards' files."""
        return list(dict.fromkeys(shard.path for shard, _ in self._groups))

    def parts(self) -> Iterator[TokenPart]:
        """Everything, a row group at a time, in the order of the files.

        Raises:
            UserError: a damaged page, a null, or a value that the table does not have; it names shard and row. Or an
                image that stands in two places; it names the second one's shard.
        """
        seen = np.zeros(self.images, bool)
        for group, (shard, _) in enumerate(self._groups):
            part = self._part(group)
            ids, times = np.unique(part.image_ids, return_counts=True)
            again = ids[seen[ids] | (times > 1)]
            if again.size:
                raise UserError(f"{shard.path}: image {again[0]} stands in the table a second time")
            seen[ids] = True
            yield part

    def read(self) -> tuple[Tensor, Tensor]:
        """Everything in memory, by image id: tokens int64 (N, V, h·w) and labels int64 (N,); errors as of ``parts``."""
        info = self.info
        tokens_nvt = np.empty((info.images, len(info.views), info.tokens_per_image), np.int64)
        labels_n = np.empty(info.images, np.int64)
        for part in self.parts():
            tokens_nvt[part.image_ids], labels_n[part.image_ids] = part.codes, part.labels
        return torch.from_numpy(tokens_nvt), torch.from_numpy(labels_n)

    def batch(self, step: int, batch_size: int, seed: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The ``part`` of the ``batch_size`` images that training step ``step`` sees.

        An epoch visits each image once, in shuffled order, in one of its views drawn at random; its last incomplete
        batch is dropped.

        Returns:
            Tokens int64 (b, h·w) and labels int64 (b,).

        Raises:
            UserError: there are fewer images than ``batch_size``; or as of ``parts``.
        """
        epoch, place = divmod(step, steps_per_epoch(self.images, batch_size))
        places = np.arange(place * batch_size, (place + 1) * batch_size)[part]
        starts = self._order(seed, epoch).starts
        window_of = np.searchsorted(starts, places, side="right") - 1
        tokens = np.empty((len(places), self.info.tokens_per_image), np.int64)
        labels = np.empty(len(places), np.int64)
        for number in np.unique(window_of).tolist():
            here = window_of == number
            window = self._window(seed, epoch, number)
            rows = window.order[places[here] - starts[number]]
            tokens[here], labels[here] = window.codes[rows], window.labels[rows]
        return torch.from_numpy(tokens), torch.from_numpy(labels)

    def _make_order(self, seed: int, epoch: int) -> _Order:
        groups = torch.randperm(len(self._groups), generator=generator(seed, "row groups", epoch)).numpy()
        ends = np.cumsum(self._group_images[groups])
        return _Order(groups, np.concatenate([[0], ends])[: -1 : self._groups_per_window])

    def _window(self, seed: int, epoch: int, number: int) -> _Window:
        """A window, with the next one on its way; others are dropped."""
        last = number + 1 == len(self._order(seed, epoch).starts)
        wanted = ((seed, epoch, number), (seed, epoch + 1, 0) if last else (seed, epoch, number + 1))
        for key in self._windows.keys() - wanted:
            self._windows.pop(key).cancel()
        for key in wanted:
            if key not in self._windows:
                self._windows[key] = self._ahead.submit(self._load, *key)
        return self._windows[wanted[0]].result()

    def _load(self, seed: int, epoch: int, number: int) -> _Window:
        first = number * self._groups_per_window
        groups = self._order(seed, epoch).groups[first : first + self._groups_per_window]
        edges = np.concatenate([[0], np.cumsum(self._group_images[groups])])
        count = int(edges[-1])
        codes: Codes = np.empty((count, self.info.tokens_per_image), code_dtype(self.info.codebook_size))
        labels = np.empty(count, np.int32)

        def fill(group: int, start: int) -> None:
            part = self._part(group)
            rows = slice(start, start + len(part.labels))
            drawn = generator(seed, "views", epoch, group)
            views = torch.randint(len(self.info.views), part.labels.shape, generator=drawn).numpy()
            codes[rows], labels[rows] = part.codes[np.arange(len(views)), views], part.labels

        for _ in self._readers.map(fill, groups.tolist(), edges[:-1].tolist()):
            pass
        order = torch.randperm(count, generator=generator(seed, "images of a window", epoch, number)).numpy()
        return _Window(codes, labels, order)

    def _part(self, group: int) -> TokenPart:
        if self._kept is not None and group in self._kept:
            return self._kept[group]
        shard, number = self._groups[group]
        part = shard.read(number)
        if self._kept is not None:
            self._kept[group] = part
        return part
