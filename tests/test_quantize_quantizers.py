"""Quantizers against a dense float64 implementation of Eq. 1 to 5; freezing; types; refusals."""

import math

import pytest
import torch
from torch.nn import functional as F

from fvq.quantize import QUANTIZERS, Quantizer, build_quantizer

SIZES = {"codebook_size": 64, "code_dim": 8}


def started(name, seed=0, **changes):
    """A quantizer in mid-training: every weight drawn, so that codes are spread and nothing is zero."""
    torch.manual_seed(seed)
    quantizer = build_quantizer(name, **{**SIZES, **({"heads": 2} if name == "fvq" else {}), **changes})
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return quantizer


def dense_projector(name, weights, codebook):
    """The projectors anew, from the weights by name; without a line of fvq.quantize."""

    def linear(x, layer):
        return x @ weights[f"projector.{layer}weight"].T + weights[f"projector.{layer}bias"]

    if name == "vq":
        return codebook
    if name == "linear":
        return linear(codebook, "")
    if name == "mlp5":
        for layer in (0, 2, 4, 6):
            codebook = linear(codebook, f"{layer}.").clamp_min(0)
        return linear(codebook, "8.")
    # Groups of 2×2 on the 8×8 grid of indices, each code's values one after another.
    order = [8 * (2 * i + a) + 2 * j + b for i in range(4) for j in range(4) for a in range(2) for b in range(2)]
    x = linear(codebook[order].reshape(16, 32), "compress.")

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    for block in ("blocks.0.", "blocks.1."):
        q, k, v = linear(norm(x), block + "attention_in.").split(8, dim=1)
        heads = []
        for columns in (slice(0, 4), slice(4, 8)):
            scores = q[:, columns] @ k[:, columns].T / 2
            heads.append(torch.softmax(scores, dim=1) @ v[:, columns])
        x = x + linear(torch.cat(heads, 1), block + "attention_out.")
        hidden = linear(norm(x), block + "mlp_in.")
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, block + "mlp_out.")
    mapped = linear(norm(x), "expand.").reshape(64, 8)
    return mapped[torch.tensor(order).argsort()]


def dense(name, quantizer, z, upstream):
    """Loss, indices, quantized values and gradients by the N×K distances and one-hot products, in float64."""
    weights = {key: value.detach().double().requires_grad_() for key, value in quantizer.state_dict().items()}
    z = z.detach().double().requires_grad_()
    rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    mapped = dense_projector(name, weights, weights["codebook"])
    indices = (rows[:, None] - mapped[None]).square().sum(-1).argmin(1)
    codes = F.one_hot(indices, len(mapped)).double() @ mapped
    loss = ((codes - rows.detach()) ** 2).mean() + 0.25 * ((rows - codes.detach()) ** 2).mean()
    batch, dim, height, width = z.shape
    codes_bdhw = codes.reshape(batch, height, width, dim).permute(0, 3, 1, 2)
    # Eq. 4: what comes back to the codes goes to z as it is.
    (loss + (z * upstream.double()).sum()).backward()
    gradients = {key: value.grad for key, value in weights.items()}
    return loss, indices.reshape(batch, height, width), codes_bdhw, z.grad, gradients


@pytest.mark.parametrize("name", QUANTIZERS)
def test_equals_the_dense_form(name):
    quantizer = started(name)
    # Around the codes, so that the nearest is a matter of more than rounding.
    random = torch.Generator().manual_seed(1)
    chosen = torch.randint(64, (3, 4, 5), generator=random)
    z = quantizer.indices_to_vectors(chosen).detach() + 0.05 * torch.randn(3, 8, 4, 5, generator=random)
    z.requires_grad_()
    upstream = torch.randn(3, 8, 4, 5, generator=random)
    out = quantizer(z)
    (out.loss + (out.quantized * upstream).sum()).backward()
    loss, indices, codes, z_gradient, gradients = dense(name, quantizer, z, upstream)
    close = {"rtol": 2e-4, "atol": 1e-6, "check_dtype": False}
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.loss, loss, **close)
    torch.testing.assert_close(out.quantized, codes, rtol=1e-4, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(z.grad, z_gradient, **close)
    named = dict(quantizer.named_parameters())
    assert named.keys() == gradients.keys()
    for key, parameter in named.items():
        scale = gradients[key].abs().max().item()
        torch.testing.assert_close(
            parameter.grad,
            gradients[key],
            rtol=1e-3,
            atol=1e-4 * scale,
            check_dtype=False,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_shapes_types_and_terms(name):
    out = started(name)(torch.randn(2, 8, 3, 5))
    assert out.quantized.shape == (2, 8, 3, 5)
    assert out.quantized.dtype == torch.float32
    assert out.quantized.is_contiguous()
    assert out.indices.shape == (2, 3, 5)
    assert out.indices.dtype == torch.int64
    assert out.terms.keys() == {"codebook", "commitment"}
    torch.testing.assert_close(out.loss, out.terms["codebook"] + out.terms["commitment"])
    torch.testing.assert_close(out.terms["commitment"], 0.25 * out.terms["codebook"])


def test_gradient_passes_straight_through():
    z = torch.randn(1, 8, 2, 2, requires_grad=True)
    upstream = torch.randn(1, 8, 2, 2)
    quantizer = started("fvq")
    (quantizer(z).quantized * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in quantizer.parameters())


def test_commitment_weight():
    z = torch.randn(1, 8, 2, 2)
    light, heavy = started("vq", commitment_weight=0.0)(z), started("vq", commitment_weight=1.0)(z)
    assert light.terms["commitment"] == 0
    assert heavy.terms["commitment"].item() == pytest.approx(light.loss.item()) == heavy.loss.item() / 2


@pytest.mark.parametrize("name", QUANTIZERS)
def test_freezing_changes_no_bit(name):
    quantizer, z = started(name), torch.randn(4, 8, 6, 6)
    frozen = quantizer.freeze()
    out, after = quantizer(z), frozen(z)
    assert torch.equal(out.indices, after.indices)
    assert torch.equal(out.quantized, after.quantized)
    assert torch.equal(out.loss, after.loss)
    assert torch.equal(quantizer.quantize(z), frozen.quantize(z))
    assert torch.equal(quantizer.indices_to_vectors(out.indices), frozen.indices_to_vectors(out.indices))
    assert frozen.state_dict().keys() == {"codebook"}
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(frozen.codebook, quantizer.mapped_codebook())
    # Nothing is shared: training may go on.
    with torch.no_grad():
        quantizer.codebook.add_(1)
    assert torch.equal(frozen(z).indices, after.indices)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_vectors_of_indices_are_those_of_the_forward_pass(name):
    quantizer, z = started(name), torch.randn(2, 8, 3, 3)
    out = quantizer(z)
    vectors = quantizer.indices_to_vectors(out.indices)
    assert vectors.shape == z.shape
    # z + (code - z) rounds; the loss does not take that way.
    torch.testing.assert_close(vectors, out.quantized, rtol=0, atol=1e-5)
    assert torch.equal(F.mse_loss(vectors, z), out.terms["codebook"])
    assert torch.equal(quantizer.quantize(vectors), out.indices)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_state_dict_round_trip(name):
    quantizer, other, z = started(name), started(name, seed=1), torch.randn(2, 8, 3, 3)
    assert not torch.equal(quantizer(z).quantized, other(z).quantized)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(z).quantized, other(z).quantized)
    assert torch.equal(quantizer(z).indices, other(z).indices)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_autocast_changes_no_index(name):
    quantizer, z = started(name), torch.randn(2, 8, 4, 4)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = quantizer(z)
        low = quantizer(z.bfloat16())
        frozen = quantizer.freeze()
    assert cast.quantized.dtype == low.quantized.dtype == cast.loss.dtype == torch.float32
    assert torch.equal(cast.indices, plain.indices)
    assert torch.equal(cast.quantized, plain.quantized)
    assert torch.equal(cast.loss, plain.loss)
    assert torch.equal(low.indices, quantizer(z.bfloat16().float()).indices)
    assert torch.equal(frozen.codebook, quantizer.freeze().codebook)


def test_codebook_starts_uniform_within_one_over_its_size():
    torch.manual_seed(0)
    codebook = build_quantizer("vq", codebook_size=500, code_dim=16).codebook
    assert codebook.abs().max() <= 1 / 500
    assert codebook.abs().max() > 0.99 / 500
    assert codebook.mean().abs() < 0.05 / 500
    assert codebook.std().item() == pytest.approx(1 / 500 / math.sqrt(3), rel=0.05)


def test_projectors_are_what_the_paper_compares():
    def parameters(name):
        return sum(p.numel() for p in build_quantizer(name, **SIZES).projector.parameters())

    assert [parameters(name) for name in ("vq", "linear", "mlp5")] == [0, 8 * 8 + 8, 5 * (8 * 8 + 8)]


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="unknown quantizer 'vqgan'; there are vq, linear, mlp5, fvq"):
        build_quantizer("vqgan", **SIZES)


@pytest.mark.parametrize("name", ["vq", "linear", "mlp5"])
def test_bridge_options_need_a_bridge(name):
    with pytest.raises(ValueError, match=f"quantizer '{name}' has no bridge and takes no depth, patch"):
        build_quantizer(name, **SIZES, patch=4, depth=2)


@pytest.mark.parametrize("changes", [{"codebook_size": 0}, {"codebook_size": -1}, {"code_dim": 0}, {"code_dim": -3}])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_sizes_out_of_range(name, changes):
    with pytest.raises(
        ValueError, match=f"{next(iter(changes))} must be at least 1, not {next(iter(changes.values()))}"
    ):
        build_quantizer(name, **{**SIZES, **changes})


@pytest.mark.parametrize("index", [-1, 64, 2**40])
def test_index_outside_the_codebook(index):
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 64\)"):
        started("vq").indices_to_vectors(torch.tensor([[[0, index]]]))


def test_indices_that_are_no_integers():
    with pytest.raises(ValueError, match="indices must be int64, not float32"):
        started("vq").indices_to_vectors(torch.zeros(1, 2, 2))


def test_no_indices_give_no_vectors():
    assert started("vq").indices_to_vectors(torch.empty(0, 2, 2, dtype=torch.int64)).shape == (0, 8, 2, 2)


def test_nan_in_z_is_refused():
    with pytest.raises(ValueError, match="z holds NaN or infinite values"):
        started("vq")(torch.full((1, 8, 1, 1), math.nan))


def test_own_projector():
    """Any module that maps (K, d) to (K, d) serves, as for a bridge of one's own."""
    torch.manual_seed(0)
    quantizer = Quantizer(6, 3, torch.nn.Linear(3, 3, bias=False))
    quantizer.projector.load_state_dict({"weight": 2 * torch.eye(3)})
    assert torch.equal(quantizer.mapped_codebook(), 2 * quantizer.codebook)
