"""The toy of Figure 2: gradient descent as written down, the spiral and the straight path, the figures of a path."""

import math

import numpy as np
import pytest

from fvq.experiments.straight_through import Trajectory, describe, run_trajectory

SETTINGS = {"codebook_size": 64, "steps": 200, "learning_rate": 0.05}
BRIDGE = {"width": 16, "heads": 2, "patch": 4}
SEEDS = range(2)


@pytest.fixture(scope="module")
def runs():
    return {
        (name, seed): run_trajectory(name, **SETTINGS, seed=seed, **options)
        for name, options in (("vq", {}), ("fvq", BRIDGE))
        for seed in SEEDS
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_the_spiral_and_the_straight_path(runs, seed):
    plain, bridge = describe(runs["vq", seed]), describe(runs["fvq", seed])
    assert plain["turning_net"] > 330
    assert bridge["turning_net"] < 135
    assert plain["path_ratio"] > 1.2
    assert bridge["path_ratio"] < 1.1
    assert bridge["distance_first"] < plain["distance_first"] / 5
    assert plain["target_distance"] < 0.05
    assert bridge["target_distance"] < 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_the_task_is_the_same_for_every_quantizer(runs, seed):
    plain, bridge = runs["vq", seed], runs["fvq", seed]
    assert np.array_equal(plain.z_e[0], bridge.z_e[0])
    assert np.array_equal(plain.target, bridge.target)
    assert not np.array_equal(plain.target, runs["vq", (seed + 1) % len(SEEDS)].target)
    for run in (plain, bridge):
        assert run.z_e.shape == run.z_q.shape == (201, 2)
        assert run.indices.shape == (201,)
        assert run.indices.min() >= 0
        assert run.indices.max() < 64
        for point in (run.z_e[0], run.target):
            assert (np.abs(point) <= 1).all()


def test_plain_descent_is_the_linear_system(runs):
    """Eq. 4 and 5 by hand: z_e <- z_e - η (z_q - y + β (z_e - z_q)), z_q <- z_q - η (z_q - z_e)."""
    seed = next(seed for seed in SEEDS if len(set(runs["vq", seed].indices)) == 1)
    run = runs["vq", seed]
    z_e, z_q = run.z_e[0], run.z_q[0]
    assert (np.abs(z_q) <= 1 / 64).all()
    for step in range(200):
        lag = z_q - z_e
        z_e, z_q = z_e - 0.05 * (z_q - run.target - 0.25 * lag), z_q - 0.05 * lag
        np.testing.assert_allclose(run.z_e[step + 1], z_e, atol=1e-5)
        np.testing.assert_allclose(run.z_q[step + 1], z_q, atol=1e-5)


def test_the_bridge_starts_with_every_code_at_the_origin(runs):
    assert (runs["fvq", 0].z_q[0] == 0).all()
    assert runs["fvq", 0].indices[0] == 0


def test_a_seed_gives_one_run(runs):
    again = run_trajectory("fvq", **{**SETTINGS, "steps": 30}, seed=1, **BRIDGE)
    for field in ("z_e", "z_q", "indices"):
        assert np.array_equal(getattr(again, field), getattr(runs["fvq", 1], field)[:31])
    assert np.array_equal(again.target, runs["fvq", 1].target)


def path(points, codes=None, indices=None, target=(0.0, 0.0)):
    z_e = np.array(points, float)
    z_q = z_e if codes is None else np.array(codes, float)
    return Trajectory(z_e, z_q, np.zeros(len(z_e), int) if indices is None else np.array(indices), np.array(target))


def test_figures_of_a_straight_path():
    figures = describe(path([[0, 0], [1, 1], [3, 3]], target=(3, 7)))
    assert figures["path_ratio"] == pytest.approx(1)
    assert figures["turning"] == figures["turning_net"] == pytest.approx(0)
    assert figures["target_distance"] == pytest.approx(4)
    assert figures["code_switches"] == figures["distance_first"] == 0


@pytest.mark.parametrize("direction", [1, -1])
def test_figures_of_a_spiral(direction):
    angles = direction * np.linspace(0, 4 * math.pi, 121)
    shrinking = np.exp(-np.abs(angles) / 10)
    figures = describe(path(np.stack([shrinking * np.cos(angles), shrinking * np.sin(angles)], 1)))
    # Its step keeps one angle to the radius: it turns as far as the radius does.
    assert figures["turning_net"] == pytest.approx(720 - 6)
    assert figures["turning"] == pytest.approx(720 - 6)
    assert figures["path_ratio"] > 5


def test_figures_of_a_zigzag():
    figures = describe(path([[0, 0], [1, 1], [2, 0], [3, 1], [4, 0]]))
    assert figures["turning"] == pytest.approx(270)
    assert figures["turning_net"] == pytest.approx(90)
    assert figures["path_ratio"] == pytest.approx(math.sqrt(2))


def test_a_step_of_no_length_has_no_direction():
    figures = describe(path([[0, 0], [1, 0], [1, 1e-5], [1, 0], [2, 0]]))
    assert figures["turning"] == 0


def test_distances_by_thirds_and_switches():
    points = [[0, 0]] * 2 + [[1, 0]] * 4
    figures = describe(path(points, codes=[[3, 4], [3, 4], [1, 2], [1, 0], [2, 0], [1, 1]], indices=[4, 4, 5, 5, 4, 6]))
    assert figures["distance_first"] == 5
    assert figures["distance_middle"] == 1
    assert figures["distance_last"] == 1
    assert figures["code_switches"] == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vq", {"steps": 1}, "steps must be at least 2, not 1"),
        ("vq", {"learning_rate": 0.0}, r"learning_rate must be positive, not 0\.0"),
        ("vq", {"learning_rate": math.nan}, "learning_rate must be positive, not nan"),
        ("vq", {"learning_rate": 1e20}, "z holds NaN or infinite values"),
        ("vqs", {}, "unknown quantizer 'vqs'"),
        ("fvq", {"codebook_size": 60, "heads": 2}, "codebook_size 60 is not divisible"),
    ],
)
def test_refusals(name, changes, message):
    with pytest.raises(ValueError, match=message):
        run_trajectory(name, **{**SETTINGS, **changes}, seed=0)
