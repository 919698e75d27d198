"""Every quantizer's contract; those with a codebook and a projector against dense float64 implementations."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fvq.quantize import QUANTIZERS, build_quantizer
from fvq.quantize.build import frozen_name
from fvq.quantize.codebook import CodebookQuantizer

SIZES = {"codebook_size": 64, "code_dim": 8}
OPTIONS = {
    "fvq": {"heads": 2},
    "vqgan-lc": {"features": torch.randn(64, 12, generator=torch.Generator().manual_seed(5))},
    "ibq": {"temperature": 1.0, "entropy_weight": 1.0},
    "lfq": {"code_dim": 6, "temperature": 4.0, "entropy_weight": 1.0},
    "fsq": {"code_dim": 3, "levels": (4, 4, 4)},
    "residual": {"inner": "linear", "depth": 3},
    "multiscale": {"inner": "fvq", "heads": 2, "scales": (1, 2, 4)},
}
PROJECTED = ["vq", "linear", "simvq", "mlp5", "fvq", "vqgan-lc"]
SIDE = 4


def started(name, seed=0, **changes):
    """A quantizer in mid-training: every weight drawn, so that codes are spread and nothing is zero."""
    torch.manual_seed(seed)
    quantizer = build_quantizer(name, **{**SIZES, **OPTIONS.get(name, {}), **changes})
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for buffer in quantizer.buffers():
        if buffer.is_floating_point() and buffer.ndim == 2:
            torch.nn.init.normal_(buffer, std=0.5)
    return quantizer


def drawn(quantizer, batch=2, seed=0):
    """Vectors (batch, d, 4, 4) for it."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.code_dim, SIDE, SIDE, generator=random)


def dense_projector(name, weights, codebook):
    """The projectors anew, from the weights by name; without a line of fvq.quantize."""

    def linear(x, layer):
        return x @ weights[f"projector.{layer}weight"].T + weights[f"projector.{layer}bias"]

    if name == "vq":
        return codebook
    if name in ("linear", "simvq", "vqgan-lc"):
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
    codebook_weight, commitment_weight = (0.33, 1) if name == "vqgan-lc" else (1, 0.25)
    loss = codebook_weight * ((codes - rows.detach()) ** 2).mean()
    loss = loss + commitment_weight * ((rows - codes.detach()) ** 2).mean()
    batch, dim, height, width = z.shape
    codes_bdhw = codes.reshape(batch, height, width, dim).permute(0, 3, 1, 2)
    # Eq. 4: what comes back to the codes goes to z as it is.
    (loss + (z * upstream.double()).sum()).backward()
    gradients = {key: value.grad for key, value in weights.items()}
    return loss, indices.reshape(batch, height, width), codes_bdhw, z.grad, gradients


@pytest.mark.parametrize("name", PROJECTED)
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
        if not parameter.requires_grad:
            assert (name, key) in (("simvq", "codebook"), ("vqgan-lc", "codebook"))
            assert parameter.grad is None
            continue
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
    quantizer = started(name)
    z = drawn(quantizer).requires_grad_()
    out = quantizer(z)
    assert out.quantized.shape == z.shape
    assert out.quantized.dtype == torch.float32
    assert out.quantized.is_contiguous()
    assert out.indices.dtype == torch.int64
    tokens = {"residual": (SIDE, SIDE, 3), "multiscale": (1 + 4 + 16,)}.get(name, (SIDE, SIDE))
    assert out.indices.shape == (2, *tokens)
    assert all(term.shape == () and term.isfinite() for term in out.terms.values())
    torch.testing.assert_close(out.loss, sum(out.terms.values(), torch.zeros(())))
    (out.loss + out.quantized.sum()).backward()
    assert z.grad.isfinite().all()
    assert z.grad.any()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("training", [True, False])
def test_vectors_of_indices_are_those_of_the_forward_pass(name, training):
    quantizer = started(name).train(training)
    z = drawn(quantizer)
    for _ in range(2):
        out = quantizer(z)
        assert torch.equal(quantizer.indices_to_vectors(out.indices), out.quantized)
        assert torch.equal(quantizer.quantize(z), out.indices)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_freezing_changes_no_bit(name):
    quantizer = started(name)
    z = drawn(quantizer, batch=5)
    out = quantizer(z)
    frozen = quantizer.freeze()
    after = frozen(z)
    assert torch.equal(out.indices, after.indices)
    assert torch.equal(out.quantized, after.quantized)
    assert torch.equal(frozen.quantize(z), out.indices)
    assert torch.equal(frozen.indices_to_vectors(out.indices), out.quantized)
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    # Nothing is shared: training may go on.
    with torch.no_grad():
        for value in (*quantizer.parameters(), *quantizer.buffers()):
            value.add_(1)
    assert torch.equal(frozen(z).quantized, after.quantized)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_frozen_form_is_built_by_its_name(name):
    quantizer, options = started(name), OPTIONS.get(name, {})
    frozen = quantizer.freeze()
    if name in ("residual", "multiscale"):
        options = {"inner": "vq", **{key: options[key] for key in ("depth", "scales") if key in options}}
    elif frozen_name(name) == "vq":
        options = {}
    again = build_quantizer(frozen_name(name), **{**SIZES, **options})
    again.load_state_dict(frozen.state_dict())
    z = drawn(quantizer)
    assert torch.equal(again.eval().quantize(z), quantizer.quantize(z))
    assert torch.equal(again(z).quantized, frozen(z).quantized)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_state_dict_round_trip(name):
    quantizer, other = started(name), started(name, seed=1)
    z = drawn(quantizer)
    quantizer(z)
    if name not in ("lfq", "fsq"):
        assert not torch.equal(quantizer(z).quantized, other(z).quantized)
    other.load_state_dict(quantizer.state_dict())
    for _ in range(2):
        out, again = quantizer(z), other(z)
        assert torch.equal(out.quantized, again.quantized)
        assert torch.equal(out.indices, again.indices)
        assert torch.equal(out.loss, again.loss)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_autocast_changes_nothing(name):
    plain, quantizer = started(name), started(name)
    z = drawn(plain).bfloat16()
    expected = plain(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        frozen = quantizer.freeze()
        again = frozen.quantize(z)
    assert out.quantized.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(again, expected.indices)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_compiles(name):
    plain, quantizer = started(name), started(name)
    z = drawn(plain).requires_grad_()
    expected = plain(z)
    gradient = torch.autograd.grad(expected.loss + expected.quantized.square().sum(), z)[0]
    torch.compiler.reset()
    out = torch.compile(quantizer, backend="aot_eager")(z)
    assert torch.equal(out.indices, expected.indices)
    torch.testing.assert_close(out.quantized, expected.quantized)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(torch.autograd.grad(out.loss + out.quantized.square().sum(), z)[0], gradient)


@pytest.mark.parametrize("name", ["vq", "linear", "mlp5", "fvq"])
def test_compiles_in_one_graph(name):
    quantizer = started(name)
    z = drawn(quantizer)
    torch.compiler.reset()
    out = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(z)
    assert torch.equal(out.indices, quantizer(z).indices)


TWO_PROCESSES = """
import sys, torch
import torch.distributed as dist
from fvq.quantize import UsageCounter, code_counts, usage_figures
from test_quantize_quantizers import QUANTIZERS, drawn, started

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
rounds = [[started(name), started(name)] for name in QUANTIZERS]


def steps(quantizer, z_rounds):
    outs = []
    for z in z_rounds:
        z = z.clone().requires_grad_()
        out = quantizer(z)
        loss = out.loss + out.quantized.square().mean()
        leaves = [p for p in quantizer.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, [z, *leaves], allow_unused=True)
        outs.append((loss.detach(), out.indices, gradients[0], [g for g in gradients[1:] if g is not None]))
    return outs


joined = [[drawn(q[0], batch=4, seed=s) for s in range(2)] for q in rounds]
alone = [steps(q[0], z) for q, z in zip(rounds, joined)]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for name, q, z_rounds, expected in zip(QUANTIZERS, rounds, joined, alone):
    half = slice(2 * rank, 2 * rank + 2)
    for (loss, indices, z_grad, gradients), (one, all_indices, all_z_grad, all_gradients) in zip(
        steps(q[1], [z[half] for z in z_rounds]), expected, strict=True
    ):
        dist.all_reduce(loss)
        for gradient in gradients:
            dist.all_reduce(gradient)
        close = {"rtol": 1e-4, "atol": 1e-6}
        assert torch.equal(indices, all_indices[half]), name
        torch.testing.assert_close(loss / 2, one, **close, msg=lambda m: f"{name} loss: {m}")
        torch.testing.assert_close(z_grad / 2, all_z_grad[half], **close, msg=lambda m: f"{name} z: {m}")
        for mine, theirs in zip(gradients, all_gradients, strict=True):
            torch.testing.assert_close(mine / 2, theirs, **close, msg=lambda m: f"{name}: {m}")
    for one, other in zip(q[0].buffers(), q[1].buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name} buffer: {m}")
    counter = UsageCounter(64)
    counter.add(indices)
    assert counter.figures() == usage_figures(code_counts(all_indices, 64)), name
dist.destroy_process_group()
"""


def test_two_processes_give_what_one_gives_on_the_joined_batch(tmp_path):
    """Losses and gradients averaged over the processes, as DistributedDataParallel does; indices and state."""
    command = [sys.executable, "-c", TWO_PROCESSES]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


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
    with pytest.raises(ValueError, match="unknown quantizer 'vqgan'; there are vq, vq-ema, vq-l2, linear, simvq, "):
        build_quantizer("vqgan", **SIZES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vq",
            {"patch": 4, "depth": 2},
            "quantizer 'vq' has no option depth, patch; its options are commitment_weight, code",
        ),
        ("fvq", {"pach": 4}, "no option pach; its options are commitment_weight, codebook_weight, width, depth, "),
        ("fsq", {"decay": 1}, "no option decay; its options are levels"),
        ("residual", {"dept": 4}, "quantizer 'vq' has no option dept"),
        (
            "residual",
            {"inner": "fsq", "levels": (4, 4, 4), "code_dim": 3},
            "FiniteScalarQuantizer cannot be composed: residuals need ",
        ),
        ("multiscale", {"inner": "vq-l2"}, "NormalizedQuantizer cannot be composed: residuals need "),
        ("vqgan-lc", {}, "needs features"),
        ("vqgan-lc", {"features": torch.zeros(63, 3)}, r"the codebook to start from is \(63, 3\), not \(64, …\)"),
        ("fvq", {"heads": 3}, "width 8 is not divisible by 3 heads"),
        ("fvq", {"codebook_size": 60, "heads": 2}, "the nearest sizes that work are 36 and 64"),
    ],
)
def test_options_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer(name, **{**SIZES, **options})


@pytest.mark.parametrize("changes", [{"codebook_size": 0}, {"codebook_size": -1}, {"code_dim": 0}, {"code_dim": -3}])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_sizes_out_of_range(name, changes):
    with pytest.raises(
        ValueError, match=f"{next(iter(changes))} must be at least 1, not {next(iter(changes.values()))}"
    ):
        build_quantizer(name, **{**SIZES, **OPTIONS.get(name, {}), **changes})


@pytest.mark.parametrize("index", [-1, 64, 2**40])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_index_outside_the_codebook(name, index):
    quantizer = started(name)
    indices = quantizer.quantize(drawn(quantizer))
    indices.view(-1)[-1] = index
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 64\)"):
        quantizer.indices_to_vectors(indices)


def test_indices_that_are_no_integers():
    with pytest.raises(ValueError, match="indices must be int64, not float32"):
        started("vq").indices_to_vectors(torch.zeros(1, 2, 2))


def test_no_indices_give_no_vectors():
    assert started("vq").indices_to_vectors(torch.empty(0, 2, 2, dtype=torch.int64)).shape == (0, 8, 2, 2)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_in_z_are_refused(name, value):
    quantizer = started(name)
    z = drawn(quantizer)
    z[1, 0, 2, 2] = value
    for call in (quantizer, quantizer.quantize):
        with pytest.raises(ValueError, match="z holds NaN or infinite values"):
            call(z)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_wrong_channels_are_refused(name):
    quantizer = started(name)
    with pytest.raises(ValueError, match=r"z \(1, 7, 4, 4\) must be \(B, \d, …\)"):
        quantizer(torch.randn(1, 7, SIDE, SIDE))


def test_own_projector():
    """Any module that maps the codebook to (K, d) serves, as for a bridge of one's own."""
    torch.manual_seed(0)
    quantizer = CodebookQuantizer(6, 3, torch.nn.Linear(3, 3, bias=False))
    quantizer.projector.load_state_dict({"weight": 2 * torch.eye(3)})
    assert torch.equal(quantizer.mapped_codebook(), 2 * quantizer.codebook)


def test_unit_codes():
    """vq-l2 against the dense form: cosine decides, losses and vectors are on the sphere."""
    quantizer = started("vq-l2")
    z = drawn(quantizer)
    out = quantizer(z)
    unit = F.normalize(z.double(), dim=1).movedim(1, -1)
    codes = F.normalize(quantizer.codebook.double(), dim=1)
    assert torch.equal(out.indices, (unit @ codes.T).argmax(-1))
    squared = (codes[out.indices] - unit).square().mean()
    torch.testing.assert_close(out.terms["codebook"], squared, check_dtype=False)
    torch.testing.assert_close(out.terms["commitment"], 0.25 * squared, check_dtype=False)
    torch.testing.assert_close(out.quantized.square().sum(1), torch.ones(2, SIDE, SIDE))


def test_simvq_keeps_its_codebook():
    torch.manual_seed(0)
    quantizer = build_quantizer("simvq", codebook_size=400, code_dim=16)
    assert quantizer.codebook.std().item() == pytest.approx(16**-0.5, rel=0.05)
    assert {name for name, parameter in quantizer.named_parameters() if parameter.requires_grad} == {
        "projector.weight",
        "projector.bias",
    }
