"""What chance does to a Fréchet distance: its spread and its value for infinitely many samples."""

import math
from collections.abc import Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor

from fvq.evaluate.frechet import Gaussian, frechet_distance
from fvq.runtime.errors import UserError

_PARTS = 32
"""Subsets are unions of so many random parts of the features, whose products are taken once for all subsets."""

_SIZES = 15  # of subsets in the regression, as in Chong and Forsyth's code


def half_spread(features: Tensor, reference: Gaussian | Tensor, *, seed: int, repeats: int = 16) -> float:
    """The standard deviation of the distance between samples and a reference, estimated from halves of the samples.

    The samples are cut into two random halves ``repeats / 2`` times. Half the difference between the distances of two
    halves deviates by chance as the distance of all samples does (the delete-half jackknife; Shao and Wu 1989), and the
    bias, which is larger for fewer samples, cancels in it. The result is the root mean square of these differences; 16
    repeats give it to some 25%.

    It covers the chance in which samples were drawn. It does not cover the reference, which is taken as given, nor the
    seeds of trainings, nor the bias: fewer samples than dimensions have a large one. Where the distance is mostly bias
    (samples distributed as the reference) the true deviation is smaller, by up to a half.

    Args:
        features: (N, D), any floating type, of N samples.
        reference: what they are compared with; or, where each sample has a partner as a reconstruction has, the
            partners' features (N, D), of which the same halves are taken: the chance is then that of the pairs.
        seed: of the random halves; the same seed gives the same figure.
        repeats: the number of halves, even.

    Raises:
        UserError: fewer than 32 samples, features that do not fit the reference or are not finite.
    """
    if repeats < 2 or repeats % 2:
        raise ValueError(f"repeats: must be an even number of halves, not {repeats}")
    _check_features(features, reference)
    if len(features) < _PARTS:
        raise UserError(f"the spread over halves needs at least {_PARTS} images, and there are {len(features)}")
    generator = torch.Generator().manual_seed(seed)
    halves_hp = _random_parts([_PARTS // 2] * (repeats // 2), generator)
    subsets_sp = torch.stack([halves_hp, ~halves_hp], dim=1).flatten(0, 1)
    distances = [distance for _, distance in _distances(features, reference, subsets_sp, generator)]
    first_h, second_h = torch.tensor(distances, dtype=torch.float64).view(-1, 2).unbind(dim=1)
    return float(((first_h - second_h) / 2).square().mean().sqrt())


def extrapolate(features: Tensor, reference: Gaussian | Tensor, *, seed: int) -> float:
    """The distance for infinitely many samples: Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score".

    The bias of N samples falls as 1/N. The distances of random subsets of 15 sizes, evenly from a tenth of the samples
    to all, are fitted by a line in 1/N by least squares; the result is its value at 0. The reference is taken as given:
    the bias by its own number of images stays. A result may lie a little below 0 where the true distance is near 0. It
    is left so, as cutting it off would make the mean of several too large.

    The law holds where there are many more samples than dimensions, so the smallest subset has at least 2 D of them
    (Chong and Forsyth take 5,000 for 2,048 dimensions).

    Args:
        features: (N, D), any floating type, of N samples.
        reference: as for ``half_spread``; of partners the same subsets are taken, so that their bias goes as well.
        seed: of the random subsets; the same seed gives the same figure.

    Raises:
        UserError: fewer than 4 D samples (or 320), features that do not fit the reference or are not finite.
    """
    _check_features(features, reference)
    count, dimension = features.shape
    needed = max(4 * dimension, 10 * _PARTS)
    if count < needed:
        raise UserError(
            f"the extrapolation needs at least {needed:,} images for {dimension:,} dimensions, and there are {count:,}"
        )
    fewest = math.ceil(_PARTS * max(0.1, 2 * dimension / count))
    numbers = torch.linspace(fewest, _PARTS, _SIZES).round().int().tolist()
    generator = torch.Generator().manual_seed(seed)
    found = list(_distances(features, reference, _random_parts(numbers, generator), generator))
    distances_s = torch.tensor([distance for _, distance in found], dtype=torch.float64)
    inverse_s = torch.tensor([1 / size for size, _ in found], dtype=torch.float64)
    line_s2 = torch.stack([torch.ones_like(inverse_s), inverse_s], dim=1)
    return float(torch.linalg.lstsq(line_s2, distances_s[:, None]).solution[0])


def _check_features(features: Tensor, reference: Gaussian | Tensor) -> None:
    if isinstance(reference, Tensor) and reference.shape != features.shape:
        raise UserError(f"features: {tuple(features.shape)} do not pair with {tuple(reference.shape)}")
    dimension = reference.shape[-1] if isinstance(reference, Tensor) else len(reference.mean)
    if features.ndim != 2 or features.shape[1] != dimension:
        raise UserError(f"features: must have the shape (N, {dimension}) of the reference, not {tuple(features.shape)}")
    if not features.isfinite().all():
        raise UserError("features: some are not finite")


def _distances(
    features: Tensor, reference: Gaussian | Tensor, chosen_sp: Tensor, generator: torch.Generator
) -> Iterator[tuple[int, float]]:
    """For each subset that a row of bool (S, P) chooses: the number of its samples, and their distance."""
    order_n = torch.randperm(len(features), generator=generator).to(features.device)
    partners: Iterable[Gaussian] = (
        _subset_gaussians(reference, chosen_sp, order_n) if isinstance(reference, Tensor) else repeat(reference)
    )
    for one, partner in zip(_subset_gaussians(features, chosen_sp, order_n), partners, strict=False):
        yield one.count or 0, frechet_distance(one, partner)


def _random_parts(numbers: list[int], generator: torch.Generator) -> Tensor:
    """bool (S, P): for each of S subsets so many of the P parts, drawn without replacement."""
    chosen_sp = torch.zeros(len(numbers), _PARTS, dtype=torch.bool)
    for chosen_p, number in zip(chosen_sp, numbers, strict=True):
        chosen_p[torch.randperm(_PARTS, generator=generator)[:number]] = True
    return chosen_sp


def _subset_gaussians(features: Tensor, chosen_sp: Tensor, order_n: Tensor) -> Iterator[Gaussian]:
    """Gaussians of S subsets in one pass over the features: of the parts, in that order, that bool (S, P) chooses."""
    subsets, dimension = len(chosen_sp), features.shape[1]
    # About a point near every mean, so that little cancels below.
    centre_d = features.mean(dim=0).double()
    counts = [0] * subsets
    sums_sd = centre_d.new_zeros(subsets, dimension)
    products_sdd = centre_d.new_zeros(subsets, dimension, dimension)
    for part, chosen_s in zip(order_n.tensor_split(_PARTS), chosen_sp.T, strict=True):
        centred_nd = features[part].double() - centre_d
        sum_d, product_dd = centred_nd.sum(dim=0), centred_nd.T @ centred_nd
        for subset in chosen_s.nonzero().flatten().tolist():
            counts[subset] += len(part)
            sums_sd[subset] += sum_d
            products_sdd[subset] += product_dd
    for count, sum_d, product_dd in zip(counts, sums_sd, products_sdd, strict=True):
        scatter = product_dd - torch.outer(sum_d, sum_d) / count
        yield Gaussian(centre_d + sum_d / count, scatter / (count - 1), count)
