"""How the column of codes is stored: the smallest of a few forms that every reader of Parquet knows.

Bits of 2^20 codes to their zeroth-order entropy, for codebooks of 256 to 262,144 codes:

- at most 1.03 where codes are used equally;
- at most 1.045 where code 0 is the most used, code 1 the next, and so on, and frequencies fall off exponentially over
  the first 13 % of the codes, or are those of exponential or log-normal variates (scale 1) over all;
- for frequencies 1/rank (Zipf's law) in that order at most 1.045 too, but from 1,024 to 4,096 codes 1.05 to 1.07, and
  above 65,536 up to 1.08: the codec sees low and high bytes apart, and its Huffman codes spend at least a bit on each;
- where a code's number says nothing of its frequency, up to 1.13 for the 13 % and 1.4 for 1/rank: two bytes share what
  neither tells alone. Ordering a codebook by use costs nothing and mends it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# A row group's codes in one page: the codec sees each stream as long as it can be.
_PAGE_BYTES = 2**22
_CODES = "codes.list.element"
# Below this share above the entropy the slow form is not tried.
_NEAR = 1.03


@dataclass(frozen=True)
class Encoding:
    """A form of the column of codes, zstd behind it at ``level``.

    With ``dictionary``: each code as an index of ⌈log2 of the codes that occur⌉ bits, which zstd cannot shorten.
    Without: the codes' low bytes, then their high bytes (BYTE_STREAM_SPLIT), which zstd codes by frequency.
    """

    dictionary: bool
    level: int


QUICK = (Encoding(False, 1), Encoding(True, 1))
# At level 1 zstd finds matches in streams of few different bytes that cost more than they save.
THOROUGH = Encoding(False, 18)


def choose_encoding(sample: pa.Table) -> Encoding:
    """The encoding for a shard, by trial on a ``sample`` of its rows (a few million codes at most).

    The smaller of two quick forms, which write some 100 MB of codes a second on one core. Where that is over 3 % off
    the sample's entropy, a thorough form of some 3 MB/s takes part.
    """
    codes = sample.column("codes").combine_chunks().flatten().to_numpy()
    sizes = {encoding: _trial(sample, encoding) for encoding in QUICK}
    if min(sizes.values()) * 8 > _NEAR * entropy_bits(np.bincount(codes)) * codes.size:
        sizes[THOROUGH] = _trial(sample, THOROUGH)
    return min(sizes, key=lambda encoding: sizes[encoding])


def open_writer(target: object, schema: pa.Schema, encoding: Encoding) -> pq.ParquetWriter:
    """A writer of token tables in this encoding."""
    return pq.ParquetWriter(
        target,
        schema,
        compression="zstd",
        compression_level=encoding.level,
        use_dictionary=["view", "label", *([_CODES] if encoding.dictionary else [])],
        dictionary_pagesize_limit=2**30,  # beyond it the writer would fall back to plain codes
        column_encoding={"image_id": "DELTA_BINARY_PACKED"}
        | ({} if encoding.dictionary else {_CODES: "BYTE_STREAM_SPLIT"}),
        data_page_size=_PAGE_BYTES,
        write_statistics=["image_id", "label"],
        write_page_checksum=True,
    )


def entropy_bits(counts_k: NDArray[np.integer[Any]]) -> float:
    """Zeroth-order entropy in bits of a code that occurs so often."""
    occurring = counts_k[counts_k > 0].astype(np.float64)
    shares = occurring / occurring.sum()
    return float((shares * np.log2(1 / shares)).sum())


def _trial(sample: pa.Table, encoding: Encoding) -> int:
    stream = pa.BufferOutputStream()
    with open_writer(stream, sample.schema, encoding) as writer:
        writer.write_table(sample, row_group_size=len(sample))
    return int(stream.getvalue().size)
