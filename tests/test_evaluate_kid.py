"""The kernel distance against torch-fidelity and against sums over all pairs."""

import itertools

import numpy as np
import pytest
import torch
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_kid import kid_features_to_metric

from fvq.evaluate.kid import SUBSETS, kernel_distance
from fvq.runtime.errors import UserError


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [2020, 7])
def test_distance_is_torch_fidelitys(seed: int):
    samples, reference = 0.4 * normal(260, 64, seed=0).abs(), 0.5 * normal(220, 64, seed=1).abs()
    found = kernel_distance(samples, reference, subsets=20, subset_size=100, seed=seed)
    # torch-fidelity computes in the features' precision: of float32 its own sums keep four digits.
    for dtype, digits in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        features = (samples.to(dtype), reference.to(dtype))
        published = kid_features_to_metric(*features, kid_subsets=20, kid_subset_size=100, rng_seed=seed, verbose=False)
        expected = (published["kernel_inception_distance_mean"], published["kernel_inception_distance_std"])
        assert found == pytest.approx(expected, rel=digits)


def test_defaults_are_torch_fidelitys():
    samples, reference = normal(1010, 3, seed=2), normal(1005, 3, seed=3) + 0.2
    published = kid_features_to_metric(samples.double(), reference.double(), kid_subsets=3, verbose=False)
    expected = (published["kernel_inception_distance_mean"], published["kernel_inception_distance_std"])
    assert kernel_distance(samples, reference, subsets=3) == pytest.approx(expected, rel=1e-10)
    assert DEFAULTS["kid_subsets"] == SUBSETS


def test_distance_is_the_sum_over_all_pairs():
    samples, reference = normal(7, 5, seed=4), normal(7, 5, seed=5) + 1
    x, y = samples.double().numpy(), reference.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float((a * b).sum()) / 5 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i, j in itertools.permutations(range(7), 2)) / (7 * 6)
    expected = within - 2 * sum(kernel(a, b) for a in x for b in y) / 49
    mean, deviation = kernel_distance(samples, reference, subsets=4, subset_size=7)  # each subset holds all
    assert mean == pytest.approx(expected, rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_distance_is_unbiased():
    """Between halves of one set 0 on average, where a biased estimate would lie above."""
    halves = normal(100, 2, 60, 8, seed=6)
    distances = torch.tensor([kernel_distance(*pair, subsets=1, subset_size=60)[0] for pair in halves])
    assert distances.mean().abs() < 3 * distances.std() / 10
    assert (distances < 0).any()
    apart, _ = kernel_distance(halves[0, 0], halves[0, 1] + 0.5, subsets=1, subset_size=60)
    assert apart > distances.max()


def test_the_seed_decides_what_is_drawn():
    samples, reference = normal(80, 4, seed=7), normal(90, 4, seed=8)

    def drawn(seed: int) -> tuple[float, float]:
        return kernel_distance(samples, reference, subsets=3, subset_size=20, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)


def test_refusals():
    good = normal(30, 4, seed=9)
    with pytest.raises(UserError, match=r"^samples: .* subsets of 1,000 images, and there are 30$"):
        kernel_distance(good, good)
    with pytest.raises(UserError, match=r"^reference: .* subsets of 20 images, and there are 19$"):
        kernel_distance(good, good[:19], subset_size=20)
    with pytest.raises(UserError, match="4 and of 3 dimensions"):
        kernel_distance(good, good[:, :3], subset_size=20)
    with pytest.raises(UserError, match="reference: some features are not finite"):
        kernel_distance(good, good / 0, subset_size=20)
    for sizes in ({"subsets": 0}, {"subset_size": 1}):
        with pytest.raises(UserError, match="at least 1 subset of 2 images"):
            kernel_distance(good, good, **sizes)
