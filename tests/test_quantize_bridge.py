"""VQBridge: the groups of codes, the start, the gradients, the published sizes, the refusals."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize import VQBridge, default_patch
from fvq.quantize.bridge import check_bridge_sizes


def bridge(size=64, dim=4, **changes):
    return VQBridge(size, dim, **{"heads": 2, "patch": 4, **changes})


@settings(max_examples=40, deadline=None)
@given(layout=st.sampled_from(["grid", "sequence"]), cells=st.integers(1, 5), side=st.integers(1, 4))
def test_grouping_is_a_permutation_and_is_undone(layout, cells, side):
    size = (cells * side) ** 2
    model = VQBridge(size, 2, heads=1, patch=side**2, layout=layout)
    codebook = torch.arange(2.0 * size).reshape(size, 2)
    tokens = model._patchify(codebook)
    assert tokens.shape == (cells**2, side**2 * 2)
    assert torch.equal(tokens.flatten().sort().values, codebook.flatten())
    assert torch.equal(model._unpatchify(tokens), codebook)


def test_grid_groups_squares_of_the_index_grid():
    model = VQBridge(16384, 1, heads=1)
    assert model.patch == 16
    tokens = model._patchify(torch.arange(16384.0)[:, None]).int()
    assert tokens[0].tolist() == [*range(4), *range(128, 132), *range(256, 260), *range(384, 388)]
    assert tokens[1, :5].tolist() == [4, 5, 6, 7, 132]
    assert tokens[32, 0] == 4 * 128
    assert tokens[-1, -1] == 16383


def test_sequence_groups_consecutive_codes():
    tokens = bridge(dim=3, heads=3, layout="sequence")._patchify(torch.arange(192.0).reshape(64, 3))
    assert torch.equal(tokens, torch.arange(192.0).reshape(16, 12))


def test_sequence_takes_any_multiple_of_the_patch():
    assert bridge(1000, layout="sequence")(torch.randn(1000, 4)).shape == (1000, 4)


@pytest.mark.parametrize("layout", ["grid", "sequence"])
def test_every_code_starts_at_the_origin(layout):
    torch.manual_seed(0)
    assert torch.equal(bridge(layout=layout)(torch.randn(64, 4)), torch.zeros(64, 4))


@pytest.mark.parametrize("layout", ["grid", "sequence"])
def test_one_chosen_code_moves_every_code(layout):
    """What the bridge is for: the gradient of any mapped code reaches all raw codes and all weights."""
    torch.manual_seed(0)
    model, codebook = bridge(layout=layout), torch.randn(64, 4, requires_grad=True)
    torch.nn.init.normal_(model.expand.weight)
    model(codebook)[5].square().sum().backward()
    assert (codebook.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_last_layer_learns_from_its_zero_start():
    torch.manual_seed(0)
    model, codebook = bridge(), torch.randn(64, 4, requires_grad=True)
    (model(codebook) - 1).square().sum().backward()
    assert model.expand.weight.grad.abs().sum() > 0
    assert codebook.grad.abs().sum() == 0


def test_a_code_knows_its_place_in_its_group():
    torch.manual_seed(0)
    model = bridge()
    torch.nn.init.normal_(model.expand.weight)
    codes = model(torch.ones(64, 4))
    assert not torch.allclose(codes[0], codes[1])
    assert torch.allclose(codes[0], codes[2])  # the same place in the group beside it


@pytest.mark.parametrize(("size", "patch", "millions"), [(16384, 16, 3.154), (65536, 64, 9.457), (262144, 64, 9.457)])
def test_sizes_as_published(size, patch, millions):
    with torch.device("meta"):
        model = VQBridge(size, 256)
    assert model.patch == patch
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("size", "patch"), [(2, 4), (1024, 4), (4096, 4), (16384, 16), (65536, 64), (262144, 64), (2**24, 64)]
)
def test_default_patch(size, patch):
    assert default_patch(size) == patch


def test_width_is_the_code_dimension_unless_given():
    assert bridge().compress.out_features == 4
    assert bridge(width=10).compress.out_features == 10


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), side=st.integers(1, 8), layout=st.sampled_from(["grid", "sequence"]))
def test_the_sizes_that_a_refusal_names_work_and_are_the_nearest(size, side, layout):
    patch = side**2

    def works(candidate):
        try:
            check_bridge_sizes(candidate, width=4, heads=2, patch=patch, layout=layout)
        except ValueError as error:
            assert f"codebook_size {candidate} is not divisible by the bridge's patch of {patch}" in str(error)
            return str(error)
        return None

    refusal = works(size)
    if refusal is None:
        return
    named = [
        int(number)
        for number in re.findall(r"\d+", re.search(r"size(?:s|) that works? (?:is|are) ([\d and]+)", refusal)[1])
    ]
    assert all(works(candidate) is None for candidate in named)
    between = range(named[0] + 1, named[1]) if len(named) == 2 else range(1, named[0])
    assert size in between
    assert all(works(candidate) for candidate in between)


def test_sizes_named_for_a_thousand_codes():
    with pytest.raises(ValueError, match="the nearest sizes that work are 900 and 1024"):
        VQBridge(1000, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width 4 is not divisible by 3 heads"),
        ({"width": 9}, "width 9 is not divisible by 2 heads"),
        ({"patch": 8}, r"the grid layout needs a square patch \(1, 4, 16, 64, …\), not 8"),
        ({"layout": "gird"}, "layout must be 'grid' or 'sequence', not 'gird'"),
        ({"size": 0}, "codebook_size must be at least 1, not 0"),
        ({"size": -64}, "codebook_size must be at least 1, not -64"),
        ({"dim": 0}, "code_dim must be at least 1, not 0"),
        ({"dim": -4}, "code_dim must be at least 1, not -4"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"patch": 0}, "patch must be at least 1, not 0"),
        ({"patch": -4}, "patch must be at least 1, not -4"),
        ({"heads": 0}, "heads must be at least 1, not 0"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio 0.0 leaves no channel"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        bridge(**changes)
