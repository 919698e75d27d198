"""Nearest-code search beside what it must do at least (the matrix product) and what one would write first (cdist)."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fvq.quantize import nearest_code

Search = Callable[[Tensor, Tensor], Tensor]

SEARCHES: dict[str, Search] = {
    "fvq": nearest_code,
    "matrix product alone": lambda z, codebook: z @ codebook.T,
    "cdist and argmin": lambda z, codebook: torch.cdist(z, codebook).argmin(1),
}


@pytest.mark.parametrize("codebook_size", [1024, 16384, 65536])
@pytest.mark.parametrize("name", SEARCHES)
def test_search(benchmark: BenchmarkFixture, name: str, codebook_size: int) -> None:
    """2,048 tokens (a batch of the default study) of 32 channels."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(2048, 32, generator=generator), torch.randn(codebook_size, 32, generator=generator)
    benchmark.group = f"2,048 tokens, {codebook_size} codes, 32 channels"
    benchmark.pedantic(SEARCHES[name], (z, codebook), rounds=10, warmup_rounds=1)
