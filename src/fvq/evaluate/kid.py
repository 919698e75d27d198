"""Kernel distance, on Inception features the Kernel Inception Distance: Bińkowski et al. 2018, Section 4."""

import numpy as np
import torch
from torch import Tensor

from fvq.runtime.errors import UserError

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020


def kernel_distance(
    samples: Tensor, reference: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = SEED
) -> tuple[float, float]:
    """Mean and (population) standard deviation over random subsets of the unbiased squared maximum mean discrepancy.

    The kernel is (x.y / D + 1)^3, in float64. Features are (N, D) and (M, D). The subsets are those of torch-fidelity
    (toshas/torch-fidelity, metric_kid.py): per subset, NumPy's RandomState(seed) draws ``subset_size`` samples, then as
    many of the reference, without replacement. An unbiased estimate may fall below 0 where the sets are alike.

    Raises:
        UserError: fewer than ``subset_size`` images on a side, subsets below 1 or of fewer than 2 images, features of
            different dimension or not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise UserError(f"kernel distance: needs at least 1 subset of 2 images, not {subsets} of {subset_size}")
    for features, what in ((samples, "samples"), (reference, "reference")):
        check_subset_size(len(features), what, subset_size)
        if not features.isfinite().all():
            raise UserError(f"{what}: some features are not finite")
    if samples.shape[1] != reference.shape[1]:
        raise UserError(f"features: of {samples.shape[1]} and of {reference.shape[1]} dimensions cannot be compared")
    random = np.random.RandomState(seed)
    distances = [
        _squared_discrepancy(_draw(samples, subset_size, random), _draw(reference, subset_size, random))
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def check_subset_size(count: int, what: str, subset_size: int = SUBSET_SIZE) -> None:
    """UserError that names ``what`` where it has fewer images than a subset."""
    if count < subset_size:
        raise UserError(f"{what}: the kernel distance draws subsets of {subset_size:,} images, and there are {count:,}")


def _draw(features: Tensor, size: int, random: np.random.RandomState) -> Tensor:
    return features[torch.from_numpy(random.choice(len(features), size, replace=False))].double()


def _squared_discrepancy(x_sd: Tensor, y_sd: Tensor) -> float:
    """The unbiased estimate of Gretton et al. 2012, Eq. 3: pairs of a set leave out an image with itself."""
    size = len(x_sd)
    within_x, within_y = _kernel(x_sd, x_sd), _kernel(y_sd, y_sd)
    within = within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()
    return (within / (size * (size - 1)) - 2 * _kernel(x_sd, y_sd).mean()).item()


def _kernel(x_sd: Tensor, y_sd: Tensor) -> Tensor:
    return (x_sd @ y_sd.T).div_(x_sd.shape[1]).add_(1).pow_(3)
