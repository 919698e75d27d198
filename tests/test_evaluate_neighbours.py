"""Precision, recall, density and coverage against brute force, a published implementation, and in float16."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import calculate_precision_recall_full

from fvq.evaluate.neighbours import NeighbourFigures, neighbour_figures
from fvq.evaluate.neighbours import figures as module
from fvq.evaluate.neighbours.distance_bounds import Bounds, FeatureSet, Frame, squared_distances
from fvq.evaluate.neighbours.distinct_features import distinct_features
from fvq.runtime.errors import UserError


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Every pair in float64."""
    return ((first.double().numpy()[:, None] - second.double().numpy()) ** 2).sum(-1)


def brute_force(samples, reference, neighbours=3, density_neighbours=5) -> NeighbourFigures:
    """Every figure by its definition."""
    to_samples = np.sort(squared(samples, samples))
    to_reference = np.sort(squared(reference, reference))  # the first is the feature itself
    between = squared(samples, reference)
    inside = between < to_reference[:, density_neighbours]
    return NeighbourFigures(
        precision=(between <= to_reference[:, neighbours]).any(1).mean(),
        recall=(between <= to_samples[:, neighbours, None]).any(0).mean(),
        density=inside.sum(1).mean() / density_neighbours,
        coverage=inside.any(0).mean(),
    )


def assert_equal(found: NeighbourFigures, expected: NeighbourFigures) -> None:
    """Counts over the same numbers: any other decision is off by far more."""
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-13, abs=0), name


def drawn(kind: str, samples: int, references: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets that are easy or hard to tell apart."""
    random = torch.Generator().manual_seed(seed)
    both = torch.randn(samples + references, dim, generator=random)
    if kind == "far from the origin":
        both += 1000
    elif kind == "tiny":
        both *= 1e-41
    elif kind == "huge":
        both *= 1e37
    elif kind == "copies":
        both = both[torch.randint(0, 1 + len(both) // 8, (len(both),), generator=random)]
    elif kind == "clusters":
        both = 1e-5 * both + 3 * torch.randint(0, 3, (len(both), 1), generator=random)
    elif kind == "grid":
        both = (1.5 * both).round()
    elif kind == "one far away":
        both[samples // 2] *= 1e12
        both[-1] *= 1e18
    elif kind == "constant":
        both[:] = 0.1
    return both[:samples].clone(), both[samples:].clone()


KINDS = ["plain", "far from the origin", "tiny", "huge", "copies", "clusters", "grid", "one far away", "constant"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(
    samples=st.integers(6, 90),
    references=st.integers(6, 90),
    dim=st.integers(1, 20),
    tile=st.sampled_from([20, 50, 2048]),
    neighbours=st.integers(1, 5),
    density_neighbours=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_equals_brute_force(kind, samples, references, dim, tile, neighbours, density_neighbours, seed):
    first, second = drawn(kind, samples, references, dim, seed)
    counts = {"neighbours": neighbours, "density_neighbours": density_neighbours}
    found = neighbour_figures(first, second, tile=tile, **counts)
    assert_equal(found, brute_force(first, second, **counts))
    swapped = neighbour_figures(second, first, tile=tile, neighbours=neighbours)
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)
    assert swapped.density is None and swapped.coverage is None


@pytest.mark.parametrize("kind", ["plain", "clusters", "copies", "grid", "one far away"])
@pytest.mark.parametrize("limit", ["pairs that wait", "pairs for float64 products"])
def test_does_not_depend_on_tiles_threads_or_limits(kind, limit, monkeypatch):
    """Neither when the pairs that wait are settled at once, nor when every tile goes to products in float64."""
    samples, reference = drawn(kind, 190, 230, 24, 0)
    expected = brute_force(samples, reference)
    figures = neighbour_figures(samples, reference, density_neighbours=5, tile=100)
    assert_equal(figures, expected)
    if limit == "pairs that wait":
        monkeypatch.setattr(module, "_WAITING", 0)
    else:
        monkeypatch.setattr(module, "_few", lambda pairs, bounds: pairs == 0)
    for tile in (64, 150):
        assert neighbour_figures(samples, reference, density_neighbours=5, tile=tile) == figures
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before % 2 + 1)
        assert neighbour_figures(samples, reference, density_neighbours=5) == figures
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_hold_and_are_narrow(kind, dtype):
    samples, reference = drawn(kind, 60, 70, 300, 1)
    frame = Frame.around(reference, float(max(samples.abs().max(), reference.abs().max())))
    sets = FeatureSet.of(samples, frame), FeatureSet.of(reference, frame)
    bounds = Bounds.between(*(features.block(slice(0, len(features)), dtype) for features in sets))
    rows, columns = (index.flatten() for index in torch.meshgrid(*map(torch.arange, map(len, sets)), indexing="ij"))
    exact = squared_distances(sets[0], rows, sets[1], columns)
    lower, upper = bounds.of_pairs(rows, columns)
    assert (lower <= exact).all() and (exact <= upper).all()
    if kind in ("plain", "far from the origin", "huge"):
        assert ((upper - lower) / exact).max() < 1200 * torch.finfo(dtype).eps


def test_distances_are_symmetric_and_zero_for_copies():
    features = normal(40, 301, seed=2)
    features[20:30] = features[:10]
    whole = FeatureSet(features, None, torch.ones(40, dtype=torch.int64), Frame(torch.zeros(301), 1.0))
    rows, columns = (index.flatten() for index in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    distances = squared_distances(whole, rows, whole, columns).view(40, 40)
    assert torch.equal(distances, distances.T)
    assert (distances.diagonal() == 0).all() and (distances[:10, 20:30].diagonal() == 0).all()
    assert distances.numpy() == pytest.approx(squared(features, features), rel=1e-14)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 9))
def test_copies_are_found(labels, dim):
    features = normal(7, dim, seed=3)
    features[6], features[5] = 0.0, -0.0  # equal numbers, other bits
    labels = [5 if label == 6 else label for label in labels]
    rows, copies = distinct_features(features[labels])
    assert sum(copies.tolist()) == len(labels)
    found = range(len(labels)) if rows is None else rows.tolist()
    assert list(found) == sorted(found)
    assert sorted((labels[row], count) for row, count in zip(found, copies.tolist(), strict=True)) == sorted(
        (label, labels.count(label)) for label in set(labels)
    )


def test_agrees_with_torch_fidelity():
    samples, reference = 0.9 * normal(1500, 32, seed=4), normal(1400, 32, seed=5)
    published = calculate_precision_recall_full(samples.double(), reference.double())
    figures = neighbour_figures(samples, reference, tile=256)
    assert 0.05 < min(published) < max(published) < 0.99
    assert (figures.precision, figures.recall) == pytest.approx(published, rel=1e-6)


def test_identical_and_disjoint_sets():
    features = normal(100, 5, seed=6)
    same = neighbour_figures(features, features.clone(), density_neighbours=5)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    apart = neighbour_figures(features + 1000, features, density_neighbours=5)
    assert apart == NeighbourFigures(0, 0, 0, 0)


def test_samples_collapsed_onto_a_reference_feature():
    """Precise, and they recall it alone; many copies are no more work than one feature."""
    reference = normal(300, 64, seed=7)
    samples = reference[:1].repeat(30_000, 1)
    figures = neighbour_figures(samples, reference, density_neighbours=5)
    assert (figures.precision, figures.recall) == (1, 1 / 300)
    assert figures.density == brute_force(samples[:10], reference).density


def test_the_border_counts_as_inside_for_precision_only():
    reference = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    samples = torch.tensor([[4.0], [5.0], [6.0], [7.0]])
    figures = neighbour_figures(samples, reference, neighbours=1, density_neighbours=1)
    assert figures == NeighbourFigures(precision=1 / 4, recall=1 / 4, density=0, coverage=0)


PEAK = """
import resource, torch
from fvq.evaluate.neighbours import neighbour_figures
torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
samples, reference = (torch.randn(count, 16, generator=random) for count in (5000, 6000))
neighbour_figures(samples[:50], reference[:50], density_neighbours=5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
neighbour_figures(samples, reference, tile=1024)
neighbour_figures(samples / 100, reference, density_neighbours=5, tile=1024)  # nearly all balls hold all samples
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_follows_the_tile():
    """All distances of the smallest matrix would be 100 MB."""
    # glibc then gives back what is freed, and the peak is that of the tensors.
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=120)
    assert int(run.stdout) < 50 * 1024


def distances_in_steps(rows: torch.Tensor, columns: torch.Tensor) -> np.ndarray:
    """The evaluator's formula in numpy's float16, products summed in float64."""
    rows, columns = rows.numpy().astype(np.float16), columns.numpy().astype(np.float16)
    norms, others = ((side.astype(np.float64) ** 2).sum(1).astype(np.float16) for side in (rows, columns))
    products = (rows.astype(np.float64) @ columns.astype(np.float64).T).astype(np.float16)
    return np.maximum((norms[:, None] - np.float16(2) * products) + others, np.float16(0))


def pooled(count: int, spread: float, seed: int) -> torch.Tensor:
    """Like Inception's pooled features: not negative, |x|² about 500."""
    mixed = spread * normal(count, 24, seed=seed) @ normal(24, 512, seed=8) / 5
    return 1.4 * (mixed + 0.4 * normal(count, 512, seed=seed + 1)).relu()


def test_float16_is_close_and_a_little_larger():
    samples, reference = pooled(1200, 0.9, 9), pooled(1100, 1.0, 11)
    exact = neighbour_figures(samples, reference)
    rounded = neighbour_figures(samples, reference, distances="float16")
    for value, true in ((rounded.precision, exact.precision), (rounded.recall, exact.recall)):
        assert true < value < true + 0.03
    own = [np.sort(distances_in_steps(side, side))[:, 3] for side in (samples, reference)]
    between = distances_in_steps(reference, samples)
    expected = (between <= own[1][:, None]).any(0).mean(), (between <= own[0]).any(1).mean()
    # A sum in float32 may round to the other neighbour in float16.
    assert (rounded.precision, rounded.recall) == pytest.approx(expected, abs=0.003)


def test_float16_leaves_density_and_coverage_exact():
    samples, reference = pooled(300, 0.9, 13), pooled(310, 1.0, 15)
    rounded = neighbour_figures(samples, reference, distances="float16", density_neighbours=5)
    exact = neighbour_figures(samples, reference, density_neighbours=5)
    assert (rounded.density, rounded.coverage) == (exact.density, exact.coverage)


def test_what_float16_cannot_hold_is_in_float32():
    samples, reference = 300 * pooled(300, 0.9, 17), 300 * pooled(310, 1.0, 19)
    rounded = neighbour_figures(samples, reference, distances="float16")
    exact = neighbour_figures(samples, reference)
    assert (rounded.precision, rounded.recall) == (exact.precision, exact.recall)


def test_refusals():
    good = normal(10, 4, seed=21)
    with pytest.raises(UserError, match=r"^samples: precision and recall at 3 .* at least 4 images, and there are 3$"):
        neighbour_figures(good[:3], good)
    with pytest.raises(
        UserError, match=r"^reference: density and coverage at 5 .* at least 6 images, and there are 5$"
    ):
        neighbour_figures(good, good[:5], density_neighbours=5)
    assert neighbour_figures(good[:5], good, density_neighbours=5).density is not None
    with pytest.raises(UserError, match="of 4 and of 3 dimensions"):
        neighbour_figures(good, good[:, :3])
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = good.clone()
        broken[3, 2] = bad
        with pytest.raises(UserError, match=r"^reference: some features are not finite$"):
            neighbour_figures(good, broken)
    with pytest.raises(UserError, match=r"must be float32 \(N, D\), not float64 \(10, 4\)"):
        neighbour_figures(good.double(), good)
    with pytest.raises(UserError, match="density_neighbours: must be at least 1, not 0"):
        neighbour_figures(good, good, density_neighbours=0)
