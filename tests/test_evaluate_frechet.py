"""The Fréchet distance against closed forms, NumPy and two published implementations."""

import math

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_statistics_to_metric

from fvq.evaluate.frechet import FeatureStatistics, distance_name, feature_statistics, frechet_distance
from fvq.runtime.errors import UserError


def correlated(count: int, dimension: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator)
    return torch.randn(count, dimension, generator=generator) @ mixing + offset


def test_commuting_gaussians_have_a_closed_form():
    rotation, _ = torch.linalg.qr(correlated(6, 6, seed=0).double())
    variances_1 = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.0, 4.0]).double()
    variances_2 = torch.tensor([2.0, 2.0, 0.1, 0.5, 1.0, 9.0]).double()
    shift = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5, 0.0]).double()

    def gaussian(mean: torch.Tensor, variances: torch.Tensor) -> FeatureStatistics:
        return FeatureStatistics(11, mean, 10 * rotation @ torch.diag(variances) @ rotation.T)

    expected = shift.square().sum() + (variances_1.sqrt() - variances_2.sqrt()).square().sum()
    distance = frechet_distance(gaussian(torch.zeros(6).double(), variances_1), gaussian(shift, variances_2))
    # The zero variance comes back from the rotation as some 1e-16.
    assert distance == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_agrees_with_published_implementations():
    first, second = correlated(500, 24, seed=1), correlated(400, 24, seed=2, offset=0.3)
    distance = frechet_distance(feature_statistics(first), feature_statistics(second))

    moments = [(x.double().numpy().mean(axis=0), np.cov(x.double().numpy(), rowvar=False)) for x in (first, second)]
    assert distance == pytest.approx(calculate_frechet_distance(*moments[0], *moments[1]), rel=1e-9)
    as_dicts = [{"mu": mu, "sigma": sigma} for mu, sigma in moments]
    published = fid_statistics_to_metric(*as_dicts, verbose=False)["frechet_inception_distance"]
    assert distance == pytest.approx(published, rel=1e-9)


def test_is_exact_with_fewer_images_than_dimensions():
    first, second = correlated(30, 80, seed=3), correlated(40, 80, seed=4)
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (first.double().numpy(), second.double().numpy())]
    root_trace = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    shift = first.double().mean(0).numpy() - second.double().mean(0).numpy()
    expected = shift @ shift + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * root_trace
    assert frechet_distance(feature_statistics(first), feature_statistics(second)) == pytest.approx(expected, rel=1e-9)


def test_distance_laws():
    first, second = feature_statistics(correlated(200, 12, seed=5)), feature_statistics(correlated(150, 12, seed=6))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-10)
    scaled = [FeatureStatistics(s.count, 3 * s.mean, 9 * s.scatter) for s in (first, second)]
    assert frechet_distance(*scaled) == pytest.approx(9 * frechet_distance(first, second), rel=1e-10)


def test_collapsed_samples_have_a_distance():
    collapsed = feature_statistics(torch.ones(5, 3))
    spread = feature_statistics(correlated(50, 3, seed=7))
    expected = (spread.mean - 1).square().sum() + spread.covariance.trace()
    assert frechet_distance(collapsed, spread) == pytest.approx(expected.item(), rel=1e-12)


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
    good = feature_statistics(correlated(10, 4, seed=9))
    with pytest.raises(UserError, match="at least 2 images"):
        frechet_distance(good, feature_statistics(torch.zeros(1, 4)))
    with pytest.raises(UserError, match="4 and of 5 dimensions"):
        frechet_distance(good, feature_statistics(correlated(10, 5, seed=9)))
    with pytest.raises(UserError, match="not finite"):
        feature_statistics(torch.tensor([[1.0, math.nan], [0.0, 0.0]]))
    with pytest.raises(UserError, match="N of at least 1"):
        feature_statistics(torch.zeros(0, 4))


def test_only_inception_features_give_a_fid():
    assert distance_name("inception-2015") == "fid"
    assert distance_name("photos") == "fd_photos"
