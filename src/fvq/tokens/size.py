"""How large a token table is beside the least that its codes could take."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fvq.tokens.encodings import entropy_bits
from fvq.tokens.reader import open_token_table


@dataclass(frozen=True)
class TableSize:
    """What a table takes on disk, everything included."""

    images: int
    rows: int
    tokens: int
    bytes: int
    codebook_size: int
    codes_used: int
    bits_per_token: float
    entropy_bits_per_token: float
    """Zeroth-order entropy of the table's codes."""
    index_bits: int
    """⌈log2 codebook_size⌉, the bits of an index."""
    ratio: float | None
    """Bits per token to the smaller of entropy and index bits, 1 at best; None where all codes are the same."""

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f", {self.ratio:.3f} times its entropy"
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.bytes / 1e6:,.1f} MB: {self.bits_per_token:.2f} bits "
            f"per token{ratio}"
        )


def describe_size(folder: Path | str) -> TableSize:
    """Size and entropy of the table in ``folder``, counted as a stream.

    Errors as of ``open_token_table`` and ``TokenTable.parts``.
    """
    table = open_token_table(folder)
    info = table.info
    counts_k = np.zeros(info.codebook_size, np.int64)
    for part in table.parts():
        counts_k += np.bincount(part.codes.ravel(), minlength=info.codebook_size)
    tokens = info.rows * info.tokens_per_image
    total = sum(path.stat().st_size for path in table.paths)
    entropy, index_bits = entropy_bits(counts_k), (info.codebook_size - 1).bit_length()
    least = min(entropy, index_bits)
    return TableSize(
        images=info.images,
        rows=info.rows,
        tokens=tokens,
        bytes=total,
        codebook_size=info.codebook_size,
        codes_used=int((counts_k > 0).sum()),
        bits_per_token=8 * total / tokens,
        entropy_bits_per_token=entropy,
        index_bits=index_bits,
        ratio=8 * total / tokens / least if least else None,
    )
