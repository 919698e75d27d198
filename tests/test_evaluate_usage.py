"""Codebook usage against counting by hand."""

import math
from collections import Counter

import pytest
import torch

from fvq.evaluate.usage import code_counts, usage_ceiling, usage_figures
from fvq.runtime.errors import UserError


def test_figures_equal_counting_by_hand():
    indices = torch.randint(0, 40, (7, 4, 4), generator=torch.Generator().manual_seed(0)) ** 2 // 40
    counted = Counter(indices.flatten().tolist())
    figures = usage_figures(code_counts(indices, 50))
    entropy = -sum(n / 112 * math.log(n / 112) for n in counted.values())
    assert figures == pytest.approx(
        {
            "usage": len(counted) / 50,
            "usage_codes": len(counted),
            "codebook_size": 50,
            "usage_tokens": 112,
            "usage_ceiling": 1 - (49 / 50) ** 112,
            "perplexity": math.exp(entropy),
        }
    )


def test_counts_of_parts_add_up():
    indices = torch.randint(0, 300, (1000,), generator=torch.Generator().manual_seed(1)).to(torch.uint16)
    parts = code_counts(indices[:300], 300) + code_counts(indices[300:], 300)
    assert parts.dtype == torch.int64
    assert torch.equal(parts, code_counts(indices, 300))
    assert parts.sum() == 1000


def test_perplexity_at_the_ends():
    assert usage_figures(code_counts(torch.full((9,), 3), 8))["perplexity"] == pytest.approx(1)
    assert usage_figures(code_counts(torch.arange(8), 8))["perplexity"] == pytest.approx(8)


@pytest.mark.parametrize(("tokens", "size"), [(1, 2**18), (1, 3), (2, 7), (10, 2**18), (10**12, 2**18), (5, 1)])
def test_ceiling_stays_within_its_bounds(tokens: int, size: int):
    ceiling = usage_ceiling(tokens, size)
    assert 0 < ceiling <= min(tokens, size) / size
    if tokens == 1:
        assert ceiling == pytest.approx(1 / size)


def test_ceiling_is_what_uniform_draws_reach():
    generator = torch.Generator().manual_seed(2)
    reached = [torch.randint(0, 512, (700,), generator=generator).unique().numel() / 512 for _ in range(200)]
    assert sum(reached) / 200 == pytest.approx(usage_ceiling(700, 512), abs=0.003)


def test_refusals():
    with pytest.raises(UserError, match=r"0 to 7 .codebook_size., and 0 to 8"):
        code_counts(torch.arange(9), 8)
    with pytest.raises(UserError, match="-1 to 1"):
        code_counts(torch.tensor([-1, 1]), 8)
    with pytest.raises(UserError, match="integers, not float32"):
        code_counts(torch.zeros(3), 8)
    with pytest.raises(UserError, match="no tokens"):
        usage_figures(code_counts(torch.zeros(0, dtype=torch.int64), 8))
