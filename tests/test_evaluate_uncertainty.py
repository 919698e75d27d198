"""Spread and extrapolation of the distance against repeated draws from known Gaussians; the digits it carries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fvq.evaluate.frechet import Gaussian, feature_statistics, frechet_distance
from fvq.evaluate.uncertainty import extrapolate, half_spread
from fvq.runtime.errors import UserError
from fvq.runtime.text import supported


def standard(dimension: int) -> Gaussian:
    return Gaussian(torch.zeros(dimension).double(), torch.eye(dimension).double(), None)


def sets_of_samples(sets: int, count: int, dimension: int, shift: float, scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(sets, count, dimension, generator=generator, dtype=torch.float64)
    return list(samples * scale + shift)


def distance(features: torch.Tensor, reference: Gaussian) -> float:
    return frechet_distance(feature_statistics(features).gaussian, reference)


@pytest.mark.parametrize(
    ("count", "dimension", "shift", "scale", "lowest", "highest"),
    [
        (400, 8, 0.3, 1.2, 0.8, 1.25),
        (100, 16, 0.3, 1.2, 0.8, 1.25),
        (32, 40, 0.5, 1.5, 0.8, 1.25),  # fewer samples than dimensions
        (400, 8, 0.0, 1.0, 1.0, 2.0),  # a distance that is nothing but bias: the spread is an upper bound
    ],
)
def test_half_spread_is_the_deviation_over_repeated_draws(count, dimension, shift, scale, lowest, highest):
    reference = standard(dimension)
    sets = sets_of_samples(150, count, dimension, shift, scale)
    deviation = torch.tensor([distance(features, reference) for features in sets]).std().item()
    spreads = [half_spread(features, reference, seed=seed) for seed, features in enumerate(sets[:60])]
    assert lowest < sum(spreads) / len(spreads) / deviation < highest


def test_pairs_are_halved_and_thinned_together():
    """Reconstructions: features that differ by little from the features of their originals."""
    originals = sets_of_samples(150, 400, 8, 0.0, 1.0)
    pairs = [(0.8 * features + 0.2, features) for features in originals]
    distances = torch.tensor([distance(first, feature_statistics(second).gaussian) for first, second in pairs])
    spreads = torch.tensor([half_spread(*pair, seed=seed) for seed, pair in enumerate(pairs[:40])])
    assert 0.8 < spreads.mean() / distances.std() < 1.25
    # Both sides share the chance, of which an independent reference has much.
    assert spreads.mean() < 0.5 * half_spread(pairs[0][0], standard(8), seed=0)
    extrapolated = torch.tensor([extrapolate(*pair, seed=0) for pair in pairs[:40]])
    assert extrapolated.mean() == pytest.approx(8 * (0.2**2 + 0.2**2), rel=0.02)
    with pytest.raises(UserError, match=r"\(400, 8\) do not pair with \(399, 8\)"):
        half_spread(originals[0], originals[1][1:], seed=0)


def test_half_spread_of_one_set_follows_the_seed():
    features = sets_of_samples(1, 333, 6, 0.4, 1.0)[0]
    reference = standard(6)
    spread = half_spread(features, reference, seed=1)
    assert spread == half_spread(features.clone(), reference, seed=1)
    assert spread != half_spread(features, reference, seed=2)
    assert spread == pytest.approx(half_spread(features.float(), reference, seed=1), rel=1e-3)
    many = half_spread(features, reference, seed=1, repeats=200)
    assert half_spread(features, reference, seed=2, repeats=200) == pytest.approx(many, rel=0.2)


def test_a_large_mean_does_not_matter():
    features = sets_of_samples(1, 400, 6, 0.4, 1.0)[0]
    reference = standard(6)
    far = Gaussian(reference.mean + 1e5, reference.covariance, None)
    for measure in (half_spread, extrapolate):
        assert measure(features + 1e5, far, seed=0) == pytest.approx(measure(features, reference, seed=0), rel=1e-5)


@pytest.mark.parametrize(("count", "dimension"), [(400, 16), (1000, 8)])
def test_extrapolation_is_nearer_to_the_truth(count: int, dimension: int):
    reference, shift, scale = standard(dimension), 0.1, 1.1
    truth = dimension * (shift**2 + (scale - 1) ** 2)
    sets = sets_of_samples(60, count, dimension, shift, scale)
    plain = torch.tensor([distance(features, reference) for features in sets]) - truth
    extrapolated = torch.tensor([extrapolate(features, reference, seed=0) for features in sets]) - truth
    assert extrapolated.mean().abs() < 0.2 * plain.mean()
    assert extrapolated.square().mean() < 0.8 * plain.square().mean()


def test_extrapolation_may_lie_below_zero_and_is_not_biased_there():
    reference = standard(8)
    sets = sets_of_samples(60, 400, 8, 0.0, 1.0)
    extrapolated = torch.tensor([extrapolate(features, reference, seed=0) for features in sets])
    assert extrapolated.min() < 0 < extrapolated.max()
    assert extrapolated.mean().abs() < 3 * extrapolated.std() / math.sqrt(len(sets))


def test_extrapolation_of_all_samples_uses_each_of_them():
    features = sets_of_samples(1, 400, 4, 0.2, 1.0)[0]
    reference = standard(4)
    assert extrapolate(features, reference, seed=3) == extrapolate(features, reference, seed=3)
    moved = features.clone()
    moved[123] += 1000
    assert extrapolate(moved, reference, seed=3) > 10 * extrapolate(features, reference, seed=3)


def test_refusals():
    features, reference = sets_of_samples(1, 400, 4, 0.0, 1.0)[0], standard(4)
    with pytest.raises(UserError, match="at least 32 images, and there are 31"):
        half_spread(features[:31], reference, seed=0)
    with pytest.raises(UserError, match="at least 800 images for 200 dimensions, and there are 500"):
        extrapolate(torch.zeros(500, 200), standard(200), seed=0)
    with pytest.raises(UserError, match="at least 320 images"):
        extrapolate(features[:319], reference, seed=0)
    with pytest.raises(ValueError, match="even number"):
        half_spread(features, reference, seed=0, repeats=3)
    for measure in (half_spread, extrapolate):
        with pytest.raises(UserError, match=r"\(N, 5\) of the reference, not \(400, 4\)"):
            measure(features, standard(5), seed=0)
        with pytest.raises(UserError, match="not finite"):
            measure(features * math.nan, reference, seed=0)


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (12.3456, 0.2, "12.3"),
        (12.3456, 3, "12"),
        (12.3456, 0.096, "12.3"),  # to one digit that is 0.1
        (12.3456, 0.0949, "12.35"),
        (12.3456, 30, "10"),
        (12.3456, 300, "0"),
        (12345.678, 3, "12,346"),
        (12345.678, 20, "12,350"),
        (0.01234, None, "0.0123"),
        (1234567.0, None, "1,230,000"),
        (12.3456, 0, "12.35"),
        (12.3456, 1e-15, "12.35"),
        (0.0, 0, "0"),
        (0.0, 0.01, "0.00"),
        (-0.004, 0.1, "0.0"),
        (-3.14159, 0.01, "-3.14"),
        (0.00001234, 0.000002, "0.000012"),
    ],
)
def test_no_more_digits_than_the_spread_supports(value: float, spread: float | None, text: str):
    assert supported(value, spread) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e5))
def test_the_last_digit_is_the_first_of_the_spread(value: float, spread: float):
    text = supported(value, spread)
    assert "e" not in text
    assert abs(float(text.replace(",", "")) - value) <= 0.53 * spread + 1e-9
    decimals = len(text.partition(".")[2])
    assert 10.0**-decimals > 0.09 * spread or decimals == 0
    assert decimals == 0 or spread < 10 * 10.0**-decimals


@pytest.mark.parametrize("spread", [-1.0, math.nan, math.inf])
def test_a_spread_is_a_finite_number(spread: float):
    with pytest.raises(ValueError, match="spread"):
        supported(1.0, spread)
