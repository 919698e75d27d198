"""Improved precision and recall by nearest neighbours: Kynkäänniemi et al. 2019."""

import torch
from torch import Tensor

from fvq.evaluate.images import in_batches
from fvq.runtime.errors import UserError

NEIGHBOURS = 3


def precision_and_recall(
    samples: Tensor, reference: Tensor, *, neighbours: int = NEIGHBOURS, tile: int = 1024
) -> tuple[float, float]:
    """The share of samples inside the reference's balls, and of reference features inside the samples' balls.

    A feature's ball reaches to its ``neighbours``-th nearest neighbour in its own set (itself not counted), border
    included, in squared Euclidean distance; computed in float64. Features are (N, D) and (M, D); memory is ``tile``
    rows of distances, never N x M.

    Raises:
        UserError: fewer than neighbours + 1 images on a side, different dimensions, or non-finite features.
    """
    for features, what in ((samples, "samples"), (reference, "reference")):
        if len(features) <= neighbours:
            raise UserError(
                f"{what}: precision and recall at {neighbours} neighbours need at least {neighbours + 1} images, "
                f"and there are {len(features)}"
            )
        if not features.isfinite().all():
            raise UserError(f"{what}: some features are not finite")
    if samples.shape[1] != reference.shape[1]:
        raise UserError(f"features: of {samples.shape[1]} and of {reference.shape[1]} dimensions cannot be compared")
    # Centring keeps the rounding of |a|^2 + |b|^2 - 2ab small.
    centre_d = reference.double().mean(dim=0)
    samples_nd, reference_md = samples.double() - centre_d, reference.double() - centre_d
    slack = _rounding_error(samples_nd, reference_md)
    sample_reach_n = _squared_radii(samples_nd, neighbours, tile) + slack
    reference_reach_m = _squared_radii(reference_md, neighbours, tile) + slack

    sample_inside_n = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    references_inside = 0
    for rows_td, reach_t in zip(in_batches(reference_md, tile), in_batches(reference_reach_m, tile), strict=True):
        distances_tn = _squared_distances(rows_td, samples_nd)
        sample_inside_n |= (distances_tn <= reach_t[:, None]).any(dim=0)
        references_inside += int((distances_tn <= sample_reach_n).any(dim=1).sum())
    return sample_inside_n.double().mean().item(), references_inside / len(reference)


def _squared_radii(features_nd: Tensor, neighbours: int, tile: int) -> Tensor:
    """Squared distance (N,) of each feature to its ``neighbours``-th nearest; its own distance of 0 comes first."""
    return torch.cat(
        [
            _squared_distances(rows, features_nd).kthvalue(neighbours + 1).values
            for rows in in_batches(features_nd, tile)
        ]
    )


def _squared_distances(rows_td: Tensor, columns_nd: Tensor) -> Tensor:
    """(T, N), exact to rounding; never below 0."""
    norms_t, norms_n = rows_td.square().sum(dim=1), columns_nd.square().sum(dim=1)
    return torch.addmm(norms_t[:, None] + norms_n, rows_td, columns_nd.T, alpha=-2).clamp_(min=0)


def _rounding_error(samples_nd: Tensor, reference_md: Tensor) -> Tensor:
    """A bound on the error of two squared distances, so that equal ones compare as equal: the radius of copies is 0."""
    largest = torch.maximum(samples_nd.square().sum(dim=1).max(), reference_md.square().sum(dim=1).max())
    return 8 * (samples_nd.shape[1] + 2) * torch.finfo(torch.float64).eps * largest
