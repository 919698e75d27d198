"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020), by nearest neighbours.

A feature's ball reaches to its k-th nearest other feature in its own set, in squared Euclidean distance.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from fvq.evaluate.neighbours.distance_bounds import Bounds, FeatureSet, Frame, squared_distances
from fvq.evaluate.neighbours.float16 import float16_precision_and_recall
from fvq.quantize.shortlist import ieee_products
from fvq.runtime.errors import UserError
from fvq.runtime.heap import trim_heap

NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5

# Features whose distances to as many others are bounded at once: with 2,048, 16 MB.
_TILE = 2048
# Columns of which only the smallest excess is looked at first.
_GROUP = 16
# Groups whose entries are looked at together.
_PIECE = 2**13
# Pairs whose distances wait to be computed.
_WAITING = 2**20
# Products in float64 cost as much as the distances of one pair in so many.
_FEW = 32


@dataclass(frozen=True)
class NeighbourFigures:
    """Shares of features inside balls; density may exceed 1. None where they were not asked for."""

    precision: float
    recall: float
    density: float | None
    coverage: float | None


def neighbour_figures(
    samples: Tensor,
    reference: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int | None = None,
    distances: Literal["exact", "float16"] = "exact",
    tile: int = _TILE,
) -> NeighbourFigures:
    """Precision, recall and, with ``density_neighbours``, density and coverage of samples (N, D) float32.

    Precision is the share of samples inside some ball of the reference (M, D), recall the share of reference features
    inside some ball of the samples, both with k = ``neighbours`` and the border included. Density is the number of
    balls of the reference that hold a sample, mean over the samples and divided by k, and coverage the share of balls
    of the reference that hold a sample, with k = ``density_neighbours`` (5 in the paper) and the border left out.

    The figures are those of exact distances: every decision is that of a sum of squared differences in float64, in a
    fixed order, so they do not depend on the machine, the number of threads or ``tile``. Most pairs are decided by
    products in float32 with a proven bound on their error. Features of one set among themselves take half of the
    products, and both directions share those between the sets. Memory beyond the features is a few times ``tile``² of
    float32, whatever N and M.

    ``distances="float16"`` gives precision and recall as the ADM evaluator in TensorFlow computes them
    (float16.py); density and coverage remain exact.

    Raises:
        UserError: a set has no more than k features, the dimensions differ, or features are not finite float32.
    """
    _check(samples, reference, neighbours, density_neighbours)
    largest = max(_largest_entry(samples, "samples"), _largest_entry(reference, "reference"))
    with ieee_products(reference.device):
        if distances == "exact":
            return _exact_figures(samples, reference, neighbours, density_neighbours, largest, tile)
        precision, recall = float16_precision_and_recall(samples, reference, neighbours)
        if density_neighbours is None:
            return NeighbourFigures(precision, recall, None, None)
        exact = _exact_figures(samples, reference, neighbours, density_neighbours, largest, tile)
    return NeighbourFigures(precision, recall, exact.density, exact.coverage)


def check_enough_neighbours(count: int, what: str, figures: str, neighbours: int) -> None:
    """UserError that names ``what`` where its images are too few to have so many neighbours each."""
    if count <= neighbours:
        raise UserError(
            f"{what}: {figures} at {neighbours} neighbours need at least {neighbours + 1} images, and there are {count}"
        )


def _check(samples: Tensor, reference: Tensor, neighbours: int, density_neighbours: int | None) -> None:
    for name, value in (("neighbours", neighbours), ("density_neighbours", density_neighbours)):
        if value is not None and value < 1:
            raise UserError(f"{name}: must be at least 1, not {value}")
    needs = [("samples", samples, "precision and recall", neighbours)]
    needs.append(("reference", reference, "precision and recall", neighbours))
    if density_neighbours is not None:
        needs.append(("reference", reference, "density and coverage", density_neighbours))
    for what, features, figures, count in needs:
        if features.ndim != 2 or features.dtype != torch.float32:
            kind = str(features.dtype).removeprefix("torch.")
            raise UserError(f"{what}: features must be float32 (N, D), not {kind} {tuple(features.shape)}")
        check_enough_neighbours(len(features), what, figures, count)
    if samples.shape[1] != reference.shape[1]:
        raise UserError(f"features: of {samples.shape[1]} and of {reference.shape[1]} dimensions cannot be compared")


def _largest_entry(features_nd: Tensor, what: str) -> float:
    """The largest magnitude; UserError where it is not finite."""
    # A NaN is both the smallest and the largest.
    smallest, largest = (float(end) for end in torch.aminmax(features_nd))
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise UserError(f"{what}: some features are not finite")
    return max(-smallest, largest)


def _exact_figures(
    samples: Tensor, reference: Tensor, neighbours: int, density_neighbours: int | None, largest: float, tile: int
) -> NeighbourFigures:
    frame = Frame.around(reference, largest)
    sample_set, reference_set = FeatureSet.of(samples, frame), FeatureSet.of(reference, frame)
    sample_radii_uk = _squared_radii(sample_set, neighbours, tile)
    reference_radii_uk = _squared_radii(reference_set, max(neighbours, density_neighbours or 0), tile)

    precision = _Caught(reference_radii_uk[:, neighbours - 1], len(sample_set), axis=1)
    recall = _Caught(sample_radii_uk[:, neighbours - 1], len(reference_set), axis=0)
    tests: list[_Caught | _Counted] = [precision, recall]
    density = None
    if density_neighbours is not None:
        density = _Counted(reference_radii_uk[:, density_neighbours - 1], sample_set.copies_u, reference_set.copies_u)
        tests.append(density)
    for rows in sample_set.slices(tile):
        row_block = sample_set.block(rows, torch.float32)
        for columns in reference_set.slices(tile):
            bounds = Bounds.between(row_block, reference_set.block(columns, torch.float32))
            finer = None
            for test in tests:
                if test.visit(bounds):
                    continue
                if finer is None:
                    finer = _in_float64(bounds, sample_set, reference_set)
                test.visit(finer)
            for test in tests:
                if test.waiting.full:
                    test.settle(sample_set, reference_set)
        trim_heap()
    for test in tests:
        test.settle(sample_set, reference_set)
    return NeighbourFigures(
        precision=_weight(precision.caught_o, sample_set) / len(samples),
        recall=_weight(recall.caught_o, reference_set) / len(reference),
        density=None if density is None else density.pairs / (density_neighbours or 1) / len(samples),
        coverage=None if density is None else _weight(density.covered_b, reference_set) / len(reference),
    )


def _in_float64(bounds: Bounds, first: FeatureSet, second: FeatureSet) -> Bounds:
    """The same bounds by products in float64, far narrower."""
    rows, columns = bounds.rows.rows, bounds.columns.rows
    return Bounds.between(first.block(rows, torch.float64), second.block(columns, torch.float64))


def _weight(chosen_u: Tensor, features: FeatureSet) -> int:
    return int(features.copies_u[chosen_u].sum())


class _Waiting:
    """Pairs whose distances are not computed yet."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._pairs = 0

    @property
    def full(self) -> bool:
        return self._pairs > _WAITING

    def add(self, *columns_p: Tensor) -> None:
        self._parts.append(columns_p)
        self._pairs += len(columns_p[0])

    def add_few(self, pairs: list[tuple[Tensor, Tensor]], bounds: Bounds) -> bool:
        """Add pairs of a tile; not so, and False, where products in float64 would decide them sooner."""
        few = bounds.lower_ts.dtype is torch.float64 or _few(sum(len(rows_p) for rows_p, _ in pairs), bounds)
        if few:
            for rows_p, columns_p in pairs:
                self.add(rows_p + bounds.rows.rows.start, columns_p + bounds.columns.rows.start)
        return few

    def take(self) -> list[Tensor]:
        """All of them, column by column; none when none wait."""
        columns = [torch.cat(parts) for parts in zip(*self._parts, strict=True)]
        self._parts, self._pairs = [], 0
        return columns


def _squared_radii(features: FeatureSet, neighbours: int, tile: int) -> Tensor:
    """float64 (U, k): the exact squared distances of each distinct feature to its k nearest others, ascending."""
    steps_k = torch.arange(neighbours, device=features.copies_u.device)
    nearest_uk = torch.zeros(len(features), neighbours, dtype=torch.float64, device=steps_k.device)
    nearest_uk[steps_k >= features.copies_u[:, None] - 1] = torch.inf
    search = _Neighbours(features, nearest_uk)
    slices = features.slices(tile)
    # Near the diagonal first, in small parts: then each feature's reach is known when it meets the others.
    for rows in slices:
        parts = features.block(rows, torch.float32).parts(-(-tile // 4))
        for part in parts:
            search.visit(Bounds.between(part, part))
        for first, second in combinations(parts, 2):
            search.visit(Bounds.between(first, second))
    for number, rows in enumerate(slices):
        block = features.block(rows, torch.float32)
        for columns in slices[number + 1 :]:
            search.visit(Bounds.between(block, features.block(columns, torch.float32)))
        trim_heap()
    search.settle()
    return search.nearest_uk


class _Neighbours:
    """The search for the nearest others in the own set, tile by tile; each pair is met once, for both of its sides.

    ``nearest_uk`` holds exact distances, ``reach_uk`` upper bounds: of both, k pairs not farther than the last entry
    are known, so a pair with a larger lower bound is none of the k nearest.
    """

    def __init__(self, features: FeatureSet, nearest_uk: Tensor) -> None:
        self.features = features
        self.nearest_uk = nearest_uk
        self.reach_uk = nearest_uk.clone()
        self.waiting = _Waiting()

    def visit(self, bounds: Bounds) -> None:
        rows, columns = bounds.rows.rows, bounds.columns.rows
        among_themselves = rows == columns
        if among_themselves:
            bounds.lower_ts.fill_diagonal_(torch.inf)
            limit_t = limit_s = torch.minimum(self._limit(rows), self._first_reach(bounds))
        else:
            limit_t, limit_s = self._limit(rows), self._limit(columns)
        dtype = bounds.lower_ts.dtype
        limit_ts = torch.maximum(_rounded_up(limit_t, dtype)[:, None], _rounded_up(limit_s, dtype))
        pieces = list(_pairs_within(torch.sub(bounds.lower_ts, limit_ts, out=limit_ts)))
        rows_p, columns_p = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        if among_themselves:
            once_p = rows_p < columns_p
            rows_p, columns_p = rows_p[once_p], columns_p[once_p]
        if dtype is torch.float32 and not _few(len(rows_p), bounds):
            return self.visit(_in_float64(bounds, self.features, self.features))
        lower_p, upper_p = bounds.of_pairs(rows_p, columns_p)
        rows_p, columns_p = rows_p + rows.start, columns_p + columns.start
        self._merge(self.reach_uk, rows_p, columns_p, upper_p)
        self.waiting.add(rows_p, columns_p, lower_p)
        if self.waiting.full:
            self.settle()
        return None

    def settle(self) -> None:
        """Compute the distances that wait and may count."""
        if waiting := self.waiting.take():
            rows_p, columns_p, lower_p = waiting
            limit_u = self._limit(slice(None))
            close_p = lower_p <= torch.maximum(limit_u[rows_p], limit_u[columns_p])
            rows_p, columns_p = rows_p[close_p], columns_p[close_p]
            distances_p = squared_distances(self.features, rows_p, self.features, columns_p)
            self._merge(self.nearest_uk, rows_p, columns_p, distances_p)

    def _limit(self, rows: slice) -> Tensor:
        """No farther than this are the k nearest."""
        return torch.minimum(self.nearest_uk[rows, -1], self.reach_uk[rows, -1])

    def _first_reach(self, bounds: Bounds) -> Tensor:
        """float64 (T,): how far the k nearest of a block's own features reach at most."""
        count = self.reach_uk.shape[1]
        if len(bounds.lower_ts) <= count:
            return torch.full_like(bounds.rows.width_b, torch.inf)
        lower_tk, columns_tk = bounds.lower_ts.topk(count, dim=1, largest=False)
        upper_tk = lower_tk.double() + bounds.rows.width_b[:, None] + bounds.columns.width_b[columns_tk]
        return upper_tk.amax(dim=1)

    def _merge(self, smallest_uk: Tensor, rows_p: Tensor, columns_p: Tensor, values_p: Tensor) -> None:
        """Put the value of each pair among the k smallest of both of its sides, once for each copy of the other."""
        count = smallest_uk.shape[1]
        owners_p, others_p = torch.cat([rows_p, columns_p]), torch.cat([columns_p, rows_p])
        times_p = self.features.copies_u[others_p].clamp(max=count)
        owners_p, values_p = owners_p.repeat_interleave(times_p), values_p.repeat(2).repeat_interleave(times_p)
        by_value_p = values_p.argsort()
        by_owner_p = by_value_p[owners_p[by_value_p].argsort(stable=True)]
        owners_p, values_p = owners_p[by_owner_p], values_p[by_owner_p]
        touched_v, places_p = owners_p.unique_consecutive(return_inverse=True)
        ranks_p = torch.arange(len(places_p), device=places_p.device) - torch.searchsorted(places_p, places_p)
        kept_p = ranks_p < count
        new_vk = smallest_uk.new_full((len(touched_v), count), torch.inf)
        new_vk[places_p[kept_p], ranks_p[kept_p]] = values_p[kept_p]
        both_v2k = torch.cat([smallest_uk[touched_v], new_vk], dim=1)
        smallest_uk[touched_v] = both_v2k.sort(dim=1).values[:, :count]


@dataclass
class _Caught:
    """Which features of one set lie inside some ball of the other, border included.

    Attributes:
        squared_radii_b: float64, of the balls.
        others: how many features of the other set there are.
        axis: of the bounds, along which the balls lie.
    """

    squared_radii_b: Tensor
    others: int
    axis: int
    waiting: _Waiting = field(default_factory=_Waiting)

    def __post_init__(self) -> None:
        self.caught_o = torch.zeros(self.others, dtype=torch.bool, device=self.squared_radii_b.device)

    def visit(self, bounds: Bounds) -> bool:
        """Decide a tile of pairs but for a few that wait; False, and nothing waits, where they are not few."""
        balls, others = _along(bounds, self.axis)
        lower_ts = bounds.lower_ts
        radii_b = self.squared_radii_b[balls]
        excess_ts = lower_ts - _rounded_up(radii_b, lower_ts.dtype).unsqueeze(1 - self.axis)
        # Those that are caught need no second ball.
        done_o = torch.zeros_like(self.caught_o[others], dtype=lower_ts.dtype)
        done_o[self.caught_o[others]] = torch.inf
        open_pairs = []
        for rows_p, columns_p in _pairs_within(excess_ts.add_(done_o.unsqueeze(self.axis))):
            _, upper_p = bounds.of_pairs(rows_p, columns_p)
            balls_p, others_p = (rows_p, columns_p) if self.axis == 0 else (columns_p, rows_p)
            self.caught_o[others_p[upper_p <= radii_b[balls_p]] + others.start] = True
            open_p = ~self.caught_o[others_p + others.start]
            open_pairs.append((rows_p[open_p], columns_p[open_p]))
        return self.waiting.add_few(open_pairs, bounds)

    def settle(self, samples: FeatureSet, reference: FeatureSet) -> None:
        """Compute the distances that wait and still matter."""
        if waiting := self.waiting.take():
            open_p = ~self.caught_o[waiting[1 - self.axis]]
            rows_p, columns_p = (pairs_p[open_p] for pairs_p in waiting)
            balls_p, others_p = (rows_p, columns_p) if self.axis == 0 else (columns_p, rows_p)
            inside_p = squared_distances(samples, rows_p, reference, columns_p) <= self.squared_radii_b[balls_p]
            self.caught_o[others_p[inside_p]] = True


@dataclass
class _Counted:
    """How many pairs of a sample and a ball of the reference that holds it there are, border left out.

    Attributes:
        squared_radii_b: float64, of the reference.
        sample_copies_u: how often each distinct sample counts.
        ball_copies_b: how often each ball counts.
    """

    squared_radii_b: Tensor
    sample_copies_u: Tensor
    ball_copies_b: Tensor
    waiting: _Waiting = field(default_factory=_Waiting)
    pairs: int = 0

    def __post_init__(self) -> None:
        self.covered_b = torch.zeros_like(self.squared_radii_b, dtype=torch.bool)

    def visit(self, bounds: Bounds) -> bool:
        """Decide a tile of pairs but for a few that wait; False, and nothing is done, where they are not few."""
        radii_s = self.squared_radii_b[bounds.columns.rows]
        sure_pairs, open_pairs = [], []
        for rows_p, columns_p in _pairs_within(bounds.lower_ts - _rounded_up(radii_s, bounds.lower_ts.dtype)):
            _, upper_p = bounds.of_pairs(rows_p, columns_p)
            sure_p = upper_p < radii_s[columns_p]
            sure_pairs.append((rows_p[sure_p], columns_p[sure_p]))
            open_pairs.append((rows_p[~sure_p], columns_p[~sure_p]))
        few = self.waiting.add_few(open_pairs, bounds)
        if few:
            for rows_p, columns_p in sure_pairs:
                self._count(rows_p + bounds.rows.rows.start, columns_p + bounds.columns.rows.start)
        return few

    def settle(self, samples: FeatureSet, reference: FeatureSet) -> None:
        """Compute the distances that wait."""
        if waiting := self.waiting.take():
            rows_p, columns_p = waiting
            inside_p = squared_distances(samples, rows_p, reference, columns_p) < self.squared_radii_b[columns_p]
            self._count(rows_p[inside_p], columns_p[inside_p])

    def _count(self, samples_p: Tensor, balls_p: Tensor) -> None:
        self.pairs += int((self.sample_copies_u[samples_p] * self.ball_copies_b[balls_p]).sum())
        self.covered_b[balls_p] = True


def _along(bounds: Bounds, axis: int) -> tuple[slice, slice]:
    rows, columns = bounds.rows.rows, bounds.columns.rows
    return (rows, columns) if axis == 0 else (columns, rows)


def _few(pairs: int, bounds: Bounds) -> bool:
    return pairs <= max(_FEW**2, bounds.lower_ts.numel() // _FEW)


def _rounded_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Not below the float64 values, but finite, as distances are."""
    rounded = values.to(dtype)
    return torch.nextafter(rounded, torch.full_like(rounded, torch.inf)).clamp_(max=torch.finfo(dtype).max)


def _pairs_within(excess_ts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows (P,) and columns (P,) of entries that are not above 0, in pieces of bounded size, one at least."""
    # Comparing every entry would take longer than the smallest of each group.
    excess_ts = torch.nn.functional.pad(excess_ts, (0, -excess_ts.shape[1] % _GROUP), value=torch.inf)
    groups = excess_ts.shape[1] // _GROUP
    smallest_tg = excess_ts.view(len(excess_ts), _GROUP, groups).amin(dim=1)
    steps_g = groups * torch.arange(_GROUP, device=excess_ts.device)
    for found_h2 in (smallest_tg <= 0).nonzero().split(_PIECE):
        rows_h, columns_hg = found_h2[:, 0], found_h2[:, 1:] + steps_g
        hits_p, members_p = (excess_ts[rows_h[:, None], columns_hg] <= 0).nonzero(as_tuple=True)
        yield rows_h[hits_p], columns_hg[hits_p, members_p]
