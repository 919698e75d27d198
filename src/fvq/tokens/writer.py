"""Writing token tables shard by shard, in one process or several, with those kept that are finished."""

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvq.quantize.processes import number_of_processes, process_number
from fvq.runtime.checkpoint import locked
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.interruption import Interrupted, signals_noted
from fvq.runtime.processes import gather, in_any_process, is_orphaned, wait_for_all
from fvq.runtime.progress import Advance, track
from fvq.tokens.encodings import choose_encoding, open_writer
from fvq.tokens.layout import number_of_shards, parse_shard_name, row_groups, shard_name
from fvq.tokens.schema import Codes, TokenBatch, TokenTableInfo, code_dtype, table_schema
from fvq.tokens.shard import Shard

Encode = Callable[[Tensor], Iterable[TokenBatch]]
"""Image ids int64 (n,) to batches: each view's come in the order of the ids, the views in any order."""


def write_token_shards(folder: Path | str, encode: Encode, info: TokenTableInfo) -> None:
    """Write the table that ``info`` describes into ``folder`` as shards of some 16 million codes.

    Every process of the group calls this. The shards that are not there yet are dealt out to the processes; each
    appears whole or not at all, written while the next one is encoded. What finds its shards from an earlier call, in
    however many processes, encodes the rest. The table does not depend on who wrote it. After each shard the processes
    meet: at a signal to one it drops the shard in hand, the others finish theirs.

    ``encode`` is asked for the images of a shard, their ids ascending: images that are stored together come together.

    ``fvq.tokens.encodings`` says what the codes take beside their entropy, ``describe_size`` measures it.

    Raises:
        UserError: shards of another table in ``folder``, another process writes there, or batches that do not fit: a
            code outside the codebook, a label without a class, a view or a shape that ``info`` does not name, images
            that were not asked for.
        Interrupted: a scheduler's signal came, or ``torchrun`` was killed; finished shards stay.
        OSError: from the writing, such as a full disk; it names the shard.
    """
    folder, count = Path(folder), number_of_shards(info)
    process, processes, parent = process_number(), number_of_processes(), os.getppid()
    with ExitStack() as stack:
        signal_name = stack.enter_context(signals_noted())
        if process == 0:
            stack.enter_context(locked(folder))
            _prepare(folder, count)
        wait_for_all()
        missing = [number for number in range(process, count, processes) if not _is_finished(folder, info, number)]
        todo = sorted(number for of_one in gather(missing) for number in of_one)[process::processes]
        images = sum(len(ids) for number in todo for ids in row_groups(info, number))
        share = f" (share {process + 1} of {processes})" if processes > 1 else ""
        advance = stack.enter_context(track(f"encoding{share}", images, unit="images", hidden=process > 0))
        background = stack.enter_context(ThreadPoolExecutor(1))

        def stopping() -> bool:
            return signal_name() is not None or is_orphaned(parent)

        writing: Future[None] | None = None
        for turn in range(max(gather(len(todo)))):
            if turn < len(todo) and (rows := _encode_shard(folder, encode, info, todo[turn], stopping, advance)):
                if writing:
                    writing.result()
                writing = background.submit(_write, rows, todo[turn], count)
            if in_any_process(stopping()):
                break
        if writing:
            writing.result()
        # Who leaves before the others have written takes them along.
        if in_any_process(stopping()):
            raise Interrupted(
                f"encoding: {signal_name() or 'a signal to another process'} received; the same command goes on with "
                f"the shards that are not whole in {folder}"
            )


def _encode_shard(
    folder: Path,
    encode: Encode,
    info: TokenTableInfo,
    number: int,
    stopping: Callable[[], bool],
    advance: Advance,
) -> "_Rows | None":
    """A shard's rows; None where it is left because of ``stopping()``, which is asked for each batch."""
    path = folder / shard_name(number, number_of_shards(info))
    rows = _Rows(path, info, np.concatenate(row_groups(info, number)))
    for batch in encode(torch.from_numpy(rows.ascending_ids)):
        if stopping():
            return None
        rows.add(batch, advance)
    rows.check_complete()
    return rows


def link_shards(source: Path, target: Path) -> None:
    """Make the folder ``target`` of the files in ``source``, whole or not at all, as further names of the same files.

    Where the file system has no such links, they are copied.
    """
    with write_atomically(target) as temporary:
        temporary.mkdir()
        for path in sorted(source.glob("tokens-*.parquet")):
            try:
                os.link(path, temporary / path.name)
            except OSError:
                shutil.copyfile(path, temporary / path.name)


def _prepare(folder: Path, count: int) -> None:
    """Make the folder, refuse shards of another layout, remove what killed processes left."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".tokens-*.tmp*"):
        path.unlink(missing_ok=True)
    for path in sorted(folder.glob("*.parquet")):
        place = parse_shard_name(path)
        if place is None or place[1] != count or place[0] >= count:
            raise UserError(f"{path}: is no shard of this table, which has {count}; remove {folder} first")


def _is_finished(folder: Path, info: TokenTableInfo, number: int) -> bool:
    """Whether a shard is there and undamaged. UserError where it belongs to another table."""
    path = folder / shard_name(number, number_of_shards(info))
    if not path.exists():
        return False
    try:
        shard = Shard(path)
        same = shard.info == info
        if same:
            parts = [shard.read(group).image_ids for group in range(len(shard.group_images))]
            same = np.array_equal(np.concatenate(parts), np.concatenate(row_groups(info, number)))
    except UserError as error:
        print(f"fvq: {error}; it is written again", file=sys.stderr)
        return False
    if not same:
        raise UserError(f"{path}: belongs to another table; remove {folder} first")
    return True


@dataclass(eq=False)
class _Rows:
    """A shard's rows, two or four bytes a code, filled in ascending order of the ids."""

    path: Path
    info: TokenTableInfo
    image_ids: NDArray[np.int64]
    """In the order of the file."""

    def __post_init__(self) -> None:
        shape = (len(self.image_ids), len(self.info.views), self.info.tokens_per_image)
        self.codes: Codes = np.empty(shape, code_dtype(self.info.codebook_size))
        self.labels = np.empty(len(self.image_ids), np.int32)
        self._places = np.argsort(self.image_ids)
        self.ascending_ids = self.image_ids[self._places]
        self._filled = dict.fromkeys(self.info.views, 0)

    def add(self, batch: TokenBatch, advance: Advance) -> None:
        info, count = self.info, len(batch.codes)
        shapes = (batch.codes.shape, batch.image_ids.shape, batch.labels.shape)
        if shapes != ((count, info.tokens_per_image), (count,), (count,)):
            raise UserError(
                f"{self.path}: codes, image_ids and labels of shapes {', '.join(str(tuple(s)) for s in shapes)}; "
                f"(B, {info.tokens_per_image}), (B,), (B,) were expected"
            )
        if batch.view not in self._filled:
            raise UserError(f"{self.path}: view {batch.view!r} is none of {', '.join(info.views)}")
        _check_range(self.path, "code", batch.codes, info.codebook_size)
        _check_range(self.path, "label", batch.labels, len(info.classes))
        start = self._filled[batch.view]
        rows = self._places[start : start + count]
        if not np.array_equal(batch.image_ids.cpu().numpy(), self.image_ids[rows]):
            raise UserError(f"{self.path}: other images than were asked for, or in another order")
        self.codes[rows, info.views.index(batch.view)] = batch.codes.cpu().numpy()
        self.labels[rows] = batch.labels.cpu().numpy()
        before = self.whole
        self._filled[batch.view] += count
        advance(self.whole - before)

    @property
    def whole(self) -> int:
        """Images of which all views are there."""
        return min(self._filled.values())

    def check_complete(self) -> None:
        for view, count in self._filled.items():
            if count < len(self.image_ids):
                raise UserError(f"{self.path}: view {view!r} came for {count} of {len(self.image_ids)} images")

    def to_arrow(self, rows: slice, schema: pa.Schema) -> pa.Table:
        """The rows of some images, all views of an image after each other."""
        views = len(self.info.views)
        codes = pa.array(self.codes[rows].ravel())
        columns = [
            pa.array(np.repeat(self.image_ids[rows], views)),
            pa.array(np.repeat(self.labels[rows], views)),
            pa.array(list(self.info.views) * len(self.image_ids[rows]), pa.string()),
            pa.FixedSizeListArray.from_arrays(codes, type=schema.field("codes").type),
        ]
        return pa.Table.from_arrays(columns, schema=schema)


def _write(rows: _Rows, number: int, count: int) -> None:
    schema = table_schema(rows.info, shard=number, shards=count)
    starts = np.cumsum([0, *map(len, row_groups(rows.info, number))]).tolist()
    groups = [slice(*edges) for edges in itertools.pairwise(starts)]
    encoding = choose_encoding(rows.to_arrow(groups[0], schema))
    with write_atomically(rows.path) as temporary, open_writer(temporary, schema, encoding) as writer:
        for group in groups:
            table = rows.to_arrow(group, schema)
            writer.write_table(table, row_group_size=len(table))


def _check_range(path: Path, what: str, values: Tensor, limit: int) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise UserError(
            f"{path}: {what}s from {int(values.min())} to {int(values.max())}; 0 to {limit - 1} are allowed"
        )
