"""The nearest-code search against a brute force, its ties, its types, its memory, its refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from fvq.quantize import nearest_code

# The search works in tiles of tokens and of codes: counts at, below and above many a likely edge.
EDGES = [power + step for power in (64, 128, 256, 512, 1024, 2048) for step in (-1, 0, 1)]


def squared_distances(z, codebook):
    """Squared distances (N, K) in float64."""
    z, codebook = z.double(), codebook.double()
    return z.square().sum(1)[:, None] - 2 * z @ codebook.T + codebook.square().sum(1)


def assert_nearest(z, codebook, indices):
    """Right wherever the two nearest differ by more than float32 rounds; the share of tokens where they do."""
    distances = squared_distances(z, codebook)
    rounding = (z.double().square().sum(1) + codebook.double().square().sum(1).max()) * 2**-22 * z.shape[1]
    nearest = distances.topk(min(2, len(codebook)), dim=1, largest=False)
    chosen = distances.gather(1, indices[:, None])[:, 0]
    assert (chosen - nearest.values[:, 0] <= rounding).all()
    clear = nearest.values[:, -1] - nearest.values[:, 0] > rounding
    assert torch.equal(indices[clear], nearest.indices[clear, 0])
    return clear.double().mean().item()


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 70),
    codes=st.integers(1, 140),
    dim=st.integers(1, 9),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
def test_agrees_with_brute_force(tokens, codes, dim, scale, seed):
    random = torch.Generator().manual_seed(seed)
    z, codebook = torch.randn(tokens, dim, generator=random) * scale, torch.randn(codes, dim, generator=random) * scale
    indices = nearest_code(z, codebook)
    assert indices.dtype == torch.int64
    assert indices.shape == (tokens,)
    assert_nearest(z, codebook, indices)


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
    assert assert_nearest(z, codebook, indices) > 0.9


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
    distances = squared_distances(z, codebook)
    lowest = (distances == distances.min(1, keepdim=True).values).int().argmax(1)
    assert torch.equal(nearest_code(z, codebook), lowest)


@pytest.mark.parametrize("first", [0, 62, 63, 511, 1023, 2047, 4094])
@pytest.mark.parametrize("gap", [1, 1024, 2048])
def test_tie_of_two_codes(first, gap):
    codebook = torch.zeros(7000, 2)
    codebook[[first, first + gap]] = 1.0
    assert nearest_code(torch.ones(3, 2), codebook).tolist() == [first] * 3


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
    assert_nearest(z.float(), codebook.float(), indices)


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


class LargestTensor(TorchFunctionMode):
    """The most elements of any tensor that an operation gives."""

    elements = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_memory_does_not_grow_with_tokens_times_codes():
    largest = []
    for tokens, codes in ((2048, 4096), (4096, 4096), (2048, 8192)):
        with LargestTensor() as mode:
            nearest_code(torch.zeros(tokens, 2), torch.ones(codes, 2))
        largest.append(mode.elements)
    assert largest[0] < 2048 * 4096 / 2
    assert largest == largest[:1] * 3


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
