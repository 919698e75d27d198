"""What a benchmark is: rivals that do the same work on the same data, one of which the ratios refer to."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Sizes for trying the benchmarks out: nothing measured with them counts.
TINY = os.environ.get("FVQ_BENCH_TINY") == "1"

Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """Rivals at one size.

    Attributes:
        title: what the table calls it.
        base: the rival that the ratios refer to; none where there is only one.
        rivals: by name what prepares the work, which is then timed. The others must agree with the first one's result.
        agree: raises AssertionError where a rival's result is not the first one's.
        turns: how often the rivals take turns; ratios are made within a turn.
        rounds: timings of a rival in each of its turns; more than one follow an untimed round.
        in_own_process: whether it takes so long that one call in a process of its own gives both time and memory.
        rate: how much of what a rival does, for the table to give it per second.
    """

    title: str
    base: str | None
    rivals: Mapping[str, Callable[[], Work]]
    agree: Callable[[Any, Any], None]
    turns: int = 3
    rounds: int = 1
    in_own_process: bool = False
    rate: tuple[float, str] | None = None


def tokens(number: int) -> int:
    """The number of tokens, or what stands for it in a trial."""
    return number // 32 if TINY else number


def codes(number: int) -> int:
    """The codebook size, or what stands for it in a trial."""
    return number // 64 if TINY else number


@functools.lru_cache(maxsize=3)
def normal(seed: int, rows: int, dim: int, device: str) -> Tensor:
    """Standard normal (rows, dim) float32, kept for the next rival."""
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)).to(device)


def wait_for(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
