"""Precision and recall with distances in float16, as the ADM evaluator (guided-diffusion, TensorFlow) has them."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Features of a block of distances, which is in float16 as a whole or not at all.
_BLOCK = 10_000
# Of its rows so many at once: 40 MB in float32.
_ROWS = 1000


def float16_precision_and_recall(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """Precision and recall of finite float32 features (N, D) and (M, D), computed as the ADM evaluator does.

    The evaluator rounds the features to float16 and takes |u|² - 2 u·v + |v|², not below 0, in float16. Here squares
    and products are summed in float32 and the sums rounded to float16, then every step of the formula is rounded to
    float16. In which order TensorFlow adds up, and in which precision, is not known, so single decisions may differ.
    With |u|² about 500 such distances come in steps of 1/4 to 1/2, and as the border counts as inside, both figures
    tend to be a little too large.

    As there, a feature's distance to itself is computed like any other and is one of its ``neighbours`` + 1 smallest,
    and a block of 10,000 x 10,000 distances that are not all finite in float16 is computed again in float32.
    """
    sample_radii_n, reference_radii_m = _radii(samples, neighbours), _radii(reference, neighbours)
    sample_inside_n = torch.zeros_like(sample_radii_n, dtype=torch.bool)
    reference_inside_m = torch.zeros_like(reference_radii_m, dtype=torch.bool)
    for block in _slices(0, len(reference), _BLOCK):
        for columns in _slices(0, len(samples), _BLOCK):
            for rows, distances_ts in _block(reference, block, samples, columns):
                reference_inside_m[rows] |= (distances_ts <= sample_radii_n[columns]).any(dim=1)
                sample_inside_n[columns] |= (distances_ts <= reference_radii_m[rows, None]).any(dim=0)
    return sample_inside_n.double().mean().item(), reference_inside_m.double().mean().item()


def _radii(features_nd: Tensor, neighbours: int) -> Tensor:
    """float32 (N,): the squared distance to each feature's ``neighbours``-th nearest; its own is one more."""
    smallest_nk = features_nd.new_full((len(features_nd), neighbours + 1), torch.inf)
    for block in _slices(0, len(features_nd), _BLOCK):
        for columns in _slices(0, len(features_nd), _BLOCK):
            for rows, distances_ts in _block(features_nd, block, features_nd, columns):
                count = min(neighbours + 1, distances_ts.shape[1])
                found_tk = torch.cat([smallest_nk[rows], distances_ts.topk(count, largest=False).values], dim=1)
                smallest_nk[rows] = found_tk.topk(neighbours + 1, largest=False).values
    return smallest_nk.amax(dim=1)


def _block(first_nd: Tensor, block: slice, second_md: Tensor, columns: slice) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a block and their distances (T, S), float32 that hold what float16 has where that is finite."""
    second_sd = second_md[columns]
    parts = _slices(block.start, block.stop, _ROWS)
    finite = _is_short(first_nd[block]) and _is_short(second_sd)
    finite = finite or all(_distances(first_nd[rows], second_sd, torch.float16).isfinite().all() for rows in parts)
    for rows in parts:
        yield rows, _distances(first_nd[rows], second_sd, torch.float16 if finite else torch.float32).float()


def _is_short(features_nd: Tensor) -> bool:
    """Whether no distance between such features can overflow in float16: (|u| + |v|)² stays below 64,000."""
    return all(bool((part.square().sum(dim=1) < 15_900).all()) for part in features_nd.split(_ROWS))


def _distances(rows_td: Tensor, columns_sd: Tensor, dtype: torch.dtype) -> Tensor:
    """(T, S) of ``dtype``: every step of the evaluator's formula rounded to it."""
    rows_td, columns_sd = rows_td.to(dtype).float(), columns_sd.to(dtype).float()
    norms_t, norms_s = (side.square().sum(dim=1).to(dtype) for side in (rows_td, columns_sd))
    products_ts = (rows_td @ columns_sd.T).to(dtype)
    return (norms_t[:, None] - 2 * products_ts).add_(norms_s).clamp_(min=0)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
