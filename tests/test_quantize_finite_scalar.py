"""FSQ against its formula in float64; even and odd levels; the order of indices; refusals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize.finite_scalar import FiniteScalarQuantizer

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


def started(*levels):
    return FiniteScalarQuantizer(math.prod(levels), len(levels), levels=levels)


def features(channels, seed=0, scale=3.0):
    return scale * torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(seed))


def bounded(z, levels):
    """The bound (Mentzer et al. 2023, §3.1) channel by channel, in float64."""
    channels = []
    for channel, count in zip(z.unbind(1), levels, strict=True):
        half = (count - 1) * 1.001 / 2
        offset = 0.5 if count % 2 == 0 else 0.0
        channels.append(torch.tanh(channel + math.atanh(offset / half)) * half - offset)
    return torch.stack(channels, 1)


@settings(max_examples=40, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 2**32))
def test_equals_the_formula(levels, seed):
    quantizer, z = started(*levels), features(len(levels), seed).requires_grad_()
    upstream = features(len(levels), seed + 1)
    out = quantizer(z)
    (out.quantized * upstream).sum().backward()
    exact = z.detach().double().requires_grad_()
    steps = torch.tensor([count // 2 for count in levels])[:, None, None]
    values = bounded(exact, levels)
    (values / steps * upstream.double()).sum().backward()
    clear = (values.detach() - values.detach().floor() - 0.5).abs() > 1e-5
    codes = values.detach().round() / steps
    torch.testing.assert_close(out.quantized[clear], codes[clear], check_dtype=False)
    # The gradient of the bounded value: rounding is skipped, the tanh is not.
    torch.testing.assert_close(z.grad, exact.grad, rtol=1e-3, atol=1e-5, check_dtype=False)


@settings(max_examples=40, deadline=None)
@given(levels=LEVELS, seed=st.integers(0, 2**32))
def test_encoding_and_decoding_agree_with_the_forward_pass(levels, seed):
    quantizer, z = started(*levels), features(len(levels), seed)
    out = quantizer(z)
    assert out.quantized.shape == z.shape
    assert out.quantized.dtype == torch.float32
    assert out.indices.shape == (2, 3, 5)
    assert out.indices.dtype == torch.int64
    assert torch.equal(quantizer.quantize(z), out.indices)
    assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 15, 16, 999, 1000])
def test_every_level_and_no_other_is_reached(count):
    z = torch.linspace(-12, 12, 20001)[None, None]
    out = started(count)(z)
    assert out.indices.unique().tolist() == list(range(count))
    assert (out.indices.diff() >= 0).all()
    lowest = -(count // 2)
    expected = torch.arange(lowest, lowest + count).float() / (count // 2)
    assert torch.equal(out.quantized.unique(), expected)
    assert started(count)(torch.tensor([[[-1e30, 1e30]]])).indices.tolist() == [[0, count - 1]]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9])
def test_zero_is_a_code_and_is_kept(count):
    assert started(count)(torch.zeros(1, 1, 1)).quantized.item() == 0


def test_the_first_channel_is_the_lowest_digit():
    quantizer = started(4, 3, 5)
    codes = [
        ((first - 2) / 2, (second - 1) / 1, (third - 2) / 2)
        for third, second, first in itertools.product(range(5), range(3), range(4))
    ]
    vectors = quantizer.indices_to_vectors(torch.arange(60)[None])
    assert vectors[0].T.tolist() == [list(code) for code in codes]


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        (240, (8, 6, 5)),
        (1000, (8, 5, 5, 5)),
        (4375, (7, 5, 5, 5, 5)),
        (15360, (8, 8, 8, 6, 5)),
        (64000, (8, 8, 8, 5, 5, 5)),
    ],
)
def test_recommended_levels(size, levels):
    quantizer = FiniteScalarQuantizer(size, len(levels))
    z = features(len(levels))
    assert quantizer.levels == levels
    assert torch.equal(quantizer(z).indices, started(*levels)(z).indices)


def test_no_loss_and_nothing_to_learn_or_save():
    quantizer, z = started(8, 5), features(2)
    out = quantizer(z)
    assert out.terms == {}
    assert out.loss.shape == ()
    assert out.loss == 0
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()


def test_freezing_changes_nothing():
    quantizer, z = started(8, 5), features(2)
    frozen = quantizer.freeze()
    assert isinstance(frozen, FiniteScalarQuantizer)
    assert torch.equal(frozen(z).indices, quantizer(z).indices)
    assert torch.equal(frozen(z).quantized, quantizer(z).quantized)
    assert torch.equal(frozen.quantize(z), quantizer(z).indices)
    assert not frozen.training
    assert quantizer.training


def test_a_module_cast_to_bfloat16_keeps_its_levels():
    z = features(2)
    assert torch.equal(started(999, 500).bfloat16()(z).indices, started(999, 500)(z).indices)


def test_autocast_and_compile_change_nothing():
    # Steps that bfloat16 cannot tell apart.
    quantizer, inputs = started(999, 500), [features(2).requires_grad_() for _ in range(3)]
    plain = quantizer(inputs[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(inputs[1])
    compiled = torch.compile(quantizer, backend="eager")(inputs[2])
    for out in (plain, cast, compiled):
        out.quantized.square().sum().backward()
    gradient, cast_gradient, compiled_gradient = (z.grad for z in inputs)
    assert torch.equal(cast_gradient, gradient)
    torch.testing.assert_close(compiled_gradient, gradient)
    for out in (cast, compiled):
        assert out.quantized.dtype == torch.float32
        assert torch.equal(out.indices, plain.indices)
        assert torch.equal(out.quantized, plain.quantized)


@pytest.mark.parametrize(
    ("size", "dim", "levels", "message"),
    [
        (
            1024,
            4,
            None,
            r"1024 has no default levels; give levels, or take one of 240 \(code_dim 3\), 1000 \(code_dim 4",
        ),
        (1000, 256, None, r"levels \(8, 5, 5, 5\) need code_dim 4, not 256"),
        (41, 2, (8, 5), r"levels \(8, 5\) need codebook_size 40, not 41"),
        (40, 3, (8, 5), r"levels \(8, 5\) need code_dim 2, not 3"),
        (8, 2, (8, 1), r"levels \(8, 1\) must each lie between 2 and 1000"),
        (1001, 1, (1001,), r"levels \(1001,\) must each lie between 2 and 1000"),
        (0, 1, (2,), "codebook_size must be at least 1, not 0"),
        (2, -1, (2,), "code_dim must be at least 1, not -1"),
    ],
)
def test_options_out_of_range(size, dim, levels, message):
    with pytest.raises(ValueError, match=message):
        FiniteScalarQuantizer(size, dim, levels=levels)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value):
    z = features(2)
    z[0, 0, 0, 0] = value
    quantizer = started(8, 5)
    for call in (quantizer, quantizer.quantize):
        with pytest.raises(ValueError, match="z holds NaN or infinite values"):
            call(z)
