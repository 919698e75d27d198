"""Inception Score, precision and recall against published implementations and brute force."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from fvq.evaluate.inception_score import inception_score
from fvq.evaluate.precision_recall import precision_and_recall
from fvq.runtime.errors import UserError


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_score_agrees_with_torch_fidelity_chunk_by_chunk():
    logits = 3 * normal(1200, 17, seed=0).double()
    for splits in (1, 4):
        published = isc_features_to_metric(logits, splits=splits, shuffle=False)["inception_score_mean"]
        assert inception_score(logits.softmax(1), chunk=1200 // splits) == pytest.approx(published, rel=1e-12)


def test_score_of_known_distributions():
    assert inception_score(torch.full((40, 8), 1 / 8)) == pytest.approx(1)
    assert inception_score(torch.eye(8).repeat(5, 1)) == pytest.approx(8)
    # One class fills each chunk: nothing to tell apart within it.
    assert inception_score(torch.eye(8).repeat_interleave(5, dim=0), chunk=5) == pytest.approx(1)


def test_a_last_shorter_chunk_counts_like_the_others():
    posteriors = torch.cat([torch.eye(4), torch.eye(4)[:1]])
    assert inception_score(posteriors, chunk=4) == pytest.approx((4 + 1) / 2)


def test_score_refusals():
    with pytest.raises(UserError, match="distributions"):
        inception_score(torch.full((4, 3), 0.5))
    with pytest.raises(UserError, match="distributions"):
        inception_score(torch.tensor([[1.5, -0.5]]))
    with pytest.raises(UserError, match="at least 1"):
        inception_score(torch.zeros(0, 3))
    with pytest.raises(UserError, match="chunk"):
        inception_score(torch.eye(3), chunk=0)


def brute_force(samples: torch.Tensor, reference: torch.Tensor, neighbours: int) -> tuple[float, float]:
    """Every pair in float64, by the definition."""
    samples_, reference_ = samples.double().numpy(), reference.double().numpy()

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    sample_radii = np.sort(squared(samples_, samples_))[:, neighbours]
    reference_radii = np.sort(squared(reference_, reference_))[:, neighbours]
    between = squared(samples_, reference_)
    return (between <= reference_radii).any(1).mean(), (between <= sample_radii[:, None]).any(0).mean()


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_equal_brute_force(neighbours: int):
    samples, reference = 0.8 * normal(230, 9, seed=1) + 20, normal(310, 9, seed=2) + 20
    expected = brute_force(samples, reference, neighbours)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1 and expected[0] != expected[1]
    for tile in (64, 1024):
        assert precision_and_recall(samples, reference, neighbours=neighbours, tile=tile) == pytest.approx(expected)
    assert precision_and_recall(reference, samples, neighbours=neighbours) == pytest.approx(expected[::-1])


def test_precision_and_recall_agree_with_torch_fidelity():
    samples, reference = 0.9 * normal(500, 16, seed=3), normal(400, 16, seed=4)
    published = calculate_precision_recall_full(samples.double(), reference.double())
    assert precision_and_recall(samples, reference) == pytest.approx(published, rel=1e-6)


def test_ties_count_as_inside():
    # Points of a lattice: many distances are equal, and brute force has them exactly.
    generator = torch.Generator().manual_seed(5)
    samples, reference = (torch.randint(0, 6, (count, 4), generator=generator).float() for count in (61, 53))
    expected = brute_force(samples, reference, 3)
    assert min(expected) > 0 and max(expected) < 1
    assert precision_and_recall(samples, reference) == pytest.approx(expected)


def test_precision_and_recall_at_the_ends():
    features = normal(100, 5, seed=6)
    assert precision_and_recall(features, features.clone()) == (1.0, 1.0)
    assert precision_and_recall(features + 1000, features) == (0.0, 0.0)
    copies = features[:1].repeat(50, 1)  # collapsed onto a reference image: precise, and recalls it alone
    assert precision_and_recall(copies, features) == (1.0, 0.01)


def test_precision_and_recall_refusals():
    good = normal(10, 4, seed=7)
    with pytest.raises(UserError, match=r"samples: .* at least 4 images, and there are 3"):
        precision_and_recall(good[:3], good)
    with pytest.raises(UserError, match="4 and of 3 dimensions"):
        precision_and_recall(good, good[:, :3])
    with pytest.raises(UserError, match="reference: some features are not finite"):
        precision_and_recall(good, good / 0)
