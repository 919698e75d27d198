"""Which samples a step sees, its random stream, its learning rate: functions of the step alone."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fvq.runtime import batches
from fvq.runtime.batches import batch_indices, steps_per_epoch, total_steps
from fvq.runtime.errors import UserError
from fvq.runtime.schedule import Schedule, learning_rate_factor
from fvq.runtime.seeds import generator, seed_all, seed_from

TABLE_6 = {"warmup": 0.1, "warmup_from": 0.005, "constant": 0.3, "final": 0.01}


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 60), epoch=st.integers(0, 3), seed=st.integers(0, 2**40))
def test_an_epoch_shows_each_sample_at_most_once(count, batch_size, epoch, seed):
    if batch_size > count:
        with pytest.raises(UserError, match=f"batch_size: {batch_size} samples .* there are {count}"):
            batch_indices(count, batch_size, 0, seed)
        return
    steps = steps_per_epoch(count, batch_size)
    seen = torch.stack([batch_indices(count, batch_size, epoch * steps + step, seed) for step in range(steps)])
    assert seen.shape == (count // batch_size, batch_size)
    assert seen.dtype == torch.int64
    assert len(seen.unique()) == seen.numel() > count - batch_size
    assert 0 <= seen.min() <= seen.max() < count


def test_epochs_and_seeds_differ():
    orders = [torch.cat([batch_indices(100, 10, 10 * epoch + i, 0) for i in range(10)]) for epoch in range(3)]
    orders += [torch.cat([batch_indices(100, 10, i, 1) for i in range(10)])]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert all(torch.equal(order.sort().values, torch.arange(100)) for order in orders)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_a_step_does_not_depend_on_what_was_asked_before(steps):
    batches._permutation.cache_clear()
    fresh = batch_indices(23, 4, steps[-1], 5).clone()
    batches._permutation.cache_clear()
    for step in steps:
        torch.rand(step)
        batch_indices(23, 4, step, 6)
        last = batch_indices(23, 4, step, 5)
    assert torch.equal(last, fresh)


def test_seeds_are_the_same_everywhere_and_for_ever():
    # Results of a study follow from these numbers; Python's own hash of a string differs from process to process.
    assert seed_from(0, "crops", 3) == 6_067_503_850_037_684_486
    assert torch.randperm(5, generator=generator(0, "epoch order", 0)).tolist() == [0, 3, 1, 4, 2]


def test_seeds_differ_by_every_part():
    parts = [(0,), (1,), ("0",), (0, 0), (0, "a", "b"), (0, "ab"), (0, "a\x1fb"), (0, "b", "a"), ()]
    seeds = [seed_from(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams():
    first, again, other = (torch.rand(4, generator=generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    seed_all(0, "a")
    assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [(2.0, None, 200), (0.5, None, 50), (None, 7, 7), (1e-9, None, 1), (0.004, None, 1)],
)
def test_length_in_epochs_or_steps(epochs, steps, expected):
    assert total_steps(epochs, steps, per_epoch=100) == expected


@pytest.mark.parametrize(("epochs", "steps"), [(None, None), (1.0, 1)])
def test_length_is_given_once(epochs, steps):
    with pytest.raises(UserError, match="one of epochs and steps"):
        total_steps(epochs, steps, per_epoch=100)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_the_schedule_of_table_6(shape):
    schedule = Schedule(**TABLE_6, shape=shape)
    factors = [learning_rate_factor(step, 1000, schedule) for step in range(1000)]
    assert factors[0] == 0.005
    assert factors[50] == pytest.approx((0.005 + 1) / 2)
    assert all(after > before for before, after in pairwise(factors[:101]))
    # 10 % warm-up, 30 % of the other 900 steps constant.
    assert factors[100:370] == [1.0] * 270
    assert factors[370] < 1
    assert all(after < before for before, after in pairwise(factors[369:]))
    assert factors[-1] == pytest.approx(0.01, abs=1e-12)
    # Half-way both shapes are half-way between 1 and 0.01.
    assert factors[370 + 314] == pytest.approx((1 + 0.01) / 2, abs=1e-3)
    quarter = {"linear": 1 - 0.99 / 4, "cosine": 0.01 + 0.99 * (1 + 0.5**0.5) / 2}[shape]
    assert factors[370 + 157] == pytest.approx(quarter, abs=2e-3)


def test_no_annealing_keeps_the_full_rate():
    schedule = Schedule(**TABLE_6, shape="none")
    factors = [learning_rate_factor(step, 1000, schedule) for step in range(1000)]
    assert factors[0] == 0.005
    assert factors[100:] == [1.0] * 900


@settings(max_examples=100, deadline=None)
@given(
    total=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    constant=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine", "none"]),
)
def test_factors_stay_in_range_for_any_length(total, warmup, constant, shape):
    schedule = Schedule(**{**TABLE_6, "warmup": warmup, "constant": constant}, shape=shape)
    factors = [learning_rate_factor(step, total, schedule) for step in range(total)]
    assert all(0.005 <= factor <= 1 for factor in factors)
    turn = factors.index(max(factors))
    assert all(after <= before for before, after in pairwise(factors[turn:]))


@pytest.mark.parametrize(
    "changes",
    [{"warmup": 1.0}, {"warmup": float("nan")}, {"constant": 1.1}, {"final": 0.0}, {"shape": "step"}, {"x": 1}],
)
def test_schedules_out_of_range(changes):
    with pytest.raises(ValidationError):
        Schedule(**{**TABLE_6, "shape": "linear", **changes})
