"""VQBridge: the groups of codes, the start, the gradients, both blocks, the published sizes, the refusals."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fvq.quantize import VQBridge, default_patch
from fvq.quantize.bridge import check_bridge_sizes

both_layouts = pytest.mark.parametrize("layout", ["grid", "sequence"])
both_blocks = pytest.mark.parametrize("block", ["vit", "dit"])


def bridge(size=64, dim=4, **changes):
    return VQBridge(size, dim, **{"heads": 2, "patch": 4, **changes})


def random_bridge(**changes):
    """A bridge in the midst of training: nothing is zero any more."""
    torch.manual_seed(0)
    model = bridge(**changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


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


@both_blocks
@both_layouts
def test_every_code_starts_at_the_origin(layout, block):
    torch.manual_seed(0)
    assert torch.equal(bridge(layout=layout, block=block)(torch.randn(64, 4)), torch.zeros(64, 4))


@both_blocks
@both_layouts
def test_one_chosen_code_moves_every_code(layout, block):
    """What the bridge is for: the gradient of any mapped code reaches all raw codes and all weights."""
    model, codebook = random_bridge(layout=layout, block=block), torch.randn(64, 4, requires_grad=True)
    model(codebook)[5].square().sum().backward()
    assert (codebook.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@both_blocks
def test_every_weight_leaves_its_start(block):
    """The zeros at the start hold the gradient back for a step or two, not for good."""
    torch.manual_seed(0)
    model, codebook, wanted = bridge(block=block), torch.randn(64, 4), torch.randn(64, 4)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(5):
        model.zero_grad()
        (model(codebook) - wanted).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])]


def test_the_last_layer_learns_from_its_zero_start():
    torch.manual_seed(0)
    model, codebook = bridge(), torch.randn(64, 4, requires_grad=True)
    (model(codebook) - 1).square().sum().backward()
    assert model.expand.weight.grad.abs().sum() > 0
    assert codebook.grad.abs().sum() == 0


@both_layouts
def test_a_code_knows_its_place_in_its_group(layout):
    codes = random_bridge(layout=layout)(torch.ones(64, 4))
    beside = 2 if layout == "grid" else 4  # the same place in the group beside it
    assert not torch.allclose(codes[0], codes[1])
    assert torch.allclose(codes[0], codes[beside])


@both_layouts
def test_the_dit_block_knows_the_place_of_the_group(layout):
    model = random_bridge(layout=layout, block="dit")
    tokens = model._patchify(model(torch.ones(64, 4)))
    assert torch.pdist(tokens).min() > 1e-3


@pytest.mark.parametrize(("size", "width"), [(64, 4), (256, 8), (36, 12)])
def test_positions_of_the_grid(size, width):
    """The column's sines and cosines, then the row's, as in MAE and DiT."""
    model = bridge(size, width=width, heads=1, block="dit")
    cells = math.isqrt(size // 4)

    def channel(token, number):
        row, column = divmod(token, cells)
        part, number = divmod(number, width // 2)
        wave, number = divmod(number, width // 4)
        angle = (column, row)[part] / 10000 ** (number / (width / 4))
        return (math.sin, math.cos)[wave](angle)

    expected = [[channel(token, number) for number in range(width)] for token in range(size // 4)]
    torch.testing.assert_close(model.positions_td, torch.tensor(expected))


def test_positions_of_the_sequence():
    model = bridge(1000, width=6, heads=1, layout="sequence", block="dit")
    angles = [[token / 10000 ** (number / 3) for number in range(3)] for token in range(250)]
    expected = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
    torch.testing.assert_close(model.positions_td, torch.tensor(expected))


def reference(model, codebook, groups, label):
    """Both blocks in float64, token by token and head by head: the codes (T, p, d) of groups of code numbers (T, p)."""
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    heads = model.blocks[0].heads

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(x):
        return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()

    def changes(name, width):
        if model.block == "vit":
            return [torch.zeros(width), torch.zeros(width), torch.ones(width)] * 2
        embedding = weights["labels.weight"][label]
        return linear(f"{name}modulation", embedding * torch.sigmoid(embedding)).split(width)

    def attend(name, tokens):
        width = len(tokens[0])
        channels = width // heads
        mixed = [torch.zeros_like(token) for token in tokens]
        qkv = [linear(f"{name}attention_in", token) for token in tokens]
        for start in range(0, width, channels):
            part = slice(start, start + channels)
            queries = [x[:width][part] for x in qkv]
            keys = torch.stack([x[width : 2 * width][part] for x in qkv])
            values = torch.stack([x[2 * width :][part] for x in qkv])
            for token, query in enumerate(queries):
                mixed[token][part] = torch.softmax(keys @ query / math.sqrt(channels), 0) @ values
        return [linear(f"{name}attention_out", x) for x in mixed]

    def feed_forward(name, x):
        hidden = linear(f"{name}mlp_in", x)
        gelu = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return linear(f"{name}mlp_out", gelu)

    tokens = [linear("compress", codebook[group].double().flatten()) for group in groups]
    if model.block == "dit":
        tokens = [token + place.double() for token, place in zip(tokens, model.positions_td, strict=True)]
    width = len(tokens[0])
    for number in range(len(model.blocks)):
        name = f"blocks.{number}."
        shift, scale, gate, *mlp = changes(name, width)
        attended = attend(name, [norm(x) * (1 + scale) + shift for x in tokens])
        tokens = [x + gate * y for x, y in zip(tokens, attended, strict=True)]
        shift, scale, gate = mlp
        tokens = [x + gate * feed_forward(name, norm(x) * (1 + scale) + shift) for x in tokens]
    shift, scale = changes("", width)[:2]
    return torch.stack([linear("expand", norm(x) * (1 + scale) + shift) for x in tokens])


@both_blocks
@both_layouts
def test_what_it_computes(layout, block):
    """Against plain arithmetic; 36 codes in groups of 4."""
    model = random_bridge(
        size=36, dim=3, width=8, layout=layout, block=block, **({"classes": 3} if block == "dit" else {})
    )
    codebook, label = torch.randn(36, 3), 1 if block == "dit" else None
    corners = [12 * (cell // 3) + 2 * (cell % 3) for cell in range(9)]
    groups = [[i, i + 1, i + 6, i + 7] for i in corners] if layout == "grid" else torch.arange(36).view(9, 4).tolist()
    expected = torch.empty(36, 3, dtype=torch.float64)
    expected[torch.tensor(groups)] = reference(model, codebook, groups, label).view(9, 4, 3)
    torch.testing.assert_close(model(codebook, label).double(), expected, rtol=1e-4, atol=1e-4)


def test_labels_give_codebooks_of_their_own_and_the_last_is_the_default():
    model, codebook = random_bridge(block="dit", classes=2), torch.randn(64, 4)
    codes = [model(codebook, label) for label in range(3)]
    assert torch.equal(model(codebook), codes[2])
    assert not torch.allclose(codes[0], codes[1])
    assert not torch.allclose(codes[1], codes[2])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_none(label):
    with pytest.raises(ValueError, match=f"label must lie in 0 to 2, not {label}"):
        bridge(block="dit", classes=2)(torch.randn(64, 4), label)


def test_the_vit_block_takes_no_label():
    with pytest.raises(ValueError, match="the block vit takes no label, but was given 0"):
        bridge()(torch.randn(64, 4), 0)


@both_layouts
@pytest.mark.parametrize("shape", [(128, 4), (64, 8), (1, 64, 4)])
def test_a_codebook_of_another_shape(layout, shape):
    with pytest.raises(ValueError, match=re.escape(f"the codebook must be (64, 4), not {shape}")):
        bridge(layout=layout)(torch.randn(shape))


@both_blocks
def test_a_state_saves_and_loads(block):
    model, codebook = random_bridge(block=block), torch.randn(64, 4)
    other = bridge(block=block)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(codebook), model(codebook))
    # What follows from the sizes is no weight.
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("size", "patch", "millions"), [(16384, 16, 3.154), (65536, 64, 9.457), (262144, 64, 9.457)])
def test_sizes_as_published(size, patch, millions):
    with torch.device("meta"):
        model = VQBridge(size, 256)
    assert model.patch == patch
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize(("size", "millions"), [(16384, 4.34), (262144, 11.4)])
def test_sizes_as_released(size, millions):
    """The released figures count the fixed positions, and belong to a bridge without classes."""
    with torch.device("meta"):
        model = VQBridge(size, 256, block="dit")
    count = sum(parameter.numel() for parameter in model.parameters()) + model.positions_td.numel()
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions > 10 else 0.005)
    assert len(model.labels.weight) == 1


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
        ({"heads": 3}, "width 4 is not divisible by 3 heads; the nearest sizes that work are 3 and 6"),
        ({"heads": 5}, r"the smallest size that works is 5 \(the width is the code dimension unless given\)"),
        ({"width": 9}, "width 9 is not divisible by 2 heads; the nearest sizes that work are 8 and 10"),
        ({"width": 9, "block": "dit"}, "width 9 is not divisible by 2 heads; .* are 8 and 12"),
        ({"width": 6, "block": "dit"}, "width 6 is not divisible by 4, as its grid positions need; .* are 4 and 8"),
        (
            {"width": 9, "heads": 3, "block": "dit", "layout": "sequence"},
            "width 9 is not divisible by 2, as its sequence positions need; .* are 6 and 12",
        ),
        ({"patch": 8}, r"the grid layout needs a square patch \(1, 4, 16, 64, …\), not 8"),
        ({"layout": "gird"}, "layout must be 'grid' or 'sequence', not 'gird'"),
        ({"block": "DiT"}, "block must be 'vit' or 'dit', not 'DiT'"),
        ({"classes": -1, "block": "dit"}, "classes must be at least 0, not -1"),
        ({"classes": 10}, "classes must be 0 with the block vit, not 10"),
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
