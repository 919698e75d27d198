"""Codebook usage against counting by hand."""

import copy
import math
from collections import Counter

import pytest
import torch

from fvq.quantize.usage import SlidingUsage, UsageCounter, code_counts, usage_ceiling, usage_figures


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
    with pytest.raises(ValueError, match="0 to 7, and 0 to 8"):
        code_counts(torch.arange(9), 8)
    with pytest.raises(ValueError, match="-1 to 1"):
        code_counts(torch.tensor([-1, 1]), 8)
    with pytest.raises(ValueError, match="integers, not float32"):
        code_counts(torch.zeros(3), 8)
    with pytest.raises(ValueError, match="no tokens"):
        usage_figures(code_counts(torch.zeros(0, dtype=torch.int64), 8))


def batches(count=9):
    """Indices of several steps, of unequal sizes, into 50 codes that come into use one after another."""
    random = torch.Generator().manual_seed(3)
    return [torch.randint(0, 5 * (step + 1), (2, step + 1, 3), generator=random) for step in range(count)]


def test_counter_counts_all_since_the_reset():
    counter = UsageCounter(50)
    for indices in batches():
        counter.add(indices)
    everything = torch.cat([indices.flatten() for indices in batches()])
    assert counter.figures() == usage_figures(code_counts(everything, 50))
    counter.reset()
    counter.add(torch.tensor([[7, 7]]))
    assert counter.figures()["usage_codes"] == 1
    assert counter.figures()["usage_tokens"] == 2


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
def test_sliding_usage_sees_the_last_tokens_only(window):
    sliding, seen = SlidingUsage(50, window), []
    assert sliding.figures() == {"sliding_usage": 0, "sliding_usage_tokens": 0, "sliding_usage_ceiling": 0}
    for indices in batches():
        sliding.add(indices)
        seen = (seen + indices.flatten().tolist())[-window:]
        assert sliding.figures() == {
            "sliding_usage": len(set(seen)) / 50,
            "sliding_usage_tokens": len(seen),
            "sliding_usage_ceiling": usage_ceiling(len(seen), 50),
        }


def test_the_ceilings_of_the_sliding_window_are_those_that_hide_in_the_literature():
    ceilings = [SlidingUsage(size).window for size in (16384, 65536, 262144)]
    assert ceilings == [65536] * 3
    assert [round(usage_ceiling(65536, size), 4) for size in (16384, 65536, 262144)] == [0.9817, 0.6321, 0.2212]


@pytest.mark.parametrize("kind", [UsageCounter, SlidingUsage])
def test_a_saved_count_goes_on(kind):
    whole, first, second = kind(50), kind(50), kind(50)
    for step, indices in enumerate(batches()):
        whole.add(indices)
        (first if step < 4 else second).add(indices)
        if step == 3:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.figures() == whole.figures()
