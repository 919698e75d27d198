"""Cost of the projectors: the paper's Table 10, parameters as published, nothing allocated."""

import pytest
import torch
from torch import nn

from fvq.quantize import VQBridge
from fvq.quantize.codebook import mlp
from fvq.quantize.cost import multiply_adds, parameter_count

PROJECTORS = {
    "linear": lambda size: nn.Linear(256, 256),
    "mlp5": lambda size: mlp(256),
    "vit": lambda size: VQBridge(size, 256),
    "dit": lambda size: VQBridge(size, 256, block="dit"),
}


def projector(name, size):
    with torch.device("meta"):
        return PROJECTORS[name](size)


@pytest.mark.parametrize(
    ("name", "size", "billions"),
    [
        ("linear", 16384, 1.07),
        ("linear", 262144, 17.18),
        ("mlp5", 16384, 5.37),
        ("mlp5", 262144, 85.90),
        ("vit", 16384, 4.30),
        ("vit", 65536, 10.74),
        ("vit", 262144, 55.83),
        ("dit", 16384, 4.30),
        ("dit", 262144, 55.84),
    ],
)
def test_cost_as_published(name, size, billions):
    """Table 10; 55.89 G there."""
    # The table rounds 4.295 up.
    assert multiply_adds(projector(name, size), size, 256) / 1e9 == pytest.approx(billions, abs=0.0051)


@pytest.mark.parametrize(("name", "linears"), [("vit", 0), ("dit", 2 * 6 + 2)])
@pytest.mark.parametrize(("size", "patch"), [(16384, 16), (262144, 64)])
def test_cost_of_the_bridge_adds_up(name, linears, size, patch):
    """Compress and expand, two blocks of attention (scores and sums) and four linear layers, and the modulations."""
    tokens, width = size // patch, 256
    block = tokens * width * (3 + 1 + 2 + 2) * width + 2 * tokens * tokens * width
    expected = 2 * tokens * patch * 256 * width + 2 * block + linears * width * width
    assert multiply_adds(projector(name, size), size, 256) == expected


def test_the_table_counts_some_elements_too():
    """55.89 G: each of five norms' elements counts 4, and half of each element that is put back into place."""
    size, tokens = 262144, 4096
    counted = multiply_adds(projector("dit", size), size, 256) + 5 * 4 * tokens * 256 + size * 256 // 2
    assert round(counted / 1e9, 2) == 55.89


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("linear", 16384, 0.066),
        ("mlp5", 16384, 0.329),
        ("vit", 16384, 3.154),
        ("vit", 65536, 9.457),
        ("vit", 262144, 9.457),
        ("dit", 16384, 4.075),
        ("dit", 262144, 10.379),
    ],
)
def test_parameters(name, size, millions):
    assert round(parameter_count(projector(name, size)) / 1e6, 3) == millions


def test_counting_leaves_a_projector_as_it_is():
    torch.manual_seed(0)
    model, codebook = VQBridge(64, 8, heads=2, block="dit"), torch.randn(64, 8)
    nn.init.normal_(model.expand.weight)
    before = model(codebook)
    with torch.device("meta"):
        same_sizes = VQBridge(64, 8, heads=2, block="dit")
    assert multiply_adds(model, 64, 8) == multiply_adds(same_sizes, 64, 8)
    assert torch.equal(model(codebook), before)


def test_a_projector_between_dimensions():
    assert multiply_adds(nn.Linear(768, 8), 100, 768) == 100 * 768 * 8
    assert multiply_adds(nn.Identity(), 100, 768) == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 8), "codebook_size must be at least 1, not 0"), ((4, -8), "code_dim must be at least 1, not -8")],
)
def test_refusals(sizes, message):
    with pytest.raises(ValueError, match=message):
        multiply_adds(nn.Identity(), *sizes)
