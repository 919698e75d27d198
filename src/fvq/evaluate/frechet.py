"""Fréchet distance between Gaussians fitted to features: Heusel et al. 2017, Eq. 6."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fvq.evaluate.extractor import INCEPTION_2015
from fvq.evaluate.images import in_batches
from fvq.runtime.errors import UserError


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and scatter of features, gathered batch by batch in float64 without keeping the features.

    ``merge`` adds the correction for the shift between two means (Chan et al. 1979), so that nothing cancels where the
    mean is large beside the spread.
    """

    count: int
    mean: Tensor
    """float64 (D,)"""
    scatter: Tensor
    """float64 (D, D): the sum over features of (f - mean)(f - mean)^T"""

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Statistics of features (N, D), N of at least 1; UserError where one is not finite."""
        if features.ndim != 2 or len(features) == 0:
            raise UserError(f"features: must have the shape (N, D) with N of at least 1, not {tuple(features.shape)}")
        if not features.isfinite().all():
            raise UserError("features: some are not finite")
        features_nd = features.double()
        mean_d = features_nd.mean(dim=0)
        centred_nd = features_nd - mean_d
        return cls(len(features), mean_d, centred_nd.T @ centred_nd)

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both sets of features together."""
        _check_same_dimension(self, other)
        count = self.count + other.count
        shift_d = other.mean - self.mean
        mean_d = self.mean + shift_d * (other.count / count)
        correction = torch.outer(shift_d, shift_d) * (self.count * other.count / count)
        return FeatureStatistics(count, mean_d, self.scatter + other.scatter + correction)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance float64 (D, D), as numpy.cov gives it; UserError for fewer than 2 features."""
        if self.count < 2:
            raise UserError("features: a covariance needs at least 2 images, and there is 1")
        covariance: Tensor = self.scatter / (self.count - 1)
        return covariance


def feature_statistics(features: Tensor, batch_size: int = 4096) -> FeatureStatistics:
    """Statistics of features (N, D), gathered in batches, so that the float64 copy stays small."""
    statistics = FeatureStatistics.of(features[:batch_size])
    for batch in in_batches(features[batch_size:], batch_size):
        statistics = statistics.merge(FeatureStatistics.of(batch))
    return statistics


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), never below 0.

    With S = L L^T the last trace is the sum of the singular values of L1^T L2. That takes no root of a rounding error,
    so it stays exact where there are fewer images than dimensions.

    Raises:
        UserError: fewer than 2 images on a side, or features of different dimension.
    """
    _check_same_dimension(first, second)
    covariance_1, covariance_2 = first.covariance, second.covariance
    root_trace = torch.linalg.svdvals(_factor(covariance_1).T @ _factor(covariance_2)).sum()
    shift = first.mean - second.mean
    distance = shift @ shift + covariance_1.trace() + covariance_2.trace() - 2 * root_trace
    return max(float(distance), 0.0)


def distance_name(extractor_name: str) -> str:
    """The figure's name: ``fid`` on the Inception features of 2015 only, else ``fd_<extractor>``."""
    return "fid" if extractor_name == INCEPTION_2015 else f"fd_{extractor_name}"


def _factor(covariance: Tensor) -> Tensor:
    """L (D, R) with L L^T the covariance and R its numerical rank."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    # Below this an eigenvalue is rounding error.
    kept = eigenvalues > len(eigenvalues) * torch.finfo(torch.float64).eps * eigenvalues[-1].clamp(min=0)
    factor: Tensor = eigenvectors[:, kept] * eigenvalues[kept].sqrt()
    return factor


def _check_same_dimension(first: FeatureStatistics, second: FeatureStatistics) -> None:
    if first.mean.shape != second.mean.shape:
        raise UserError(f"features: of {len(first.mean)} and of {len(second.mean)} dimensions cannot be compared")
