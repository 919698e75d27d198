"""The Fréchet distance against closed forms, NumPy and two published implementations."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_statistics_to_metric

from fvq.evaluate.frechet import Gaussian, feature_statistics, frechet_distance
from fvq.runtime.errors import UserError


def correlated(count: int, dimension: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator)
    return torch.randn(count, dimension, generator=generator) @ mixing + offset


def fitted(features: torch.Tensor) -> Gaussian:
    return feature_statistics(features).gaussian


def uncounted(gaussian: Gaussian) -> Gaussian:
    """As it comes from a file that does not say of how many images it is."""
    return dataclasses.replace(gaussian, count=None)


def diagonal(*variances: float) -> Gaussian:
    return Gaussian(
        torch.zeros(len(variances)).double(), torch.diag(torch.tensor(variances, dtype=torch.float64)), None
    )


def distance_of_features(first: torch.Tensor, second: torch.Tensor) -> float:
    """By the singular values of the product of the centred features: no covariance, so nothing is squared."""
    pair = [x.double().numpy() for x in (first, second)]
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in pair]
    root_trace = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    shift = pair[0].mean(0) - pair[1].mean(0)
    return shift @ shift + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * root_trace


def traces(*gaussians: Gaussian) -> float:
    return sum(one.covariance.trace().item() for one in gaussians)


def test_commuting_gaussians_have_a_closed_form():
    rotation, _ = torch.linalg.qr(correlated(6, 6, seed=0).double())
    variances_1 = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.0, 4.0]).double()
    variances_2 = torch.tensor([2.0, 2.0, 0.1, 0.5, 1.0, 9.0]).double()
    shift = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5, 0.0]).double()
    first = Gaussian(torch.zeros(6).double(), rotation @ torch.diag(variances_1) @ rotation.T, 11)
    second = Gaussian(shift, rotation @ torch.diag(variances_2) @ rotation.T, 11)
    expected = shift.square().sum() + (variances_1.sqrt() - variances_2.sqrt()).square().sum()
    # The zero variance comes back from the rotation as some 1e-16.
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.parametrize("dimension", [2, 24, 150])
def test_agrees_with_published_implementations(dimension: int):
    first, second = correlated(500, dimension, seed=1), correlated(400, dimension, seed=2, offset=0.3)
    distance = frechet_distance(fitted(first), fitted(second))

    moments = [(x.double().numpy().mean(axis=0), np.cov(x.double().numpy(), rowvar=False)) for x in (first, second)]
    assert distance == pytest.approx(calculate_frechet_distance(*moments[0], *moments[1]), rel=1e-9)
    as_dicts = [{"mu": mu, "sigma": sigma} for mu, sigma in moments]
    published = fid_statistics_to_metric(*as_dicts, verbose=False)["frechet_inception_distance"]
    assert distance == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("counts", [(30, 40), (40, 30), (30, 300), (300, 30), (81, 80), (2, 2)])
def test_is_exact_with_fewer_images_than_dimensions(counts: tuple[int, int], known: bool):
    first, second = correlated(counts[0], 80, seed=3), correlated(counts[1], 80, seed=4)
    gaussians = [fitted(features) if known else uncounted(fitted(features)) for features in (first, second)]
    # Without the counts the rank is to be told from rounding errors.
    tolerance = 1e-11 if known else 1e-9
    assert frechet_distance(*gaussians) == pytest.approx(distance_of_features(first, second), rel=tolerance)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("small", [0.0, 1e-9, 1e-7, 1e-5])
def test_nearly_singular_covariances(small: float, both: bool):
    """Dimensions with hardly any variance, and dimensions that others give but for so much.

    Roots of rounding errors, as of the eigenvalues of the product of the covariances, would be off by 1e-9 and more.
    """
    first, second = correlated(300, 40, seed=10).double(), correlated(300, 40, seed=11).double()
    for features in (first, second) if both else (first,):
        features[:, :8] *= small
        features[:, 8:16] = features[:, 16:24] + small * features[:, 8:16]
    gaussians = fitted(first), fitted(second)
    expected = distance_of_features(first, second)
    # In this one case a covariance in float64 does not tell more.
    tolerance = 5e-9 if small == 1e-7 and not both else 1e-10
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=0, abs=tolerance * traces(*gaussians))


def test_small_variances_are_no_rounding_errors():
    expected = 2 * (1e10 - 1) ** 2
    assert frechet_distance(diagonal(1e20, 1), diagonal(1, 1e20)) == pytest.approx(expected, rel=1e-14)
    assert frechet_distance(diagonal(1, 1e-30, 0), diagonal(4, 1e-30, 9)) == pytest.approx(1 + 9, rel=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(2, 40), st.integers(2, 40), st.floats(0.01, 100), st.booleans(), st.integers(0, 999)
)
def test_distance_laws(dimension: int, count_1: int, count_2: int, factor: float, known: bool, seed: int):
    features = [correlated(count, dimension, seed + k, offset=k).double() for k, count in enumerate((count_1, count_2))]
    rotation, _ = torch.linalg.qr(correlated(dimension, dimension, seed + 2).double())

    def distance(first: torch.Tensor, second: torch.Tensor) -> float:
        pair = [fitted(x) if known else uncounted(fitted(x)) for x in (first, second)]
        return frechet_distance(*pair)

    first, second = features
    rounding = 1e-7 * traces(fitted(first), fitted(second))
    expected = distance(first, second)
    assert expected == pytest.approx(distance_of_features(first, second), rel=1e-7, abs=rounding)
    assert distance(second, first) == pytest.approx(expected, rel=1e-7, abs=rounding)
    assert distance(first @ rotation, second @ rotation) == pytest.approx(expected, rel=1e-7, abs=rounding)
    assert distance(first + 3, second + 3) == pytest.approx(expected, rel=1e-7, abs=rounding)
    scaled = distance(factor * first, factor * second) / factor**2
    assert scaled == pytest.approx(expected, rel=1e-7, abs=rounding)
    assert 0 <= distance(first, first) <= rounding


@pytest.mark.parametrize("count", [5, 12, 13, 14, 200])
def test_equal_statistics_have_no_distance(count: int):
    one = fitted(correlated(count, 12, seed=5))
    assert 0 <= frechet_distance(one, one) < 1e-11 * traces(one)
    assert 0 <= frechet_distance(uncounted(one), uncounted(one)) < 1e-9 * traces(one)


def test_collapsed_samples_have_a_distance():
    collapsed = fitted(torch.ones(5, 3))
    spread = fitted(correlated(50, 3, seed=7))
    expected = (spread.mean - 1).square().sum() + spread.covariance.trace()
    for pair in ((collapsed, spread), (uncounted(spread), uncounted(collapsed))):
        assert frechet_distance(*pair) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(collapsed, collapsed) == 0


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_streaming_and_merging_equal_numpy(offset: float):
    features = correlated(301, 10, seed=8, offset=offset)
    streamed = feature_statistics(features, batch_size=37)
    merged = (
        feature_statistics(features[:100])
        .merge(feature_statistics(features[100:101]))
        .merge(feature_statistics(features[101:]))
    )
    for statistics in (streamed, merged):
        assert statistics.count == 301
        np.testing.assert_allclose(statistics.mean, features.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(
            statistics.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-10
        )


def test_refusals():
    good = fitted(correlated(10, 4, seed=9))
    with pytest.raises(UserError, match="at least 2 images"):
        fitted(torch.zeros(1, 4))
    with pytest.raises(UserError, match="4 and of 5 dimensions"):
        frechet_distance(good, fitted(correlated(10, 5, seed=9)))
    for broken in ({"mean": good.mean * math.nan}, {"covariance": good.covariance * math.inf}):
        with pytest.raises(UserError, match="mean or covariance is not finite"):
            frechet_distance(dataclasses.replace(good, **broken), good)
    with pytest.raises(UserError, match="not finite"):
        feature_statistics(torch.tensor([[1.0, math.nan], [0.0, 0.0]]))
    with pytest.raises(UserError, match="N of at least 1"):
        feature_statistics(torch.zeros(0, 4))
