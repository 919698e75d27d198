"""LFQ against its dense float64 form with all 2^d codes; bits and their order; factors."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fvq.quantize.lookup_free import LookupFreeQuantizer, default_factors, join_indices, split_indices


def started(bits=6, **changes):
    return LookupFreeQuantizer(2**bits, bits, **changes)


def features(seed=1, shape=(3, 6, 4, 5), scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def all_codes(bits):
    """The codes (2^bits, bits) in the order of the indices: channel 0 changes fastest."""
    return torch.tensor([code[::-1] for code in itertools.product((-1.0, 1.0), repeat=bits)], dtype=torch.float64)


def dense_entropy(rows, temperature, diversity_weight, factors):
    """Sample less batch entropy by the softmax over all codes, the batch entropies by group of bits."""

    def entropies(p):
        return -(p * (p + 1e-200).log()).sum(-1)

    sample = entropies((2 * rows @ all_codes(rows.shape[1]).T / temperature).softmax(1)).mean()
    groups = rows.split(factors, dim=1)
    means = [(2 * group @ all_codes(group.shape[1]).T / temperature).softmax(1).mean(0) for group in groups]
    return sample - diversity_weight * sum(entropies(mean) for mean in means)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 9),
    temperature=st.sampled_from([0.01, 0.3, 5.0]),
    scale=st.sampled_from([0.003, 0.1, 1.0]),
    diversity_weight=st.sampled_from([0.0, 1.0, 2.5]),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_equals_the_dense_form(bits, temperature, scale, diversity_weight, groups, seed):
    factors = [bits - sum(bits // groups for _ in range(groups - 1)), *[bits // groups] * (groups - 1)]
    factors = [count for count in factors if count]
    quantizer = started(bits, temperature=temperature, diversity_weight=diversity_weight, factors=factors)
    z, upstream = features(seed, (2, bits, 2, 3), scale).requires_grad_(), features(seed + 1, (2, bits, 2, 3))
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()

    exact = z.detach().double().requires_grad_()
    rows = exact.movedim(1, -1).reshape(-1, bits)
    nearest = torch.cdist(rows.detach(), all_codes(bits)).argmin(1)
    terms = {
        "commitment": 0.25 * F.mse_loss(rows, all_codes(bits)[nearest]),
        "entropy": 0.1 * dense_entropy(rows, temperature, diversity_weight, factors),
    }
    (sum(terms.values()) + (exact * upstream.double()).sum()).backward()

    assert torch.equal(out.indices.flatten(), nearest)
    assert out.terms.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(out.terms[name].double(), value, rtol=1e-4, atol=1e-5)
    largest = exact.grad.abs().max().item()
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-3, atol=1e-4 * largest)


def test_the_entropy_of_2_18_codes_is_that_of_all_codes():
    quantizer = started(18, entropy_weight=1.0, temperature=1.0)
    z = features(shape=(4, 18, 1, 1))
    torch.testing.assert_close(
        quantizer(z).terms["entropy"].double(),
        dense_entropy(z[:, :, 0, 0].double(), 1.0, 1.0, (18,)),
        rtol=1e-4,
        atol=0,
    )


def test_factors_bound_the_exact_batch_entropy_from_above():
    z = features(scale=0.01)
    exact = started()(z).terms["entropy"]
    factored = [started(factors=factors)(z).terms["entropy"] for factors in ((3, 3), (1,) * 6)]
    assert exact > factored[0] > factored[1]


@pytest.mark.parametrize(
    ("bits", "factors"), [(1, (1,)), (10, (10,)), (18, (18,)), (19, (10, 9)), (36, (18, 18)), (40, (14, 13, 13))]
)
def test_default_factors(bits, factors):
    assert default_factors(bits) == started(bits).factors == factors


def test_entropy_prefers_certain_tokens_and_many_codes():
    quantizer = started(3, entropy_weight=1.0)
    spread = all_codes(3).float()
    values = [quantizer(z[:, :, None]).terms["entropy"].item() for z in (spread, spread[:1], 0 * spread)]
    assert values == pytest.approx([-math.log(8), 0, 0], abs=1e-5)


def test_gradients_stay_finite_far_from_the_boundary():
    z = torch.tensor([[1e-30, -50.0, 3e4], [0.0, 7.0, -1e15]])[:, :, None].requires_grad_()
    out = started(3, entropy_weight=1.0, commitment_weight=0.0)(z)
    out.loss.backward()
    assert out.loss.isfinite()
    assert z.grad.isfinite().all()


def test_bit_i_is_channel_i_and_zero_is_negative():
    z = torch.tensor([[[3.0]], [[-1.0]], [[0.0]], [[0.1]]]).movedim(0, 1)
    quantizer = started(4)
    out = quantizer(z)
    assert out.indices.item() == 0b1001
    assert out.quantized.flatten().tolist() == [1, -1, -1, 1]


@pytest.mark.parametrize("bits", [1, 5, 18, 40])
def test_encoding_and_decoding_agree_with_the_forward_pass(bits):
    quantizer, z = started(bits, entropy_weight=0.0), features(shape=(2, bits, 3, 5))
    out = quantizer(z)
    assert out.quantized.shape == z.shape
    assert out.indices.shape == (2, 3, 5)
    assert out.indices.dtype == torch.int64
    assert torch.equal(out.quantized, z.sign())
    assert torch.equal(quantizer.quantize(z), out.indices)
    assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
    assert torch.equal(quantizer.quantize(out.quantized), out.indices)


def test_weights():
    z = features()
    out = started()(z)
    changed = started(commitment_weight=1.0, entropy_weight=0.2)(z)
    torch.testing.assert_close(out.terms["commitment"], 0.25 * F.mse_loss(z, z.sign()))
    torch.testing.assert_close(changed.terms["commitment"], 4 * out.terms["commitment"])
    torch.testing.assert_close(changed.terms["entropy"], 2 * out.terms["entropy"])


def test_nothing_to_learn_or_save():
    quantizer = started()
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()


def test_freezing_changes_no_index_and_no_vector():
    quantizer, z = started(), features()
    out, frozen = quantizer(z), quantizer.freeze()
    after = frozen(z)
    assert isinstance(frozen, LookupFreeQuantizer)
    assert torch.equal(after.indices, out.indices)
    assert torch.equal(frozen.quantize(z), out.indices)
    assert torch.equal(after.quantized, out.quantized)
    assert after.terms.keys() == {"commitment"}
    assert not frozen.training
    assert quantizer.training
    assert quantizer(z).terms.keys() == {"commitment", "entropy"}


def test_autocast_and_compile_change_nothing():
    # What bfloat16 would round away decides signs and entropies.
    quantizer, inputs = started(), [features(scale=0.01).requires_grad_() for _ in range(3)]
    plain = quantizer(inputs[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(inputs[1])
    compiled = torch.compile(quantizer, backend="eager")(inputs[2])
    for out in (plain, cast, compiled):
        (out.loss + out.quantized.sum()).backward()
    gradient, cast_gradient, compiled_gradient = (z.grad for z in inputs)
    assert torch.equal(cast.loss, plain.loss)
    assert torch.equal(cast_gradient, gradient)
    torch.testing.assert_close(compiled.loss, plain.loss)
    torch.testing.assert_close(compiled_gradient, gradient)
    for out in (cast, compiled):
        assert out.quantized.dtype == torch.float32
        assert torch.equal(out.indices, plain.indices)
        assert torch.equal(out.quantized, plain.quantized)


@given(
    bits=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    numbers=st.lists(st.integers(0, 2**60), min_size=1, max_size=5),
)
def test_split_indices_join_again(bits, numbers):
    indices = torch.tensor(numbers) % 2 ** sum(bits)
    parts = split_indices(indices, bits)
    assert all(part.min() >= 0 and part.max() < 2**count for part, count in zip(parts, bits, strict=True))
    assert torch.equal(join_indices(parts, bits), indices)


def test_parts_are_groups_of_channels():
    z = features(shape=(2, 18, 3, 3))
    first, second = split_indices(started(18, entropy_weight=0.0).quantize(z), (6, 12))
    assert torch.equal(first, started(6).quantize(z[:, :6]))
    assert torch.equal(second, started(12).quantize(z[:, 6:]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_indices(torch.tensor([0, 64]), (2, 4)), r"indices must lie in \[0, 64\) for 6 bits"),
        (lambda: split_indices(torch.tensor([-1]), (2, 4)), r"indices must lie in \[0, 64\)"),
        (lambda: split_indices(torch.tensor([1]), ()), r"bits \(\) must be one or more counts of at least 1"),
        (lambda: split_indices(torch.tensor([1]), (3, 0)), r"bits \(3, 0\) must be"),
        (lambda: join_indices([torch.tensor([1])], (2, 4)), r"1 parts do not fit bits \(2, 4\)"),
        (lambda: join_indices([torch.tensor([4]), torch.tensor([1])], (2, 4)), r"part must lie in \[0, 4\) for 2 bits"),
    ],
)
def test_indices_that_do_not_split_or_join(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("size", "dim", "options", "message"),
    [
        (1000, 10, {}, r"1000 is not a power of two; .* work are 512 \(code_dim 9\) and 1024 \(code_dim 10\)"),
        (1024, 256, {}, "codebook_size 1024 needs code_dim 10, not 256"),
        (0, 1, {}, "codebook_size must be at least 1, not 0"),
        (2, 0, {}, "code_dim must be at least 1, not 0"),
        (64, 6, {"factors": (3, 4)}, r"factors \(3, 4\) must be positive and add up to code_dim 6"),
        (64, 6, {"factors": (7, -1)}, r"factors \(7, -1\) must be positive"),
        (64, 6, {"factors": ()}, r"factors \(\) must be positive"),
        (64, 6, {"temperature": 0}, "temperature must be above 0, not 0"),
    ],
)
def test_options_out_of_range(size, dim, options, message):
    with pytest.raises(ValueError, match=message):
        LookupFreeQuantizer(size, dim, **options)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_values_that_are_not_finite(value):
    z = features()
    z[0, 0, 0, 0] = value
    quantizer = started()
    for call in (quantizer, quantizer.quantize):
        with pytest.raises(ValueError, match="z holds NaN or infinite values"):
            call(z)
