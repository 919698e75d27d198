"""How much of a codebook is used, and how evenly."""

import math

import torch
from torch import Tensor

from fvq.runtime.errors import UserError


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 (codebook_size,), in integer indices of any shape; counts of parts add up.

    Raises:
        UserError: the indices are no integers, or one lies outside 0 to codebook_size - 1.
    """
    if indices.dtype.is_floating_point or indices.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise UserError(f"indices: must be integers, not {str(indices.dtype).removeprefix('torch.')}")
    flat = indices.reshape(-1).long()
    if len(flat) and (flat.min() < 0 or flat.max() >= codebook_size):
        raise UserError(
            f"indices: must lie in 0 to {codebook_size - 1} (codebook_size), and {flat.min()} to {flat.max()} do not"
        )
    return torch.bincount(flat, minlength=codebook_size)


def usage_figures(counts: Tensor) -> dict[str, float | int]:
    """Usage of a codebook with occurrences ``counts`` int64 (K,).

    ``usage`` (share of codes that occur, 0 to 1), ``usage_codes`` (their number), ``codebook_size``, ``usage_tokens``
    (the number of tokens counted), ``usage_ceiling`` (see there) and ``perplexity`` (exp of the entropy, 1 to K).

    Raises:
        UserError: no token was counted.
    """
    codebook_size = len(counts)
    tokens = int(counts.sum())
    if tokens == 0:
        raise UserError("usage: no tokens were counted")
    used = int((counts > 0).sum())
    shares = counts.double() / tokens
    return {
        "usage": used / codebook_size,
        "usage_codes": used,
        "codebook_size": codebook_size,
        "usage_tokens": tokens,
        "usage_ceiling": usage_ceiling(tokens, codebook_size),
        "perplexity": torch.special.entr(shares).sum().exp().item(),
    }


def usage_ceiling(tokens: int, codebook_size: int) -> float:
    """The share of ``codebook_size`` codes that this many uniformly drawn tokens reach on average: 1 - (1 - 1/K)^N."""
    if codebook_size == 1:
        return 1.0 if tokens else 0.0
    reached = -math.expm1(tokens * math.log1p(-1 / codebook_size))
    return min(reached, min(tokens, codebook_size) / codebook_size)
