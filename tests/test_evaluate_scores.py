"""Inception Score against its published implementation and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric

from fvq.evaluate.inception_score import ScoreSums, adm_groups, torch_fidelity_groups
from fvq.runtime.errors import UserError


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(logits: torch.Tensor, group_n: torch.Tensor, groups: int | None = None) -> tuple[float, float]:
    return ScoreSums.of(logits, group_n, groups or int(group_n.max()) + 1).score()


def one_hot(classes: torch.Tensor, count: int) -> torch.Tensor:
    """Logits whose softmax is 1 at ``classes``."""
    return 1000 * torch.nn.functional.one_hot(classes, count).float()


def published(logits: torch.Tensor, **kwargs: object) -> tuple[float, float]:
    found = isc_features_to_metric(logits, **kwargs)
    return found["inception_score_mean"], found["inception_score_std"]


@pytest.mark.parametrize(("count", "splits", "seed"), [(1203, 10, 2020), (999, 7, 0), (40, 1, 5)])
def test_score_is_torch_fidelitys(count: int, splits: int, seed: int):
    logits = 3 * normal(count, 17, seed=0)
    expected = published(logits, splits=splits, rng_seed=seed)
    group_n = torch_fidelity_groups(count, splits, seed)
    assert score(logits, group_n, splits) == pytest.approx(expected, rel=1e-10)
    if splits > 1:  # the shuffle matters: in the order of the file it is another figure
        assert score(logits, group_n.sort().values, splits)[0] != pytest.approx(expected[0], rel=1e-4)


def test_chunks_in_file_order_are_torch_fidelitys_splits_unshuffled():
    logits = 3 * normal(15_000, 6, seed=1)
    assert score(logits, adm_groups(15_000)) == pytest.approx(published(logits, splits=3, shuffle=False), rel=1e-10)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 60), splits=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_torch_fidelitys_groups_are_its_slices(count: int, splits: int, seed: int):
    group_n = torch_fidelity_groups(count, splits, seed)
    shuffled = np.random.RandomState(seed).permutation(count)
    for i in range(splits):
        members = shuffled[i * count // splits : (i + 1) * count // splits]
        assert sorted(members) == (group_n == i).nonzero().flatten().tolist()
    assert group_n.shape == (count,) and group_n.dtype == torch.int64


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=6),
    group_n=st.lists(st.integers(0, 3), min_size=90, max_size=90),
    seed=st.integers(0, 1000),
)
def test_merged_parts_are_the_whole(cuts: list[int], group_n: list[int], seed: int):
    logits, groups = 4 * normal(90, 11, seed=seed), torch.tensor(group_n)
    edges = [0, *sorted(cuts), 90]

    def merged() -> ScoreSums:
        sums = ScoreSums.of(logits[:0], groups[:0], 4)
        for start, stop in itertools.pairwise(edges):
            sums = sums.merge(ScoreSums.of(logits[start:stop], groups[start:stop], 4))
        return sums

    whole, parts, again = ScoreSums.of(logits, groups, 4), merged(), merged()
    assert torch.equal(parts.count_g, whole.count_g)
    torch.testing.assert_close(parts.posterior_sum_gc, whole.posterior_sum_gc, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.negative_entropy_g, whole.negative_entropy_g, rtol=1e-12, atol=0)
    assert parts.score() == pytest.approx(whole.score(), rel=1e-12, abs=1e-12)
    assert parts.score() == again.score()
    assert torch.equal(parts.posterior_sum_gc, again.posterior_sum_gc)


def test_score_of_known_distributions():
    together = torch.zeros(40, dtype=torch.int64)
    classes = torch.arange(8).repeat(5)
    assert score(torch.zeros(40, 8), together) == pytest.approx((1, 0))
    assert score(one_hot(classes, 8), together) == pytest.approx((8, 0))
    assert score(one_hot(classes * 0, 8), together) == pytest.approx((1, 0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1e-4, 1.0, 30.0, 1e4]), classes=st.integers(1, 9))
def test_score_lies_between_1_and_the_number_of_classes(seed: int, scale: float, classes: int):
    mean, _ = score(scale * normal(30, classes, seed=seed), torch_fidelity_groups(30, 3))
    assert 1 <= mean <= classes * (1 + 1e-12)


def test_samples_sorted_by_class_score_lower_in_file_order():
    classes = torch.arange(8).repeat_interleave(5)
    assert score(one_hot(classes, 8), adm_groups(40, chunk=5))[0] == pytest.approx(1)
    assert score(one_hot(classes, 8), adm_groups(40, chunk=10))[0] == pytest.approx(2)
    shuffled = classes[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert score(one_hot(shuffled, 8), adm_groups(40, chunk=10))[0] > 3
    assert score(one_hot(classes, 8), torch_fidelity_groups(40, 4))[0] > 3


def test_a_last_shorter_chunk_counts_like_the_others():
    classes = torch.tensor([0, 1, 2, 3, 0])
    assert adm_groups(5, chunk=4).tolist() == [0, 0, 0, 0, 1]
    assert score(one_hot(classes, 4), adm_groups(5, chunk=4)) == pytest.approx(((4 + 1) / 2, (4 - 1) / 2))


def test_groups_without_images_do_not_count():
    logits = 2 * normal(30, 5, seed=2)
    group_n = adm_groups(30, chunk=10)
    assert score(logits, 2 * group_n, groups=9) == score(logits, group_n, groups=3)


def test_the_bias_of_float32_logits_is_not_in_the_score():
    """float32 would lose the sum's last digits over many images."""
    logits = normal(1, 4, seed=3).repeat(20_000, 1)
    assert score(logits, torch.zeros(20_000, dtype=torch.int64))[0] == pytest.approx(1, abs=1e-12)


def test_score_refusals():
    for bad in (torch.nan, torch.inf, -torch.inf):
        logits = torch.zeros(4, 3)
        logits[2, 1] = bad
        with pytest.raises(UserError, match="logits: some are not finite"):
            ScoreSums.of(logits, torch.zeros(4, dtype=torch.int64), 1)
    with pytest.raises(UserError, match="at least 1 image"):
        ScoreSums.of(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2).score()
    with pytest.raises(UserError, match="chunk: must be at least 1, not 0"):
        adm_groups(3, chunk=0)
    with pytest.raises(UserError, match="splits: must be at least 1, not 0"):
        torch_fidelity_groups(3, splits=0)
