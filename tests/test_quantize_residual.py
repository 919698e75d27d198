"""Residual quantization against a dense float64 form; its shapes, freezing, refusals."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize import VQBridge, build_quantizer
from fvq.quantize.residual import ResidualQuantizer

SIZES = {"codebook_size": 64, "code_dim": 8}


def started(name="fvq", seed=0, depth=4, commitment_weight=0.25):
    """A quantizer in mid-training: every weight drawn, so that codes are spread and nothing is zero."""
    torch.manual_seed(seed)
    options = {"heads": 2} if name == "fvq" else {}
    inner = build_quantizer(name, **SIZES, commitment_weight=commitment_weight, **options)
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return ResidualQuantizer(inner, depth=depth)


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(quantizer, z, upstream):
    """Terms, indices, vectors and gradients by N×K distances and one-hot products, in float64."""
    inner = copy.deepcopy(quantizer.inner).double()
    z = z.detach().double().requires_grad_()
    mapped = inner.projector(inner.codebook)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 8)
    rest, total, indices = rows.detach(), 0, []
    terms = {"codebook": 0, "commitment": 0}
    for _ in range(quantizer.depth):
        indices.append((rest[:, None] - mapped[None]).square().sum(-1).argmin(1))
        code = torch.nn.functional.one_hot(indices[-1], 64).double() @ mapped
        rest, total = rest - code.detach(), total + code
        terms["codebook"] = terms["codebook"] + ((total - rows.detach()) ** 2).mean() / quantizer.depth
        terms["commitment"] = terms["commitment"] + 0.25 * ((rows - total.detach()) ** 2).mean() / quantizer.depth
    batch, _, height, width = z.shape
    vectors = total.reshape(batch, height, width, 8).permute(0, 3, 1, 2)
    (sum(terms.values()) + (z * upstream.double()).sum()).backward()
    indices = torch.stack(indices, 1).reshape(batch, height, width, -1)
    return terms, indices, vectors, z.grad, {f"inner.{name}": p.grad for name, p in inner.named_parameters()}


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("name", ["vq", "mlp5", "fvq"])
def test_equals_the_dense_form(name, depth):
    quantizer = started(name, depth=depth)
    z, upstream = images(3, 8, 4, 5).requires_grad_(), images(3, 8, 4, 5, seed=2)
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()
    terms, indices, vectors, z_gradient, gradients = dense(quantizer, z, upstream)
    close = {"rtol": 2e-4, "atol": 1e-6, "check_dtype": False}
    assert torch.equal(out.indices, indices)
    assert out.terms.keys() == terms.keys()
    for key, term in terms.items():
        torch.testing.assert_close(out.terms[key], term, **close)
    torch.testing.assert_close(out.loss, sum(terms.values()), **close)
    torch.testing.assert_close(out.quantized, vectors, rtol=1e-4, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(z.grad, z_gradient, **close)
    named = dict(quantizer.named_parameters())
    assert named.keys() == gradients.keys()
    for key, parameter in named.items():
        atol = 1e-4 * gradients[key].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-3, atol=atol, check_dtype=False)


def test_codes_by_hand():
    """Codes 8, 4, 2, 1 and 0 write an integer in binary."""
    quantizer = ResidualQuantizer(build_quantizer("vq", codebook_size=5, code_dim=1), depth=3)
    with torch.no_grad():
        quantizer.inner.codebook.copy_(torch.tensor([[8.0], [4.0], [2.0], [1.0], [0.0]]))
    out = quantizer(torch.tensor([13.0, 8.0]).reshape(2, 1, 1, 1))
    assert out.indices.tolist() == [[[[0, 1, 3]]], [[[0, 4, 4]]]]
    assert out.quantized.flatten().tolist() == [13.0, 8.0]
    # What is left of 13: 5, 1, 0.
    assert out.terms["codebook"].item() == pytest.approx((25 + 1 + 0) / 2 / 3)


def test_one_depth_is_the_inner_quantizer():
    quantizer, z = started(depth=1), images(2, 8, 3, 3)
    out, plain = quantizer(z), quantizer.inner(z)
    assert torch.equal(out.indices[..., 0], plain.indices)
    assert torch.equal(out.quantized, plain.quantized)
    assert torch.equal(out.loss, plain.loss)


def test_weights_of_the_terms_are_those_of_the_inner_quantizer():
    out = started("vq", commitment_weight=1.0)(images(2, 8, 3, 3))
    torch.testing.assert_close(out.terms["commitment"], out.terms["codebook"])


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 6), batch=st.integers(0, 3), side=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_vectors_of_indices_are_those_of_the_forward_pass(depth, batch, side, seed):
    quantizer, z = started("vq", depth=depth), images(batch, 8, side, side + 1, seed=seed)
    out = quantizer(z)
    assert out.indices.shape == (batch, side, side + 1, depth)
    assert out.indices.dtype == torch.int64
    assert out.quantized.dtype == torch.float32
    assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
    assert torch.equal(quantizer.indices_to_vectors(out.indices.int()), out.quantized)
    assert torch.equal(quantizer.quantize(z), out.indices)


def test_sequences_of_vectors():
    quantizer, z = started(), images(2, 8, 7)
    out = quantizer(z)
    assert out.indices.shape == (2, 7, 4)
    assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)


def test_gradient_passes_straight_through():
    quantizer, z = started(), images(1, 8, 2, 2).requires_grad_()
    (quantizer(z).quantized * (upstream := images(1, 8, 2, 2, seed=2))).sum().backward()
    assert torch.equal(z.grad, upstream)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_maps_the_codebook_once_a_pass(monkeypatch):
    calls, forward = [], VQBridge.forward
    monkeypatch.setattr(VQBridge, "forward", lambda self, codebook: calls.append(1) or forward(self, codebook))
    quantizer, z = started(), images(2, 8, 3, 3)
    for run in (quantizer, quantizer.quantize, lambda z: quantizer.indices_to_vectors(torch.zeros(1, 2, 2, 4).long())):
        calls.clear()
        run(z)
        assert len(calls) == 1


def test_keeps_nothing_of_the_size_of_tokens_times_codes():
    quantizer = ResidualQuantizer(build_quantizer("linear", codebook_size=1024, code_dim=4))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        quantizer(images(8, 4, 16, 16).requires_grad_())
    assert max(sizes) <= 2048 * 4


@pytest.mark.parametrize("name", ["vq", "fvq"])
def test_freezing_changes_no_bit(name):
    quantizer, z = started(name, depth=3), images(4, 8, 6, 6)
    frozen = quantizer.freeze()
    out, after = quantizer(z), frozen(z)
    assert isinstance(frozen, ResidualQuantizer)
    assert torch.equal(out.indices, after.indices)
    assert torch.equal(out.quantized, after.quantized)
    assert torch.equal(quantizer.quantize(z), frozen.quantize(z))
    assert torch.equal(quantizer.indices_to_vectors(out.indices), frozen.indices_to_vectors(out.indices))
    assert frozen.state_dict().keys() == {"inner.codebook"}
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    # Nothing is shared: training may go on.
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(1)
    assert torch.equal(frozen(z).indices, after.indices)


def test_state_dict_round_trip():
    quantizer, other, z = started(), started(seed=1), images(2, 8, 3, 3)
    assert not torch.equal(quantizer(z).quantized, other(z).quantized)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(z).quantized, other(z).quantized)


def test_autocast_changes_no_bit():
    quantizer, z = started(), images(2, 8, 4, 4)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, indices, low = quantizer(z), quantizer.quantize(z), quantizer(z.bfloat16())
        vectors = quantizer.indices_to_vectors(plain.indices)
    assert cast.quantized.dtype == low.quantized.dtype == cast.loss.dtype == torch.float32
    assert torch.equal(cast.indices, plain.indices)
    assert torch.equal(indices, plain.indices)
    assert torch.equal(cast.quantized, plain.quantized)
    assert torch.equal(vectors, plain.quantized)
    assert torch.equal(cast.loss, plain.loss)
    assert torch.equal(low.indices, quantizer(z.bfloat16().float()).indices)


def test_compiled():
    quantizer, compiled = started(depth=2), started(depth=2)
    # In place, as for a module of one's own.
    compiled.compile(backend="aot_eager")
    z, upstream = images(2, 8, 3, 3), images(2, 8, 3, 3, seed=2)
    for model in (quantizer, compiled):
        out = model(z)
        (out.loss + (out.quantized * upstream).sum()).backward()
    assert torch.equal(compiled(z).indices, quantizer(z).indices)
    assert torch.equal(compiled(z).quantized, quantizer(z).quantized)
    for (name, parameter), other in zip(quantizer.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_below_one(depth):
    with pytest.raises(ValueError, match=f"depth must be at least 1, not {depth}"):
        started(depth=depth)


def test_codes_that_only_tell_directions_do_not_compose():
    with pytest.raises(ValueError, match="NormalizedQuantizer cannot be composed: residuals need nearest codes"):
        ResidualQuantizer(build_quantizer("vq-l2", **SIZES))


def test_a_composed_quantizer_does_not_compose():
    with pytest.raises(ValueError, match="ResidualQuantizer cannot be composed"):
        ResidualQuantizer(started())


@pytest.mark.parametrize("index", [-1, 64])
def test_index_outside_the_codebook(index):
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 64\)"):
        started().indices_to_vectors(torch.tensor([[[[0, 1, 2, index]]]]))


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 3, 5), (4,)])
def test_another_number_of_codes(shape):
    with pytest.raises(ValueError, match=r"must be \(B, …, 4\)"):
        started().indices_to_vectors(torch.zeros(shape, dtype=torch.int64))


def test_indices_that_are_no_integers():
    with pytest.raises(ValueError, match="indices must be int64, not float32"):
        started().indices_to_vectors(torch.zeros(1, 2, 2, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_in_z_is_refused(value):
    with pytest.raises(ValueError, match="z holds NaN or infinite values"):
        started()(torch.full((1, 8, 1, 1), value))


def test_z_of_another_dimension():
    with pytest.raises(ValueError, match=r"z \(1, 7, 2, 2\) must be \(B, 8, …\)"):
        started()(torch.zeros(1, 7, 2, 2))
