"""Fréchet distance between Gaussians fitted to features: Heusel et al. 2017, Eq. 6."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor

from fvq.evaluate.images import check_enough_images, in_batches
from fvq.runtime.errors import UserError

Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to features: all that the distance needs."""

    mean: Tensor
    """float64 (D,)"""
    covariance: Tensor
    """float64 (D, D), unbiased; symmetric and without negative eigenvalues but for rounding"""
    count: int | None
    """The number of images; None where it is not known: ADM's and pytorch-fid's files do not say."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and scatter of features, in float64.

    ``merge`` adds the correction for the shift between two means (Chan et al. 1979), so that nothing cancels where the
    mean is large beside the spread.
    """

    count: int
    mean: Tensor
    """float64 (D,)"""
    scatter: Tensor
    """float64 (D, D): the sum over features of (f - mean)(f - mean)^T"""

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both sets of features together."""
        _check_same_dimension(self.mean, other.mean)
        count = self.count + other.count
        shift_d = other.mean - self.mean
        mean_d = self.mean + shift_d * (other.count / count)
        correction = torch.outer(shift_d, shift_d) * (self.count * other.count / count)
        return FeatureStatistics(count, mean_d, self.scatter + other.scatter + correction)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance float64 (D, D), as numpy.cov gives it; UserError for fewer than 2 features."""
        check_enough_images(self.count, "features")
        covariance: Tensor = self.scatter / (self.count - 1)
        return covariance

    @property
    def gaussian(self) -> Gaussian:
        """The Gaussian with this mean and covariance; UserError for fewer than 2 features."""
        return Gaussian(self.mean, self.covariance, self.count)


class RunningStatistics:
    """Statistics of features that come batch by batch, added up in place: one matrix, however many there are."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Features (B, D), B of at least 1, all on one device."""
        features_bd = features.double()
        if self.count == 0:
            # About a point near the mean, so that little cancels in the end.
            self._centre_d = features_bd.mean(dim=0)
            self._sum_d = torch.zeros_like(self._centre_d)
            self._products_dd = self._centre_d.new_zeros(len(self._centre_d), len(self._centre_d))
        features_bd = features_bd - self._centre_d
        self._sum_d += features_bd.sum(dim=0)
        self._products_dd.addmm_(features_bd.T, features_bd)
        self.count += len(features_bd)

    def statistics(self) -> FeatureStatistics:
        """Of all features so far, on the CPU; nothing can be added afterwards."""
        shift_d = self._sum_d / self.count
        scatter_dd = self._products_dd.addr_(self._sum_d, shift_d, alpha=-1)
        return FeatureStatistics(self.count, (self._centre_d + shift_d).cpu(), scatter_dd.cpu())


def feature_statistics(features: Tensor, batch_size: int = 4096) -> FeatureStatistics:
    """Statistics of features (N, D), gathered in batches, so that the float64 copy stays small.

    Raises:
        UserError: no features, or one that is not finite.
    """
    if features.ndim != 2 or len(features) == 0:
        raise UserError(f"features: must have the shape (N, D) with N of at least 1, not {tuple(features.shape)}")
    if not features.isfinite().all():
        raise UserError("features: some are not finite")
    running = RunningStatistics()
    for batch in in_batches(features, batch_size):
        running.add(batch)
    return running.statistics()


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), never below 0.

    With S1 = L L^T the last trace is the sum of the roots of the eigenvalues of L^T S2 L. Where one of these is so near
    0 that the root of a rounding error may show, the trace is the sum of the singular values of L1^T L2 instead, which
    takes no such root, at 2 to 3 times the cost. The rank of fewer images than dimensions is known from their count;
    both problems are then as small as that.

    The first way is taken where the estimate of its error is below 1e-8 of tr S1 + tr S2. On covariances of real
    features the error itself came to a thousandth of the estimate. Features in float32 are themselves right to some
    1e-7, so a distance below 1e-7 of the traces says nothing.

    Raises:
        UserError: Gaussians of different dimension, or with a value that is not finite.
    """
    _check_same_dimension(first.mean, second.mean)
    for gaussian in (first, second):
        if not (gaussian.mean.isfinite().all() and gaussian.covariance.isfinite().all()):
            raise UserError("features: a mean or covariance is not finite")
    shift = first.mean - second.mean
    traces = first.covariance.trace() + second.covariance.trace()
    root_trace = _root_trace(first, second, tolerance=1e-8 * float(traces))
    return max(float(shift @ shift + traces) - 2 * root_trace, 0.0)


def _root_trace(first: Gaussian, second: Gaussian, tolerance: float) -> float:
    """tr (S1 S2)^(1/2), by eigenvalues where the estimate of their error is at most ``tolerance``."""
    factored, other = sorted((first, second), key=_rank_limit)
    order, lower = _pivoted_cholesky(factored)
    if lower.shape[1] == 0:
        return 0.0
    covariance = other.covariance.cpu().numpy()
    roots = np.sqrt(_congruent_eigenvalues(lower, covariance[np.ix_(order, order)]).clip(min=0))
    # Rounding moves an eigenvalue by about so much, its root by at most sqrt(moved), and by moved / (2 root) if less.
    moved = np.finfo(np.float64).eps * float(factored.covariance.norm() * other.covariance.norm())
    if moved == 0 or (moved / np.maximum(2 * roots, np.sqrt(moved))).sum() <= tolerance:
        return float(roots.sum())
    other_order, other_lower = _pivoted_cholesky(other)
    product = lower[np.argsort(order)].T @ other_lower[np.argsort(other_order)]
    return float(scipy.linalg.svdvals(product, check_finite=False).sum())


def _rank_limit(gaussian: Gaussian) -> int:
    dimension = len(gaussian.mean)
    return dimension if gaussian.count is None else min(gaussian.count - 1, dimension)


def _pivoted_cholesky(gaussian: Gaussian) -> tuple[Indices, Matrix]:
    """An order (D,) of the dimensions and L (D, R), zero above its diagonal, with L L^T the covariance in that order.

    R is the numerical rank (Higham 1990). It is found on the correlations, so that a dimension of small variance is
    not mistaken for rounding error.
    """
    covariance = gaussian.covariance.cpu().numpy()
    deviation_d = np.sqrt(covariance.diagonal().clip(min=0))
    scale_d = np.where(deviation_d > 0, deviation_d, 1)
    correlation = covariance / scale_d / scale_d[:, None]
    # The transpose lies in memory as LAPACK wants it, and is the same matrix.
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(correlation.T, lower=1, overwrite_a=1)
    order = pivots - 1
    lower = np.tril(factor[:, : min(rank, _rank_limit(gaussian))])
    lower *= scale_d[order, None]
    return order, lower


def _congruent_eigenvalues(lower: Matrix, covariance: Matrix) -> Matrix:
    """Eigenvalues (R,) of L^T S L."""
    if lower.shape[1] < len(lower):
        product = lower.T @ (covariance @ lower)
    else:  # L is a triangle: half the work
        product = scipy.linalg.blas.dtrmm(1.0, lower, covariance.T, lower=1, trans_a=1)
        product = scipy.linalg.blas.dtrmm(1.0, lower, product, lower=1, side=1, overwrite_b=1)
    eigenvalues: Matrix = scipy.linalg.eigvalsh(product, driver="evr", overwrite_a=True, check_finite=False)
    return eigenvalues


def _check_same_dimension(first_mean: Tensor, second_mean: Tensor) -> None:
    if first_mean.shape != second_mean.shape:
        raise UserError(f"features: of {len(first_mean)} and of {len(second_mean)} dimensions cannot be compared")
