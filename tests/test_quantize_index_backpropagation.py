"""Index backpropagation against its dense float64 form with an N×K one-hot; its search; its memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fvq.quantize import index_backpropagation
from fvq.quantize.index_backpropagation import IndexBackpropagationQuantizer, largest_product


def started(size=40, dim=6, seed=0, **changes):
    torch.manual_seed(seed)
    return IndexBackpropagationQuantizer(size, dim, **changes)


def features(seed=1, shape=(3, 6, 4, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_tiles(monkeypatch):
    """Seven tokens to a tile, where they were thousands."""
    monkeypatch.setattr(index_backpropagation, "_LOGITS_BYTES", 4 * 40 * 7)


def dense(codebook, z, upstream, *, temperature=0.01, weights=(1.0, 0.25, 0.05)):
    """Terms, value and gradients by Ind = one-hot - sg p + p (Shi et al. 2024, §3.2), in float64."""
    codebook, z = (values.detach().double().requires_grad_() for values in (codebook, z))
    rows = z.movedim(1, -1).reshape(-1, z.shape[1])
    logits = rows @ codebook.T
    p = logits.softmax(1)
    hard = F.one_hot(logits.argmax(1), len(codebook)).double()
    quantized = (hard - p.detach() + p) @ codebook
    chosen = hard @ codebook
    log_p = (logits / temperature).log_softmax(1)
    mean_p = log_p.exp().mean(0)
    terms = {
        "quantization": ((quantized - rows) ** 2).mean(),
        "commitment": weights[0] * ((chosen.detach() - rows) ** 2).mean(),
        "codebook": weights[1] * ((chosen - rows.detach()) ** 2).mean(),
        "entropy": weights[2] * (-(log_p.exp() * log_p).sum(1).mean() + (mean_p * (mean_p + 1e-200).log()).sum()),
    }
    images = quantized.reshape(z.movedim(1, -1).shape).movedim(-1, 1)
    (sum(terms.values()) + (images * upstream.double()).sum()).backward()
    return terms, images, logits.argmax(1), z.grad, codebook.grad


def assert_close(actual, expected):
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * scale, check_dtype=False)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_equals_the_dense_form(small_tiles, temperature):
    quantizer, upstream = started(temperature=temperature, entropy_weight=0.5), features(2)
    z = features().requires_grad_()
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()
    terms, images, indices, z_gradient, codebook_gradient = dense(
        quantizer.codebook, z, upstream, temperature=temperature, weights=(1.0, 0.25, 0.5)
    )
    assert out.terms.keys() == terms.keys()
    for name, value in terms.items():
        assert_close(out.terms[name], value)
    assert_close(out.loss, sum(terms.values()))
    assert torch.equal(out.indices.flatten(), indices)
    assert_close(out.quantized, images)
    assert_close(z.grad, z_gradient)
    assert_close(quantizer.codebook.grad, codebook_gradient)


def test_the_value_that_is_decoded_moves_every_code():
    quantizer = started()
    out = quantizer(features())
    (out.quantized * features(2)).sum().backward()
    unused = torch.bincount(out.indices.flatten(), minlength=40) == 0
    assert unused.any()
    assert (quantizer.codebook.grad[unused].norm(dim=1) > 0).all()


def test_weights_and_shapes():
    z = features()
    out = started()(z)
    assert out.quantized.shape == z.shape
    assert out.quantized.is_contiguous()
    assert out.indices.shape == (3, 4, 5)
    assert out.indices.dtype == torch.int64
    distance = F.mse_loss(out.quantized, z)
    torch.testing.assert_close(out.terms["quantization"], distance)
    torch.testing.assert_close(out.terms["commitment"], distance)
    torch.testing.assert_close(out.terms["codebook"], 0.25 * distance)
    changed = started(commitment_weight=2.0, codebook_weight=3.0, entropy_weight=0.1)(z)
    torch.testing.assert_close(changed.terms["commitment"], 2 * distance)
    torch.testing.assert_close(changed.terms["codebook"], 3 * distance)
    torch.testing.assert_close(changed.terms["entropy"], 2 * out.terms["entropy"])
    assert "entropy" not in started(entropy_weight=0.0)(z).terms


def test_entropy_prefers_certain_tokens_and_many_codes():
    codebook = 2 * torch.eye(4)
    quantizer = started(4, 4, entropy_weight=1.0)
    quantizer.codebook.data.copy_(codebook)
    spread, alone, unsure = codebook, codebook[:1].expand(4, 4), torch.zeros(4, 4)
    values = [quantizer(z[:, :, None]).terms["entropy"].item() for z in (spread, alone, unsure)]
    assert values == pytest.approx([-math.log(4), 0, 0], abs=1e-5)


def test_long_codes_win_by_their_inner_product():
    quantizer = started(2, 2)
    quantizer.codebook.data.copy_(torch.tensor([[1.0, 0.0], [5.0, 5.0]]))
    z = torch.tensor([[1.0, 0.0]])[:, :, None]
    assert quantizer(z).indices.item() == quantizer.quantize(z).item() == 1


def test_codes_start_normal():
    codebook = started(4000, 16).codebook
    assert codebook.mean().abs() < 0.02
    assert codebook.std().item() == pytest.approx(1, rel=0.02)


def test_encoding_and_decoding_agree_with_the_forward_pass(small_tiles):
    quantizer, z = started(), features()
    out = quantizer(z)
    assert torch.equal(quantizer.quantize(z), out.indices)
    assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
    # One image at a time as well.
    assert torch.equal(torch.cat([quantizer.quantize(image) for image in z.split(1)]), out.indices)


def test_freezing_changes_no_index_and_no_vector():
    quantizer, z = started(), features()
    out, frozen = quantizer(z), quantizer.freeze()
    after = frozen(z)
    assert isinstance(frozen, IndexBackpropagationQuantizer)
    assert torch.equal(after.indices, out.indices)
    assert torch.equal(frozen.quantize(z), out.indices)
    assert torch.equal(after.quantized, out.quantized)
    assert after.terms.keys() == {"quantization", "commitment", "codebook"}
    assert not frozen.codebook.requires_grad
    assert not frozen.training
    # Nothing is shared: training may go on.
    assert quantizer.codebook.requires_grad
    with torch.no_grad():
        quantizer.codebook.neg_()
    assert torch.equal(frozen(z).indices, out.indices)


def test_state_dict_round_trip():
    quantizer, other, z = started(), started(seed=1), features()
    assert quantizer.state_dict().keys() == {"codebook"}
    assert not torch.equal(other(z).quantized, quantizer(z).quantized)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(z).quantized, quantizer(z).quantized)


def test_autocast_and_compile_change_nothing(small_tiles):
    quantizers, inputs = [started() for _ in range(3)], [features().requires_grad_() for _ in range(3)]
    plain = quantizers[0](inputs[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizers[1](inputs[1])
        assert torch.equal(quantizers[1].quantize(inputs[1]), plain.indices)
    compiled = torch.compile(quantizers[2], backend="aot_eager")(inputs[2])
    assert torch.equal(cast.loss, plain.loss)
    torch.testing.assert_close(compiled.loss, plain.loss)
    for out in (plain, cast, compiled):
        assert out.quantized.dtype == torch.float32
        assert torch.equal(out.indices, plain.indices)
        assert torch.equal(out.quantized, plain.quantized)
        # Tiles are computed again without autocast, too.
        (out.loss + (out.quantized * features(2)).sum()).backward()
    for quantizer, z in zip(quantizers, inputs, strict=True):
        torch.testing.assert_close(z.grad, inputs[0].grad)
        torch.testing.assert_close(quantizer.codebook.grad, quantizers[0].codebook.grad)


class LargestTensor(TorchFunctionMode):
    """The most elements of any tensor that an operation gives."""

    elements = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_of_tokens_times_codes_is_made_or_kept(monkeypatch):
    """Not in the forward pass, not between the passes, not when the backward pass computes tiles again."""
    monkeypatch.setattr(index_backpropagation, "_LOGITS_BYTES", 4 * 500 * 16)
    monkeypatch.setattr(index_backpropagation, "_TOKENS", 16)
    quantizer, kept = started(500, 2), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with LargestTensor() as mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = quantizer(features(shape=(4, 2, 16, 16)).requires_grad_())
        (out.loss + out.quantized.square().sum()).backward()
    assert quantizer.codebook.grad.abs().min() > 0
    assert 500 * 16 <= mode.elements < 1024 * 500 / 32
    assert sum(kept.values()) < 1024 * 500 / 8


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 40),
    codes=st.one_of(st.integers(1, 50), st.sampled_from([1023, 1024, 1025, 2049])),
    dim=st.integers(1, 9),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
def test_search_agrees_with_brute_force(tokens, codes, dim, scale, seed):
    random = torch.Generator().manual_seed(seed)
    z, codebook = torch.randn(tokens, dim, generator=random), torch.randn(codes, dim, generator=random) * scale
    indices = largest_product(z, codebook)
    products = z.double() @ codebook.double().T
    rounding = 1e-13 * z.double().norm(dim=1) * codebook.double().norm(dim=1).max()
    assert indices.dtype == torch.int64
    assert (products.gather(1, indices[:, None])[:, 0] >= products.amax(1) - rounding).all()


def test_codes_whose_order_float32_products_get_wrong():
    random = torch.Generator().manual_seed(0)
    z = torch.randn(50, 64, generator=random)
    codebook = torch.randn(64, generator=random) + 1e-6 * torch.randn(2100, 64, generator=random)
    nearest = (z.double() @ codebook.double().T).argmax(1)
    assert not torch.equal((z @ codebook.T).argmax(1) // 1024, nearest // 1024)
    assert torch.equal(largest_product(z, codebook), nearest)


@settings(max_examples=40, deadline=None)
@given(codes=st.sampled_from([1, 2, 30, 1023, 1024, 1025]), copies=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_ties_go_to_the_lowest_index(codes, copies, seed):
    # Small integers: every product is exact.
    random = torch.Generator().manual_seed(seed)
    codebook = torch.randint(-2, 3, (codes, 3), generator=random).float().repeat(copies, 1)
    z = torch.randint(-4, 5, (20, 3), generator=random).float()
    z[0] = 0
    products = z @ codebook.T
    lowest = (products == products.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(largest_product(z, codebook), lowest)


def test_products_that_overflow_float32():
    codebook = torch.tensor([[1e38, 0.0], [2e38, 0.0], [1.5e38, 0.0]])
    assert largest_product(torch.tensor([[1e38, 0.0], [-1e38, 0.0]]), codebook).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "codebook_size must be at least 1, not 0"),
        ({"dim": -1}, "code_dim must be at least 1, not -1"),
        ({"temperature": 0.0}, r"temperature must be above 0, not 0\.0"),
    ],
)
def test_options_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        started(**changes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value):
    z = features()
    z[0, 0, 0, 0] = value
    quantizer = started()
    for call in (quantizer, quantizer.quantize):
        with pytest.raises(ValueError, match="z holds NaN or infinite values"):
            call(z)
    quantizer.codebook.data[3, 1] = value
    with pytest.raises(ValueError, match="the codebook holds NaN or infinite values"):
        quantizer(features())


def test_other_shapes_and_indices():
    quantizer = started()
    with pytest.raises(ValueError, match=r"z \(1, 5, 2, 2\) must be \(B, 6, …\)"):
        quantizer(torch.zeros(1, 5, 2, 2))
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 40\)"):
        quantizer.indices_to_vectors(torch.tensor([[[40]]]))
