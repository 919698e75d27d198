"""Finite scalar quantization: each channel is rounded to a few levels, and there is no codebook."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from fvq.quantize.checks import check_finite
from fvq.quantize.quantizer import Quantizer, straight_through

# Recommended for about 2^8, 2^10, 2^12, 2^14 and 2^16 codes (Mentzer et al. 2023, Table 1).
_RECOMMENDED = {
    math.prod(levels): levels
    for levels in ((8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5))
}
# The bound reaches this much beyond the outermost levels.
_MARGIN = 1e-3
# With more levels the margin would reach the next one.
_MOST_LEVELS = 1000


class FiniteScalarQuantizer(Quantizer):
    """FSQ (Mentzer et al. 2023, §3.1): channel i, bounded by a tanh, is rounded to one of L_i levels.

    bound(z) = tanh(z + shift) (L - 1)(1 + 1e-3) / 2 - offset, where an even L has offset 1/2 and the shift that maps 0
    to 0; it is rounded, straight-through, and divided by ⌊L/2⌋. Gradients pass through the tanh. The margin of 1e-3
    has the sign of widely used implementations (lucidrains/vector-quantize-pytorch); with it all L levels are reached.

    There are no loss terms and no parameters. An index is a number of mixed radix whose lowest digit is channel 0:
    Σ_i digit_i · L_0 · … · L_(i-1), with digit_i in [0, L_i) from the lowest level up.

    Args:
        codebook_size: number of codes, the product of the levels.
        code_dim: number of channels, one per level count.
        levels: L_i of each channel, from 2 to 1000; by default the paper's recommendation, which exists for a
            codebook_size of 240, 1000, 4375, 15360 or 64000.
    """

    levels_d: Tensor

    def __init__(self, codebook_size: int, code_dim: int, *, levels: Sequence[int] | None = None) -> None:
        super().__init__(codebook_size, code_dim)
        if levels is None:
            levels = _recommended_levels(codebook_size)
        self.levels = tuple(levels)
        _check_levels(self.levels, codebook_size, code_dim)
        self.register_buffer("levels_d", torch.tensor(self.levels), persistent=False)

    def freeze(self) -> Self:
        """A copy in evaluation mode; there is nothing to leave out."""
        return copy.deepcopy(self)._frozen()

    def _forward(self, z_bhwd: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        bounded_bhwd = self._bound(z_bhwd)
        indices_bhw = self._indices(bounded_bhwd)
        return straight_through(bounded_bhwd / (self.levels_d // 2), self._vectors(indices_bhw)), indices_bhw, {}

    def _quantize(self, z_bhwd: Tensor) -> Tensor:
        return self._indices(self._bound(z_bhwd))

    def _vectors(self, indices: Tensor) -> Tensor:
        digits = indices[..., None] // self._places() % self.levels_d
        return (digits - self.levels_d // 2).float() / (self.levels_d // 2)

    def _bound(self, z_bhwd: Tensor) -> Tensor:
        check_finite("z", z_bhwd)
        half_d = (self.levels_d - 1) * ((1 + _MARGIN) / 2)
        offset_d = (1 - self.levels_d % 2) / 2
        return torch.tanh(z_bhwd + torch.atanh(offset_d / half_d)) * half_d - offset_d

    def _indices(self, bounded_bhwd: Tensor) -> Tensor:
        digits_bhwd = bounded_bhwd.round().long() + self.levels_d // 2
        return (digits_bhwd * self._places()).sum(-1)

    def _places(self) -> Tensor:
        """What a digit of each channel is worth."""
        return self.levels_d.cumprod(0) // self.levels_d


def _recommended_levels(codebook_size: int) -> tuple[int, ...]:
    if codebook_size not in _RECOMMENDED:
        known = ", ".join(f"{size} (code_dim {len(levels)})" for size, levels in _RECOMMENDED.items())
        raise ValueError(f"codebook_size {codebook_size} has no default levels; give levels, or take one of {known}")
    return _RECOMMENDED[codebook_size]


def _check_levels(levels: tuple[int, ...], codebook_size: int, code_dim: int) -> None:
    if not all(2 <= count <= _MOST_LEVELS for count in levels):
        raise ValueError(f"levels {levels} must each lie between 2 and {_MOST_LEVELS}")
    if len(levels) != code_dim:
        raise ValueError(f"levels {levels} need code_dim {len(levels)}, not {code_dim}")
    if math.prod(levels) != codebook_size:
        raise ValueError(f"levels {levels} need codebook_size {math.prod(levels)}, not {codebook_size}")
