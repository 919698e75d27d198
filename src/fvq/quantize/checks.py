"""Checks of sizes and values."""

import torch
from torch import Tensor


class NotFiniteError(ValueError):
    """A value is NaN or infinite."""


def check_positive(**sizes: int) -> None:
    """Raise ValueError naming a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def nearest_sizes(below: int, above: int) -> str:
    """The end of a message about a size that does not work."""
    if below:
        return f"the nearest sizes that work are {below} and {above}"
    return f"the smallest size that works is {above}"


def check_finite(name: str, values: Tensor) -> None:
    """Raise NotFiniteError, a ValueError, where a value of (…, d) is NaN or infinite."""
    # A sum is finite only if every value is. Looking at each takes memory, and follows only where the sum overflows.
    for rows in values.split(2**22 // max(1, values[:1].numel()) + 1):
        if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
            raise NotFiniteError(f"{name} holds NaN or infinite values")
