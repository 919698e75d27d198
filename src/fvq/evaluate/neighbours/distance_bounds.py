"""Squared distances between features: proven bounds from products of tiles, and the distances of single pairs.

The distance of a pair is the sum of squared differences in float64, added up in one fixed order. It is the same bits on
every machine and for both orders of the pair, and 0 for copies. With it all is decided; the products only spare most
pairs.

Seen from a centre, features x and y have |x - y|² = |x|² + |y|² - 2 x·y. In arithmetic of unit roundoff u, summed in
any order, the product is off by at most γ(D) |x| |y|, where γ(n) = n u / (1 - n u) (Higham, Accuracy and Stability of
Numerical Algorithms, §3.1), so twice the product by γ(D) (|x|² + |y|²). Moving both features to the centre adds at
most 4 u (|x|² + |y|²), the squares, their rounding and the two additions (log₂ D + 8) u, and the distance in float64
itself 2 (log₂ D + 4) u, if u is that of float64. γ(D + 96) covers it all. What underflows is an absolute error, and a
small one: the features are scaled by a power of two, which rounds nothing, so that the longest is about 2^60.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fvq.evaluate.images import in_batches
from fvq.evaluate.neighbours.distinct_features import distinct_features
from fvq.evaluate.neighbours.fixed_sum import fixed_sum

# Bytes of float64 differences that are computed at once: they should stay in the cache.
_DIFFERENCES_BYTES = {"cpu": 2**22, "cuda": 2**27}
_UNDERFLOW = 2.0**-60


class Frame(NamedTuple):
    """Where two sets of features are seen from."""

    centre_d: Tensor
    """float32, already scaled"""
    scale: float
    """a power of two"""

    @classmethod
    def around(cls, reference_md: Tensor, largest: float) -> Self:
        """For features of which no entry is beyond ``largest``, from amid the reference."""
        length = 2 * largest * math.sqrt(reference_md.shape[1])
        scale = 2.0 ** min(max(60 - math.frexp(length)[1], -126), 120)
        # The median does not follow a few features far away; some of the features are enough for it.
        some_dm = reference_md[:: -(-len(reference_md) // 256)].T.contiguous()
        median_d = some_dm.median(dim=1).values
        return cls(median_d * scale, scale)


class Block(NamedTuple):
    """Some features made ready for products: features (B, D) in the frame, and their share of the bounds (B,)."""

    rows: slice
    features_bd: Tensor
    lowered_squares_b: Tensor
    """|x|² less its share of the error"""
    width_b: Tensor
    """float64: how far the upper bound lies above the lower one, this feature's share"""

    def parts(self, size: int) -> list["Block"]:
        """Consecutive blocks of at most ``size`` features, which share this one's memory."""
        starts = range(self.rows.start, self.rows.stop, size)
        rows = [slice(start, min(start + size, self.rows.stop)) for start in starts]
        return [Block(*part) for part in zip(rows, *(tensor.split(size) for tensor in self[1:]), strict=True)]


@dataclass(frozen=True)
class FeatureSet:
    """The distinct features of a set, in a frame.

    Attributes:
        features_nd: float32 (N, D), as they were given.
        rows_u: where the U distinct ones lie, ascending; None where all are distinct.
        copies_u: int64, how often each is there.
        frame: where they are seen from.
    """

    features_nd: Tensor
    rows_u: Tensor | None
    copies_u: Tensor
    frame: Frame

    @classmethod
    def of(cls, features_nd: Tensor, frame: Frame) -> Self:
        """Find the copies."""
        return cls(features_nd, *distinct_features(features_nd), frame)

    def __len__(self) -> int:
        """The number U of distinct features."""
        return len(self.copies_u)

    def slices(self, size: int) -> list[slice]:
        """Consecutive rows of nearly equal number, at most ``size``; multiples of 16 but for the last."""
        parts = -(-len(self) // size)
        edges = [len(self) * part // parts for part in range(parts + 1)]
        if size % 16 == 0:
            edges = [*(edge - edge % -16 for edge in edges[:-1]), edges[-1]]
        return [slice(*edge) for edge in pairwise(edges)]

    def taken(self, rows: slice | Tensor) -> Tensor:
        """Distinct features as they were given."""
        return self.features_nd[rows if self.rows_u is None else self.rows_u[rows]]

    def block(self, rows: slice, dtype: torch.dtype) -> Block:
        """Features made ready for products in float32 or float64."""
        squares_b = (self._squares_float32 if dtype is torch.float32 else self._squares_float64)[rows]
        terms = (self.features_nd.shape[1] + 96) * torch.finfo(dtype).eps / 2
        error_b = squares_b * (terms / (1 - terms)) + (self.features_nd.shape[1] + 96) * _UNDERFLOW
        return Block(rows, self._seen(rows, dtype), (squares_b - error_b).to(dtype), 2 * error_b)

    def _seen(self, rows: slice, dtype: torch.dtype) -> Tensor:
        return self.taken(rows).to(dtype).mul(self.frame.scale).sub_(self.frame.centre_d)

    @cached_property
    def _squares_float32(self) -> Tensor:
        return self._squares(torch.float32)

    @cached_property
    def _squares_float64(self) -> Tensor:
        return self._squares(torch.float64)

    def _squares(self, dtype: torch.dtype) -> Tensor:
        """float64 (U,): squared lengths of the features as products of ``dtype`` see them."""
        return torch.cat([fixed_sum(self._seen(rows, dtype).double().square_()) for rows in self.slices(256)])


class Bounds(NamedTuple):
    """Bounds on the squared distances between two blocks, in the frame's scale."""

    rows: Block
    columns: Block
    lower_ts: Tensor

    @classmethod
    def between(cls, rows: Block, columns: Block) -> Self:
        """The lower bounds (T, S), of the blocks' type."""
        lower_ts = rows.features_bd @ columns.features_bd.T
        torch.sub(rows.lowered_squares_b[:, None], lower_ts, alpha=2, out=lower_ts)
        return cls(rows, columns, lower_ts.add_(columns.lowered_squares_b))

    def of_pairs(self, rows_p: Tensor, columns_p: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds (P,) of pairs, float64."""
        lower_p = self.lower_ts[rows_p, columns_p].double()
        return lower_p, lower_p + self.rows.width_b[rows_p] + self.columns.width_b[columns_p]


def squared_distances(first: FeatureSet, rows_p: Tensor, second: FeatureSet, columns_p: Tensor) -> Tensor:
    """float64 (P,): the squared distance of each pair of distinct features, in the frame's scale."""
    pairs = max(1, _DIFFERENCES_BYTES["cuda" if rows_p.is_cuda else "cpu"] // (8 * first.features_nd.shape[1]))
    distances_p = torch.empty(len(rows_p), dtype=torch.float64, device=rows_p.device)
    chunks: Iterator[tuple[Tensor, ...]] = zip(
        in_batches(distances_p, pairs), in_batches(rows_p, pairs), in_batches(columns_p, pairs), strict=True
    )
    for chunk_p, chunk_rows_p, chunk_columns_p in chunks:
        differences_pd = first.taken(chunk_rows_p).double().sub_(second.taken(chunk_columns_p))
        chunk_p.copy_(fixed_sum(differences_pd.square_()))
    return distances_p.mul_(first.frame.scale).mul_(first.frame.scale)
