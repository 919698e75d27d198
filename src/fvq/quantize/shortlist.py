"""Which codes can be nearest, by products of low precision and a proven bound on their error.

The score of a code is s = |e|²/2 - z·e, half its squared distance less a part that all codes share. Computed with unit
roundoff u and summed in any order, a score is off by at most (d + 1) u (|z| |e| + |e|²/2) to first order (Higham,
Accuracy and Stability of Numerical Algorithms, §3.1). The factor d + 16 covers the second order, shifting both sides to
the codebook's centre, and the bounds' own rounding. Values rounded to bfloat16 first add |z - z̃| |e| + |z̃| |e - ẽ|
(Cauchy-Schwarz), with norms measured rather than estimated.

Codes are taken in groups, of which only the smallest score is kept: a group is listed unless its smallest possible
score exceeds another group's largest possible one.
"""

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Codes whose scores are made at once. With 2,048 tokens they are 8 MB: the reduction finds them in the CPU's cache.
TILE = 1024
FUSED_TILE = 128
_TOKENS = 2048
_CUDA_TILE = 8192
_FUSED_CHUNK = 2**18
# Bytes for the smallest scores of all groups.
_MINIMA_BYTES = {"cpu": 2**25, "cuda": 2**28}
# What underflows in a product, a square or a norm is lost: an absolute error per channel.
_UNDERFLOW = 2.0**-100


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def has_fused_kernel(device: torch.device) -> bool:
    """Whether Triton is there to make a kernel for the device; it does not come with every build of torch."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@contextlib.contextmanager
def ieee_products(device: torch.device) -> Iterator[None]:
    """Float32 products in float32: the caller may allow TF32 or bfloat16 (``torch.set_float32_matmul_precision``)."""
    backend = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before


def shift(values_nd: Tensor, center_d: Tensor, dtype: torch.dtype) -> Tensor:
    """Values seen from the centre."""
    return values_nd.to(dtype) - center_d.to(dtype)


def half_squares(values_nd: Tensor) -> Tensor:
    """Half the squared length of each row."""
    return values_nd.square().sum(1) / 2


@dataclass(frozen=True)
class Codes:
    """A codebook made ready for products of one precision.

    Codes come in tiles of ``tile``. Group j of a tile of w codes holds its codes j, j + w/group, j + 2w/group, …:
    minima over rows of w/group contiguous scores vectorize. The last tile is padded with the last code, to whole groups
    or, for the fused kernel, to a whole tile.

    Attributes:
        codebook_kd: float32 (K, d), as it was given.
        center_d: float32, subtracted from both sides.
        precision: of the products: float32 or bfloat16.
        tile: codes of a tile.
        group: codes of a group; G groups in all.
        half_norms_k: float32, |e|²/2 of the shifted codes, padded.
        half_norms_g: (2, G): the smallest and the largest |e|²/2 of each group.
        residuals_g: the largest |e - ẽ| of each group, ẽ rounded to ``precision``.
        rounded_kd: the shifted codes in ``precision`` where one kernel makes scores and minima, else None.
    """

    codebook_kd: Tensor
    center_d: Tensor
    precision: torch.dtype
    tile: int
    group: int
    half_norms_k: Tensor
    half_norms_g: Tensor
    residuals_g: Tensor
    rounded_kd: Tensor | None

    @classmethod
    def prepare(cls, codebook_kd: Tensor, center_d: Tensor, precision: torch.dtype, *, fused: bool) -> Self:
        """Measure the codes."""
        codes, dim = codebook_kd.shape
        # About as many scores to reduce per token as distances to compute again.
        group = 2 ** min(6, max(3, math.ceil(math.log2(codes / dim) / 2)))
        tile = FUSED_TILE if fused else _CUDA_TILE if codebook_kd.is_cuda else TILE
        multiple = tile if fused else group
        padded = -(-codes // multiple) * multiple
        # Written in place: small results kept between large temporaries would scatter the heap.
        half_norms_k = codebook_kd.new_empty(padded)
        half_norms_g = codebook_kd.new_empty(2, padded // group)
        residuals_g = codebook_kd.new_empty(padded // group)
        rounded_kd = codebook_kd.new_empty(padded, dim, dtype=precision) if fused else None
        for start in range(0, codes, chunk := _FUSED_CHUNK if fused else tile):
            shifted_kd = shift(codebook_kd[start : start + chunk], center_d, torch.float32)
            shifted_kd = _padded(shifted_kd, multiple)
            rows = slice(start, start + len(shifted_kd))
            columns = slice(rows.start // group, rows.stop // group)
            shape = (-1, group, min(tile, len(shifted_kd)) // group)
            half_norms_k[rows] = half_squares(shifted_kd)
            grouped = half_norms_k[rows].view(shape)
            half_norms_g[0, columns], half_norms_g[1, columns] = grouped.amin(1).flatten(), grouped.amax(1).flatten()
            tile_kd = shifted_kd.to(precision)
            lost_k = (2 * half_squares(shifted_kd - tile_kd.float())).sqrt()
            residuals_g[columns] = lost_k.view(shape).amax(1).flatten()
            if rounded_kd is not None:
                rounded_kd[rows] = tile_kd
        return cls(
            codebook_kd=codebook_kd,
            center_d=center_d,
            precision=precision,
            tile=tile,
            group=group,
            half_norms_k=half_norms_k,
            half_norms_g=half_norms_g,
            residuals_g=residuals_g,
            rounded_kd=rounded_kd,
        )

    @property
    def groups(self) -> int:
        """Number of groups G."""
        return len(self.residuals_g)

    @property
    def tokens(self) -> int:
        """How many tokens to search at once."""
        cuda = self.codebook_kd.is_cuda
        most = _MINIMA_BYTES["cuda" if cuda else "cpu"] // (4 * self.groups)
        return max(64, most if self.rounded_kd is not None else min(_CUDA_TILE if cuda else _TOKENS, most))

    def tiles(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The shifted codes (w, d) and |e|²/2 (w,) of one tile after the other, float32."""
        for start in range(0, len(self.half_norms_k), self.tile):
            half_norms_k = self.half_norms_k[start : start + self.tile]
            codes_kd = shift(self.codebook_kd[start : start + self.tile], self.center_d, torch.float32)
            yield _padded(codes_kd, len(half_norms_k)), half_norms_k

    def indices_of(self, groups_p: Tensor) -> Tensor:
        """The codes (p, group) of groups (p,), ascending."""
        per_tile = self.tile // self.group
        tiles_p = groups_p // per_tile
        last, rest = divmod(len(self.half_norms_k) - 1, self.tile)
        strides_p = torch.where(tiles_p == last, (rest + 1) // self.group, per_tile)
        first_p = tiles_p * self.tile + groups_p % per_tile
        steps_g = torch.arange(self.group, device=groups_p.device)
        return (first_p[:, None] + steps_g * strides_p[:, None]).clamp_(max=len(self.codebook_kd) - 1)


def _padded(codes_kd: Tensor, multiple: int) -> Tensor:
    missing = -len(codes_kd) % multiple
    return torch.cat([codes_kd, codes_kd[-1:].expand(missing, -1)]) if missing else codes_kd


def shortlist(z_nd: Tensor, codes: Codes) -> Tensor:
    """bool (n, G): the groups that can hold the nearest code of float32 z (n, d)."""
    shifted_nd = shift(z_nd, codes.center_d, torch.float32)
    rounded_nd = shifted_nd.to(codes.precision)
    if codes.rounded_kd is not None:
        from fvq.quantize.fused import fused_group_minima  # needs Triton

        minima_ng = fused_group_minima(rounded_nd, codes.rounded_kd, codes.half_norms_k, codes.group)
    else:
        minima_ng = group_minima(rounded_nd, codes)
    errors_ng = _errors(shifted_nd, rounded_nd.float(), minima_ng, codes)
    largest_n = (minima_ng + errors_ng).amin(1)
    # Where a bound overflowed and is NaN nothing is ruled out.
    return (minima_ng.sub_(errors_ng) > largest_n[:, None]).logical_not_()


def group_minima(rounded_nd: Tensor, codes: Codes) -> Tensor:
    """The smallest score (n, G) float32 of each group, for z shifted and rounded to the precision."""
    tokens = len(rounded_nd)
    minima_ng = rounded_nd.new_empty(tokens, codes.groups, dtype=torch.float32)
    scores = rounded_nd.new_empty(tokens * min(codes.tile, len(codes.half_norms_k)), dtype=torch.float32)
    first = 0
    for codes_kd, half_norms_k in codes.tiles():
        scores_nk = scores[: tokens * len(codes_kd)].view(tokens, -1)
        if codes.precision is torch.float32:
            torch.addmm(half_norms_k, rounded_nd, codes_kd.T, alpha=-1, out=scores_nk)
        else:
            torch.sub(half_norms_k, rounded_nd @ codes_kd.to(codes.precision).T, out=scores_nk)
        last = first + len(codes_kd) // codes.group
        torch.amin(scores_nk.view(tokens, codes.group, -1), 1, out=minima_ng[:, first:last])
        first = last
    return minima_ng


def _errors(shifted_nd: Tensor, rounded_nd: Tensor, minima_ng: Tensor, codes: Codes) -> Tensor:
    """How far each group's smallest score (n, G) may be from the smallest exact one."""
    dim = shifted_nd.shape[1]
    smallest_g, largest_g = codes.half_norms_g
    norms_g = (2 * largest_g).sqrt()
    exact = codes.precision is torch.float32
    # Tensor cores truncate where others round: twice the unit roundoff.
    factor = (dim + 16) * 2.0**-24 * (1 if exact else 2.02)
    absolute_g = factor * largest_g + (dim + 16) * _UNDERFLOW
    errors_ng = torch.addcmul(absolute_g, _norms(shifted_nd) * factor, norms_g)
    if not exact:
        errors_ng.addcmul_(_norms(shifted_nd - rounded_nd) * 1.001, norms_g)
        errors_ng.addcmul_(_norms(rounded_nd) * 1.001, codes.residuals_g)
    if not exact and codes.rounded_kd is None:
        # The products z·e = |e|²/2 - s themselves were rounded to bfloat16.
        products_ng = torch.maximum((largest_g - minima_ng).abs_(), (smallest_g - minima_ng).abs_())
        errors_ng.add_(products_ng, alpha=1.01 * 2.0**-8)
    return errors_ng


def _norms(values_nd: Tensor) -> Tensor:
    return (2 * half_squares(values_nd)).sqrt()[:, None]
