"""Figures from features: Fréchet distance, precision and recall.

Features are normal, turned at random, with deviations that fall off as a power.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from cases import Case, Work, codes, tokens
from evaluation_inputs import FLOOR, one_product
from threadpoolctl import threadpool_limits
from torch import Tensor

from fvq.evaluate.frechet import Gaussian, feature_statistics, frechet_distance
from fvq.evaluate.neighbours import NEIGHBOURS, neighbour_figures

DIMENSION = codes(2048)
OURS_DISTANCE = "frechet_distance"
OURS_NEIGHBOURS = "neighbour_figures"


def feature_cases() -> list[Case]:
    """Distances, and neighbours."""
    return [*_distances(), *_neighbours()]


class Distance(NamedTuple):
    """A Fréchet distance and, where it is known, the exact one."""

    value: float
    exact: float | None


def _distances() -> list[Case]:
    """From statistics on, bound by a symmetric eigenvalue problem; the libraries solve a general one.

    Where there are fewer images than dimensions it is only as large as their number. Of a matrix without full rank the
    libraries take roots of rounding errors.
    """
    rivals: dict[str, Callable[[Gaussian, Gaussian], float]] = {
        OURS_DISTANCE: frechet_distance,
        "pytorch-fid and ADM: scipy.linalg.sqrtm of the product": _distance_by_root,
        "torch-fidelity: eigenvalues of the product": _distance_by_eigenvalues,
    }
    return [
        Case(
            title=f"Fréchet distance: {DIMENSION:,} dimensions, {tokens(count):,} images",
            base=OURS_DISTANCE,
            rivals={name: partial(_compare, distance, tokens(count)) for name, distance in rivals.items()},
            agree=partial(_same_distance, tolerance),
            turns=2,
        )
        for count, tolerance in ((10_000, 1e-8), (1_000, 1e-3))
    ]


def _same_distance(tolerance: float, result: Distance, expected: Distance) -> None:
    truth = expected.value if expected.exact is None else expected.exact
    assert abs(result.value - truth) <= tolerance * truth, f"{result.value} instead of {truth}"


def _compare(distance: Callable[[Gaussian, Gaussian], float], count: int) -> Work:
    first, second, exact = _gaussians(count)

    def work() -> Distance:
        # NumPy's and SciPy's BLAS has threads of its own.
        with threadpool_limits(torch.get_num_threads(), user_api="blas"):
            return Distance(distance(first, second), exact)

    return work


def _distance_by_root(first: Gaussian, second: Gaussian) -> float:
    from pytorch_fid.fid_score import calculate_frechet_distance

    return calculate_frechet_distance(*_arrays(first), *_arrays(second))


def _distance_by_eigenvalues(first: Gaussian, second: Gaussian) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    statistics = (dict(zip(("mu", "sigma"), _arrays(gaussian), strict=True)) for gaussian in (first, second))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def _arrays(gaussian: Gaussian) -> tuple[np.ndarray, np.ndarray]:
    return gaussian.mean.numpy(), gaussian.covariance.numpy()


@functools.lru_cache(maxsize=1)
def _gaussians(count: int) -> tuple[Gaussian, Gaussian, float | None]:
    """Two sets' statistics, and their distance where the products of all pairs are few enough to tell it."""
    first_nd, second_nd = _features(0, count, 0.5), _features(1, count, 0.6) + 0.05
    first, second = (feature_statistics(features).gaussian for features in (first_nd, second_nd))
    return first, second, _exact_distance(first_nd, second_nd) if count < DIMENSION else None


def _exact_distance(first_nd: Tensor, second_nd: Tensor) -> float:
    """tr (S1 S2)^(1/2) is the sum of the singular values of X1 X2^T, of centred features; no root of a small number."""
    means = [features.double().mean(dim=0) for features in (first_nd, second_nd)]
    centred = [features - mean for features, mean in zip((first_nd.double(), second_nd.double()), means, strict=True)]
    squares = sum(float(features.square().sum()) for features in centred)
    products = float(torch.linalg.svdvals(centred[0] @ centred[1].T).sum())
    return float((means[0] - means[1]).square().sum()) + (squares - 2 * products) / (len(first_nd) - 1)


def _features(seed: int, count: int, decay: float) -> Tensor:
    """Features float32 (N, D) whose deviations fall off as the ``decay``-th power along random axes."""
    deviation_d = torch.arange(1, DIMENSION + 1) ** -decay
    return torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(seed)).mul_(deviation_d) @ _axes()


@functools.cache
def _axes() -> Tensor:
    return torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=torch.Generator().manual_seed(2))).Q


def _neighbours() -> list[Case]:
    """Bound by products, of all pairs between the sets and of half of those within each, which the floor has."""

    def prepared(rival: Callable[[Tensor, Tensor], Any], samples: int, reference: int) -> Work:
        return partial(rival, *_two_sets(samples, reference))

    cases = []
    for alone, sizes in ((False, (5_000, 5_000)), (True, (50_000, 10_000)), (True, (50_000, 50_000))):
        samples, reference = map(tokens, sizes)
        multiply_adds = DIMENSION * (samples * reference + (samples**2 + reference**2) / 2)
        rivals: dict[str, Callable[[], Work]] = {
            OURS_NEIGHBOURS: partial(prepared, _precision_and_recall, samples, reference)
        }
        if not alone:
            name = "torch-fidelity calculate_precision_recall_full"
            rivals[name] = partial(prepared, _as_torch_fidelity, samples, reference)
            rivals[FLOOR] = partial(one_product, multiply_adds)
        cases.append(
            Case(
                title=f"Precision and recall: {samples:,} samples, {reference:,} reference images",
                base=None if alone else OURS_NEIGHBOURS,
                rivals=rivals,
                agree=_same_figures,
                turns=1 if alone else 3,
                in_own_process=alone,
                rate=(2e-9 * multiply_adds, "GFLOP"),
            )
        )
    return cases


@functools.lru_cache(maxsize=1)
def _two_sets(samples: int, reference: int) -> tuple[Tensor, Tensor]:
    """The samples vary a fiftieth less than the reference, for precision and recall as those of a good generator."""
    return _features(1, samples, 0.5).mul_(0.98), _features(0, reference, 0.5)


def _precision_and_recall(samples_nd: Tensor, reference_md: Tensor) -> tuple[float, float]:
    figures = neighbour_figures(samples_nd, reference_md)
    return figures.precision, figures.recall


def _as_torch_fidelity(samples_nd: Tensor, reference_md: Tensor) -> tuple[float, float]:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    return calculate_precision_recall_full(samples_nd, reference_md, NEIGHBOURS)


def _same_figures(result: tuple[float, float] | None, expected: tuple[float, float]) -> None:
    """The same but for borders that float32 moves."""
    if result is not None:
        assert np.allclose(result, expected, rtol=0, atol=1e-3), f"{result} instead of {expected}"
