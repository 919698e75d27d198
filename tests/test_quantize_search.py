"""The nearest-code search against a float64 brute force: every precision, ties, types, memory, refusals."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize import nearest_code, shortlist
from fvq.quantize.search import search

# The search works in tiles of tokens and of codes: counts at, below and above many a likely edge.
EDGES = [power + step for power in (64, 128, 256, 512, 1024, 2048) for step in (-1, 0, 1)]

# What a processor with bfloat16 does, what one without does, and each fallback alone.
PRECISIONS = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "bfloat16, float32": (torch.bfloat16, torch.float32),
    "float64": (),
}


def brute_force(z, codebook):
    """Index and squared distance of the first nearest code by differences in float64; ties to within its rounding."""
    indices, distances = [], []
    for row in z.double():
        squared = (row - codebook.double()).square().sum(1)
        ties = squared <= squared.min() * (1 + 1e-12)
        indices.append(int(ties.int().argmax()))
        distances.append(squared.min())
    return torch.tensor(indices, dtype=torch.int64), distances


def drawn(kind, tokens, codes, dim, seed):
    """Vectors and codes whose nearest are easy or hard to tell apart."""
    random = torch.Generator().manual_seed(seed)
    z, codebook = torch.randn(tokens, dim, generator=random), torch.randn(codes, dim, generator=random)
    if kind == "far from the origin":
        return z + 1000, codebook + 1000
    if kind == "barely apart":
        return z, torch.ones(dim) + 1e-6 * codebook
    if kind == "mostly dead":
        return z, codebook * (torch.rand(codes, 1, generator=random) < 0.1) + 1e-6 * torch.rand(codes, dim)
    if kind == "repeated":
        return z, codebook[torch.randint(0, max(1, codes // 3), (codes,), generator=random)]
    if kind == "one far away":
        codebook[codes // 2] *= 1e6
        return z, codebook
    scale = {"plain": 1.0, "tiny": 1e-22, "huge": 1e22}[kind]
    return z * scale, codebook * scale


KINDS = ["plain", "tiny", "huge", "far from the origin", "barely apart", "mostly dead", "repeated", "one far away"]


@pytest.mark.parametrize("precisions", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(tokens=st.integers(0, 40), codes=st.integers(1, 1300), dim=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_equals_the_brute_force(kind, precisions, tokens, codes, dim, seed):
    z, codebook = drawn(kind, tokens, codes, dim, seed)
    expected, _ = brute_force(z, codebook)
    assert torch.equal(search(z, codebook, precisions), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_code_equals_the_brute_force(kind):
    z, codebook = drawn(kind, 60, 4099, 24, 0)
    indices = nearest_code(z, codebook)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, brute_force(z, codebook)[0])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_shortlist_is_short(precision):
    """The bound is worth something: few groups per vector need exact distances."""
    z, codebook = drawn("plain", 500, 4096, 64, 0)
    codes = shortlist.Codes.prepare(codebook, codebook.mean(0), precision, fused=False)
    listed_ng = shortlist.shortlist(z, codes)
    assert listed_ng.any(1).all()
    assert listed_ng.sum(1).double().mean() < (1.1 if precision is torch.float32 else 4)
    # Each vector's nearest code is in a group on its list.
    members = codes.indices_of(torch.arange(codes.groups))
    assert torch.equal(members.flatten().unique(), torch.arange(4096))
    nearest = brute_force(z, codebook)[0]
    group_of = torch.empty(4096, dtype=torch.int64)
    group_of[members] = torch.arange(codes.groups)[:, None].expand_as(members)
    assert listed_ng[torch.arange(500), group_of[nearest]].all()


def test_does_not_depend_on_the_batch():
    z, codebook = drawn("barely apart", 300, 1500, 16, 3)
    whole = nearest_code(z, codebook)
    assert torch.equal(whole, torch.cat([nearest_code(part, codebook) for part in z.split(7)]))
    order = torch.randperm(300)
    assert torch.equal(whole[order], nearest_code(z[order], codebook))


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_does_not_depend_on_the_precision_that_torch_is_allowed(precision):
    z, codebook = drawn("barely apart", 50, 500, 16, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        indices = nearest_code(z, codebook)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(indices, brute_force(z, codebook)[0])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_graph(backend):
    @torch.compile(backend=backend, fullgraph=True)
    def offset_search(z, codebook):
        return nearest_code(z * 2, codebook) + 1

    z, codebook = drawn("plain", 9, 70, 5, 0)
    assert torch.equal(offset_search(z, codebook), nearest_code(z * 2, codebook) + 1)
    assert torch.equal(offset_search(z[:4], codebook), nearest_code(z[:4] * 2, codebook) + 1)


@pytest.mark.parametrize(
    ("tokens", "codes"), [*((7, edge) for edge in EDGES), *((edge, 70) for edge in EDGES), (1025, 2049)]
)
def test_agrees_with_brute_force_around_the_edges_of_tiles(tokens, codes):
    random = torch.Generator().manual_seed(tokens * codes)
    z, codebook = torch.randn(tokens, 4, generator=random), torch.randn(codes, 4, generator=random)
    # The last code is the answer for some of the tokens, the last token among them.
    z[::5] = codebook[-1]
    z[-1] = codebook[-1]
    indices = nearest_code(z, codebook)
    assert indices[-1] == indices[0] == codes - 1
    assert torch.equal(indices, brute_force(z, codebook)[0])


@settings(max_examples=40, deadline=None)
@given(
    codes=st.one_of(st.integers(2, 200), st.sampled_from(EDGES)),
    copies=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_ties_go_to_the_lowest_index(codes, copies, seed):
    # Small integers: every distance is exact in float32.
    random = torch.Generator().manual_seed(seed)
    codebook = torch.randint(-2, 3, (codes, 3), generator=random).float().repeat(copies, 1)
    z = torch.randint(-4, 5, (20, 3), generator=random).float() / 2
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook)[0])


@pytest.mark.parametrize("first", [0, 62, 63, 511, 1023, 2047, 4094])
@pytest.mark.parametrize("gap", [1, 1024, 2048])
def test_tie_of_two_codes(first, gap):
    codebook = torch.zeros(7000, 2)
    codebook[[first, first + gap]] = 1.0
    assert nearest_code(torch.ones(3, 2), codebook).tolist() == [first] * 3


@pytest.mark.parametrize("precisions", PRECISIONS.values(), ids=PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(
    codes=st.one_of(st.integers(1, 90), st.sampled_from([63, 64, 65, 1023, 1025])),
    zero=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    first=st.booleans(),
    distinct=st.integers(1, 90),
    seed=st.integers(0, 2**32),
)
def test_zero_codes(precisions, codes, zero, first, distinct, seed):
    """Any subset of the codes is zero, some of them -0.0, and what is not zero may be repeated."""
    random = torch.Generator().manual_seed(seed)
    codebook = torch.randn(codes, 3, generator=random)[torch.randint(min(distinct, codes), (codes,), generator=random)]
    codebook[::2, 0] = 0  # one channel does not make a code zero
    codebook *= torch.rand(codes, 1, generator=random) >= zero
    codebook[0] *= not first
    z = torch.randn(12, 3, generator=random)
    z[::3] *= 1e-3  # nearest to a zero code where there is one
    z[0] = 0
    assert torch.equal(search(z, codebook, precisions), brute_force(z, codebook)[0])


def test_a_code_whose_square_underflows_is_not_zero():
    codebook = torch.tensor([[0.0, 0.0], [0.0, 1e-30], [0.0, 0.0], [0.0, -1e-30]])
    assert nearest_code(codebook, codebook).tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize("zeros", [0, 3840, 4096])
def test_zero_codes_need_no_float64(zeros, monkeypatch):
    """The lists stay short: the slow last resort is not even called."""
    z, codebook = drawn("plain", 100, 4096, 8, 0)
    codebook[:zeros] = 0
    z[::2] *= 1e-3
    monkeypatch.setattr("fvq.quantize.search._first_nearest", None)
    assert torch.equal(search(z, codebook, (torch.float32,)), brute_force(z, codebook)[0])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3, 4)])
def test_no_vectors(shape):
    indices = nearest_code(torch.empty(shape), torch.randn(3, 4))
    assert indices.shape == shape[:-1]
    assert indices.dtype == torch.int64


def test_one_vector_and_one_code():
    assert nearest_code(torch.randn(4), torch.randn(1, 4)).shape == ()
    assert nearest_code(torch.randn(2, 3, 4), torch.randn(1, 4)).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_compared_in_float32(dtype):
    random = torch.Generator().manual_seed(0)
    z = torch.randn(50, 8, generator=random).to(dtype)
    codebook = torch.randn(70, 8, generator=random).to(dtype)
    indices = nearest_code(z, codebook)
    assert torch.equal(indices, nearest_code(z.float(), codebook.float()))
    assert torch.equal(indices, brute_force(z.float(), codebook.float())[0])


def test_strides_do_not_matter():
    random = torch.Generator().manual_seed(0)
    images, codes = torch.randn(2, 8, 3, 5, generator=random), torch.randn(8, 30, generator=random)
    z, codebook = images.movedim(1, -1), codes.T[::2]
    assert not z.is_contiguous()
    assert not codebook.is_contiguous()
    assert torch.equal(nearest_code(z, codebook), nearest_code(z.contiguous(), codebook.contiguous()))


def test_autocast_does_not_matter():
    # Steps that bfloat16 cannot tell apart.
    codebook = torch.arange(100.0)[:, None] / 100 - 0.5
    z = codebook + 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = nearest_code(z, codebook)
        from_bfloat16 = nearest_code(z.bfloat16(), codebook)
    assert torch.equal(indices, torch.arange(100))
    assert torch.equal(from_bfloat16, nearest_code(z.bfloat16(), codebook))


def test_no_gradient():
    z, codebook = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    indices = nearest_code(z, codebook)
    assert not indices.requires_grad
    assert z.grad is None
    assert codebook.grad is None


PEAK = """
import resource, torch
from fvq.quantize.search import search
torch.set_num_threads(1)
z, codebook = torch.randn(3000, 16), torch.randn(60000, 16)
search(z[:9], codebook[:99], PRECISIONS)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search(z, codebook, PRECISIONS)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("precisions", ["(torch.float32,)", "(torch.bfloat16,)", "()"])
def test_memory(precisions):
    """3,000 by 60,000 scores would be 687 MB in float32."""
    script = PEAK.replace("PRECISIONS", precisions)
    megabytes = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert int(megabytes) < 200


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(5, 3), r"z \(3, 4\) and codebook \(5, 3\) must share their last dimension"),
        (torch.zeros(3, 4), torch.zeros(4), r"codebook \(4,\) must share"),
        (torch.zeros(()), torch.zeros(5, 1), r"z \(\) and codebook"),
        (torch.zeros(3, 0), torch.zeros(5, 0), r"z \(3, 0\) and codebook"),
        (torch.zeros(3, 4), torch.zeros(0, 4), "the codebook has no codes"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(5, 2), "z holds NaN or infinite values"),
        (torch.tensor([[0.0, -math.inf]]), torch.zeros(5, 2), "z holds NaN or infinite values"),
        (torch.zeros(3, 2), torch.tensor([[0.0, math.nan]]), "the codebook holds NaN or infinite values"),
        (torch.zeros(3, 2), torch.tensor([[math.inf, 0.0]]), "the codebook holds NaN or infinite values"),
    ],
)
def test_refusals(z, codebook, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(z, codebook)


def test_values_whose_squares_overflow_are_no_error():
    codebook = torch.tensor([[3e38, -3e38], [3e38, 3e38]])
    assert nearest_code(torch.tensor([[1e38, 2e38], [0.0, -1.0]]), codebook).tolist() == [1, 0]


FUSED = """
import torch
from fvq.quantize import fused, search
# The interpreter has no bfloat16 products: rounded values in float32 give the same sums.
kernel, calls = fused.fused_group_minima, []
fused.fused_group_minima = lambda z, codes, *rest: calls.append(z) or kernel(z.float(), codes.float(), *rest)
search.has_fused_kernel = lambda device: True
for tokens, codes, dim in ((130, 1030, 8), (5, 300, 70), (3, 1, 4)):
    z, codebook = torch.randn(tokens, dim) + 3, torch.randn(codes, dim) + 3
    assert torch.equal(search.search(z, codebook, (torch.bfloat16,)), search.search(z, codebook, ()))
assert len(calls) == 3
"""


def test_fused_kernel_in_the_interpreter():
    pytest.importorskip("triton", reason="this build of torch comes without Triton")
    subprocess.run([sys.executable, "-c", FUSED], check=True, env=os.environ | {"TRITON_INTERPRET": "1"})


@pytest.mark.parametrize("capability", [80, 90])
def test_fused_kernel_compiles_for_tensor_cores(capability):
    """Compiled for the graphics processor without having one: the products are the tensor cores', nothing spills."""
    pytest.importorskip("triton", reason="this build of torch comes without Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from fvq.quantize.fused import _group_minima

    constants = {"DIM": 256, "GROUPS": 8192, "GROUP": 32, "TOKENS": 128, "CODES": 128, "CHANNELS": 64}
    pointers = {"z": "*bf16", "codes": "*bf16", "half_norms": "*fp32", "minima": "*fp32"}
    signature = {**pointers, "tokens": "i32", **dict.fromkeys(constants, "constexpr")}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}
    source = ASTSource(fn=_group_minima, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
    assembly = compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    assert ("wgmma" if capability == 90 else "mma.sync") in assembly
    assert "bf16" in assembly
    assert ".local" not in assembly
