"""How much of a codebook is used, and how evenly: one definition, with the number of tokens it was counted over."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fvq.quantize.checks import check_positive
from fvq.quantize.processes import process_number, sum_over_processes


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 (codebook_size,), in integer indices of any shape; counts of parts add up.

    Raises:
        ValueError: the indices are no integers, or one lies outside 0 to codebook_size - 1.
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices must be integers, not {str(indices.dtype).removeprefix('torch.')}")
    flat = indices.reshape(-1).long()
    if len(flat) and (flat.min() < 0 or flat.max() >= codebook_size):
        raise ValueError(f"indices must lie in 0 to {codebook_size - 1}, and {flat.min()} to {flat.max()} do not")
    return torch.bincount(flat, minlength=codebook_size)


def usage_figures(counts: Tensor) -> dict[str, float | int]:
    """Usage of a codebook with occurrences ``counts`` int64 (K,).

    ``usage`` (share of codes that occur, 0 to 1), ``usage_codes`` (their number), ``codebook_size``, ``usage_tokens``
    (the number of tokens counted), ``usage_ceiling`` (see there) and ``perplexity`` (exp of the entropy, 1 to K).

    Raises:
        ValueError: no token was counted.
    """
    codebook_size = len(counts)
    tokens = int(counts.sum())
    if tokens == 0:
        raise ValueError("usage: no tokens were counted")
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


class UsageCounter:
    """Counts of the codes chosen since the last reset; a part of the resume state."""

    def __init__(self, codebook_size: int, device: torch.device | str = "cpu") -> None:
        check_positive(codebook_size=codebook_size)
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def add(self, indices: Tensor) -> None:
        """Count integer indices of any shape."""
        self.counts += code_counts(indices, len(self.counts)).to(self.counts.device)

    def figures(self) -> dict[str, float | int]:
        """``usage_figures`` of the tokens of all processes; every process must call it."""
        return usage_figures(sum_over_processes(self.counts))

    def reset(self) -> None:
        """Start anew."""
        self.counts.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The counts of all processes together; every process must call it."""
        return {"counts": sum_over_processes(self.counts)}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from saved counts, which the first process takes."""
        self.counts.copy_(state["counts"] if process_number() == 0 else torch.zeros_like(self.counts))


class SlidingUsage:
    """The literature's figure while training: distinct codes among the last tokens of this process alone.

    LlamaGen's trainer, and with it FVQ's, keeps the last 65,536 indices of one process, whatever the codebook: at most
    98.2 % of 16,384 codes and 22.1 % of 262,144 are reached by uniform use. It goes by its own name beside ``usage``,
    so that both can be compared.
    """

    def __init__(self, codebook_size: int, window: int = 65536) -> None:
        check_positive(codebook_size=codebook_size, window=window)
        self.codebook_size, self.window = codebook_size, window
        self.last_n = torch.empty(0, dtype=torch.int64)

    def add(self, indices: Tensor) -> None:
        """Take in integer indices of any shape; those beyond the window fall out."""
        self.last_n = torch.cat([self.last_n, indices.reshape(-1)[-self.window :].cpu().long()])[-self.window :]

    def figures(self) -> dict[str, float | int]:
        """``sliding_usage`` (0 to 1), ``sliding_usage_tokens`` (those in the window) and ``sliding_usage_ceiling``."""
        tokens = len(self.last_n)
        return {
            "sliding_usage": len(self.last_n.unique()) / self.codebook_size,
            "sliding_usage_tokens": tokens,
            "sliding_usage_ceiling": usage_ceiling(tokens, self.codebook_size),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The window."""
        return {"last": self.last_n}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from a saved window."""
        self.last_n = state["last"].clone()
