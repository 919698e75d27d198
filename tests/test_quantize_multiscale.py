"""Multi-scale quantization against a dense float64 form; its scales, freezing, refusals."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize import VQBridge, build_quantizer
from fvq.quantize.multiscale import MultiscaleQuantizer, shared_ticks

SIZES = {"codebook_size": 64, "code_dim": 8}


def started(name="fvq", seed=0, **options):
    """A quantizer in mid-training: every weight drawn, so that codes are spread and nothing is zero."""
    torch.manual_seed(seed)
    inner = build_quantizer(name, **SIZES, **({"heads": 2} if name == "fvq" else {}))
    quantizer = MultiscaleQuantizer(inner, **{"scales": (1, 2, 4, 5, 7), **options})
    for key, parameter in quantizer.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if key.startswith("inner") else 0.1)
    return quantizer


def images(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def averages(side, small):
    """(small, side): each cell's mean over the pixels that it touches."""
    weights = torch.zeros(small, side, dtype=torch.float64)
    for cell in range(small):
        pixels = slice(cell * side // small, -(-(cell + 1) * side // small))
        weights[cell, pixels] = 1 / (pixels.stop - pixels.start)
    return weights


def cubics(small, side):
    """(side, small): cubic convolution with a = -0.75 between the centres of cells, edges repeated."""

    def kernel(x):
        x = abs(x)
        return 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)

    weights = torch.zeros(side, small, dtype=torch.float64)
    for pixel in range(side):
        centre = (pixel + 0.5) * small / side - 0.5
        for cell in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[pixel, min(max(cell, 0), small - 1)] += kernel(centre - cell)
    return weights


def convolution(x, layer):
    """3×3 convolution with zeros around, as nine shifted products."""
    side = x.shape[-1]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    total = layer.bias[:, None, None]
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + side, j : j + side]
            total = total + torch.einsum("oc,bchw->bohw", layer.weight[:, :, i, j], shifted)
    return total


def dense(quantizer, phi_of_scale, z, upstream):
    """Terms, indices, vectors and gradients by N×K distances and one-hot products, in float64."""
    weights = copy.deepcopy(quantizer).double()
    z = z.detach().double().requires_grad_()
    mapped = weights.inner.projector(weights.inner.codebook)
    rest, total, indices = z.detach(), 0, []
    terms = {"codebook": 0, "commitment": 0}
    side = z.shape[-1]
    for scale, phi in zip(quantizer.scales, phi_of_scale, strict=True):
        down, up = averages(side, scale), cubics(scale, side)
        rows = torch.einsum("ih,jw,bchw->bijc", down, down, rest).reshape(-1, 8)
        nearest = (rows[:, None] - mapped[None]).square().sum(-1).argmin(1)
        codes = (torch.nn.functional.one_hot(nearest, 64).double() @ mapped).reshape(-1, scale, scale, 8)
        large = torch.einsum("hi,wj,bijc->bchw", up, up, codes)
        share = quantizer.phi_weight
        step = (1 - share) * large + share * convolution(large, weights.phi[phi])
        rest, total = rest - step.detach(), total + step
        indices.append(nearest.reshape(len(z), -1))
        terms["codebook"] = terms["codebook"] + ((total - z.detach()) ** 2).mean() / len(quantizer.scales)
        terms["commitment"] = terms["commitment"] + 0.25 * ((z - total.detach()) ** 2).mean() / len(quantizer.scales)
    (sum(terms.values()) + (z * upstream.double()).sum()).backward()
    return terms, torch.cat(indices, 1), total, z.grad, {name: p.grad for name, p in weights.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options", "phi_of_scale"),
    [
        ("vq", {"scales": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)}, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        ("mlp5", {"scales": (2, 5), "phi_weight": 0.3}, [0, 1]),
        ("fvq", {"scales": (1, 2, 4, 5, 7)}, [0, 1, 2, 2, 3]),
        ("fvq", {"scales": (1, 3, 4), "shared_phi": 1}, [0, 0, 0]),
        ("fvq", {"scales": (3,)}, [0]),
    ],
)
def test_equals_the_dense_form(name, options, phi_of_scale):
    quantizer, side = started(name, **options), options["scales"][-1]
    z, upstream = images(2, 8, side, side).requires_grad_(), images(2, 8, side, side, seed=2)
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()
    terms, indices, vectors, z_gradient, gradients = dense(quantizer, phi_of_scale, z, upstream)
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


def test_default_scales_give_680_tokens():
    quantizer = MultiscaleQuantizer(build_quantizer("vq", **SIZES))
    out = quantizer(images(2, 8, 16, 16))
    assert out.quantized.shape == (2, 8, 16, 16)
    assert out.quantized.dtype == torch.float32
    assert out.indices.shape == (2, 680)
    assert out.indices.dtype == torch.int64
    assert len(quantizer.phi) == 4
    assert [len(one[0]) for one in quantizer.indices_to_scales(out.indices)] == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]


def test_tokens_are_in_the_order_of_scales_and_rows():
    first, second = started(scales=(1, 3)).indices_to_scales(torch.arange(20).reshape(2, 10))
    assert first.tolist() == [[[0]], [[10]]]
    assert second.tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[11, 12, 13], [14, 15, 16], [17, 18, 19]]]


def test_a_code_appears_at_its_place():
    quantizer = started("vq", scales=(2,), phi_weight=0.0)
    vectors = quantizer.indices_to_vectors(torch.tensor([[7, 8, 9, 10]]))
    assert torch.equal(vectors[0].flatten(1).T, quantizer.inner.codebook[7:11])


@settings(max_examples=60, deadline=None)
@given(scales=st.integers(2, 24), data=st.data())
def test_convolutions_are_shared_by_neighbouring_scales(scales, data):
    count = data.draw(st.integers(1, scales))
    ticks = shared_ticks(scales, count)
    assert ticks == sorted(ticks)
    assert set(ticks) == set(range(count))
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    places = np.linspace(edge, 1 - edge, count) if count > 1 else np.array([0.5])
    distances = np.abs(places - np.linspace(0, 1, scales)[:, None])
    assert np.allclose(distances[np.arange(scales), ticks], distances.min(1), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    scales=st.sets(st.integers(1, 9), min_size=1, max_size=5).map(sorted),
    batch=st.integers(0, 3),
    shared_phi=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_vectors_of_indices_are_those_of_the_forward_pass(scales, batch, shared_phi, seed):
    quantizer = started("vq", scales=scales, shared_phi=shared_phi)
    z = images(batch, 8, scales[-1], scales[-1], seed=seed).requires_grad_()
    out = quantizer(z)
    assert out.indices.shape == (batch, sum(scale**2 for scale in scales))
    assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
    assert torch.equal(quantizer.indices_to_vectors(out.indices.int()), out.quantized)
    assert torch.equal(quantizer.quantize(z), out.indices)


def test_gradient_passes_straight_through():
    quantizer, z, upstream = started(), images(1, 8, 7, 7).requires_grad_(), images(1, 8, 7, 7, seed=2)
    (quantizer(z).quantized * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_the_loss_moves_every_parameter_and_falls():
    quantizer, z = started(), images(4, 8, 7, 7)
    optimizer = torch.optim.Adam(quantizer.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = quantizer(z).loss
        loss.backward()
        assert all(parameter.grad.any() for parameter in quantizer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_maps_the_codebook_once_a_pass(monkeypatch):
    calls, forward = [], VQBridge.forward
    monkeypatch.setattr(VQBridge, "forward", lambda self, codebook: calls.append(1) or forward(self, codebook))
    quantizer, z = started(), images(2, 8, 7, 7)
    indices = torch.zeros(1, quantizer.tokens, dtype=torch.int64)
    for run in (quantizer, quantizer.quantize, lambda z: quantizer.indices_to_vectors(indices)):
        calls.clear()
        run(z)
        assert len(calls) == 1


def test_keeps_nothing_of_the_size_of_tokens_times_codes():
    inner = build_quantizer("linear", codebook_size=1024, code_dim=4)
    quantizer = MultiscaleQuantizer(inner, scales=(8, 16))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        quantizer(images(8, 4, 16, 16).requires_grad_())
    assert max(sizes) <= 2048 * 4


@pytest.mark.parametrize("name", ["vq", "fvq"])
def test_freezing_changes_no_bit(name):
    quantizer, z = started(name, phi_weight=0.4), images(4, 8, 7, 7)
    state = torch.get_rng_state()
    frozen = quantizer.freeze()
    assert torch.equal(torch.get_rng_state(), state)
    out, after = quantizer(z), frozen(z)
    assert isinstance(frozen, MultiscaleQuantizer)
    assert torch.equal(out.indices, after.indices)
    assert torch.equal(out.quantized, after.quantized)
    assert torch.equal(quantizer.quantize(z), frozen.quantize(z))
    assert torch.equal(quantizer.indices_to_vectors(out.indices), frozen.indices_to_vectors(out.indices))
    phi = {f"phi.{number}.{part}" for number in range(4) for part in ("weight", "bias")}
    assert frozen.state_dict().keys() == {"inner.codebook", *phi}
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    # Training may go on, and nothing is shared.
    assert quantizer.training
    assert all(parameter.requires_grad for parameter in quantizer.parameters())
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(1)
    assert torch.equal(frozen(z).quantized, after.quantized)


def test_state_dict_round_trip():
    quantizer, other, z = started(), started(seed=1), images(2, 8, 7, 7)
    assert not torch.equal(quantizer(z).quantized, other(z).quantized)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(z).quantized, other(z).quantized)


def test_autocast_changes_no_bit():
    quantizer, z = started(), images(2, 8, 7, 7)
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
    quantizer, compiled = started(scales=(1, 3)), started(scales=(1, 3))
    # In place, as for a module of one's own.
    compiled.compile(backend="aot_eager")
    z, upstream = images(2, 8, 3, 3), images(2, 8, 3, 3, seed=2)
    outs = [model(z) for model in (quantizer, compiled)]
    for out in outs:
        (out.loss + (out.quantized * upstream).sum()).backward()
    assert torch.equal(outs[1].indices, outs[0].indices)
    torch.testing.assert_close(outs[1].quantized, outs[0].quantized)
    for (name, parameter), other in zip(quantizer.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, r"scales must be ascending sides from 1, not \(\)"),
        ({"scales": (0, 2)}, r"scales must be ascending sides from 1, not \(0, 2\)"),
        ({"scales": (1, 2, 2)}, r"scales must be ascending sides from 1, not \(1, 2, 2\)"),
        ({"scales": [1, 4, 3]}, r"scales must be ascending sides from 1, not \(1, 4, 3\)"),
        ({"phi_weight": 1.5}, r"phi_weight must lie in \[0, 1\], not 1.5"),
        ({"phi_weight": -0.5}, r"phi_weight must lie in \[0, 1\], not -0.5"),
        ({"shared_phi": 0}, "shared_phi must be at least 1, not 0"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        started(**options)


def test_codes_that_only_tell_directions_do_not_compose():
    with pytest.raises(ValueError, match="NormalizedQuantizer cannot be composed: residuals need nearest codes"):
        MultiscaleQuantizer(build_quantizer("vq-l2", **SIZES))


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (2, 8, 7, 6), (2, 8, 6, 7), (2, 8, 7), (2, 8, 7, 7, 1)])
def test_z_of_another_side(shape):
    for run in (started(), started().quantize):
        with pytest.raises(ValueError, match=r"must be \(B, 8, 7, 7\) as the last scale"):
            run(torch.zeros(shape))


def test_z_of_another_side_is_named():
    with pytest.raises(ValueError, match=r"z \(2, 8, 4, 5\) must be"):
        started()(torch.zeros(2, 8, 4, 5))


@pytest.mark.parametrize("shape", [(2, 94), (2, 96), (95,), (2, 95, 1)])
def test_another_number_of_tokens(shape):
    for run in (started().indices_to_vectors, started().indices_to_scales):
        with pytest.raises(ValueError, match=r"must be \(B, 95\)"):
            run(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("index", [-1, 64])
def test_index_outside_the_codebook(index):
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 64\)"):
        started().indices_to_vectors(torch.full((1, 95), index))


def test_indices_that_are_no_integers():
    with pytest.raises(ValueError, match="indices must be int64, not float32"):
        started().indices_to_vectors(torch.zeros(1, 95))


def test_nan_in_z_is_refused():
    with pytest.raises(ValueError, match="z holds NaN or infinite values"):
        started()(torch.full((1, 8, 7, 7), math.nan))
