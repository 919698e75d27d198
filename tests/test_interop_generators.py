"""LlamaGen's checkpoints against the published forward pass, by its names, in float64; there and back; bad files."""

import argparse
import json
import math

import pytest
import torch

from fvq.generate import LlamaGen
from fvq.generate.sizes import published_config
from fvq.interop.generators import generator_of
from fvq.interop.reading import read_checkpoint

WIDTH, DEPTH, HEADS, INNER = 48, 3, 4, 256
VOCABULARY, CLASSES = 60, 10


def state_dict(width=WIDTH, depth=DEPTH, inner=INNER, vocabulary=VOCABULARY, rows=CLASSES + 1):
    """A class-conditional LlamaGen of the published names; large weights, or all logits would be alike."""
    random = torch.Generator().manual_seed(3)

    def weights(*shape, std=None):
        return torch.randn(shape, generator=random) * (std or shape[-1] ** -0.5)

    state = {
        "cls_embedding.embedding_table.weight": weights(rows, width, std=1.0),
        "tok_embeddings.weight": weights(vocabulary, width, std=1.0),
    }
    for layer in range(depth):
        state[f"layers.{layer}.attention.wqkv.weight"] = weights(3 * width, width)
        state[f"layers.{layer}.attention.wo.weight"] = weights(width, width)
        state[f"layers.{layer}.feed_forward.w1.weight"] = weights(inner, width)
        state[f"layers.{layer}.feed_forward.w3.weight"] = weights(inner, width)
        state[f"layers.{layer}.feed_forward.w2.weight"] = weights(width, inner)
        state[f"layers.{layer}.attention_norm.weight"] = 1 + weights(width, std=0.2)
        state[f"layers.{layer}.ffn_norm.weight"] = 1 + weights(width, std=0.2)
    return {**state, "norm.weight": 1 + weights(width, std=0.2), "output.weight": weights(vocabulary, width)}


STATE = state_dict()


def published_logits(state, labels, tokens, *, heads, grid):
    """Logits (B, T, K) float64 of labels (B,) and tokens (B, T): no cache, one head at a time."""
    state = {name: tensor.double() for name, tensor in state.items()}
    embedded = state["tok_embeddings.weight"][tokens[:, :-1]]
    x = torch.cat([state["cls_embedding.embedding_table.weight"][labels][:, None], embedded], dim=1)
    length, width = x.shape[1:]
    turns = published_positions(grid, width // heads)[:length]
    hidden = torch.ones(length, length).triu(1).bool()
    for layer in range(sum(name.endswith("attention.wo.weight") for name in state)):
        at = f"layers.{layer}."
        y = rms_norm(x, state[at + "attention_norm.weight"])
        query, key, value = (
            part.chunk(heads, dim=2) for part in (y @ state[at + "attention.wqkv.weight"].T).chunk(3, 2)
        )
        mixed = []
        for head in range(heads):
            scores = turned(query[head], turns) @ turned(key[head], turns).mT / math.sqrt(width // heads)
            mixed.append(scores.masked_fill(hidden, -math.inf).softmax(dim=2) @ value[head])
        x = x + torch.cat(mixed, dim=2) @ state[at + "attention.wo.weight"].T
        y = rms_norm(x, state[at + "ffn_norm.weight"])
        gate = y @ state[at + "feed_forward.w1.weight"].T
        gated = gate / (1 + torch.exp(-gate)) * (y @ state[at + "feed_forward.w3.weight"].T)
        x = x + gated @ state[at + "feed_forward.w2.weight"].T
    return rms_norm(x, state["norm.weight"]) @ state["output.weight"].T


def rms_norm(x, weight):
    return x * (x.square().mean(dim=2, keepdim=True) + 1e-5).rsqrt() * weight


def published_positions(grid, channels):
    """Complex (1 + h*w, channels / 2): zero for the class, then turns by row in one half, by column in the other."""
    rates = [10000 ** (-2 * number / (channels // 2)) for number in range(channels // 4)]
    turns = [[0j] * (channels // 2)]
    for row in range(grid[0]):
        for column in range(grid[1]):
            angles = [row * rate for rate in rates] + [column * rate for rate in rates]
            turns.append([complex(math.cos(angle), math.sin(angle)) for angle in angles])
    return torch.tensor(turns, dtype=torch.complex128)


def turned(x, turns):
    return torch.view_as_real(torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous()) * turns).flatten(2)


def inputs(grid, batch=2, length=None, classes=CLASSES, vocabulary=VOCABULARY):
    random = torch.Generator().manual_seed(7)
    length = length or grid[0] * grid[1]
    labels = torch.randint(classes + 1, (batch,), generator=random)  # the null class among them
    return labels, torch.randint(vocabulary, (batch, length), generator=random)


def ddp(state, **arguments):
    """As train_c2i.py saves, with the defaults of its options."""
    known = {
        "gpt_model": "GPT-B",
        "gpt_type": "c2i",
        "vocab_size": 16384,
        "cls_token_num": 1,
        "dropout_p": 0.1,
        "token_dropout_p": 0.1,
        "drop_path_rate": 0.0,
        "image_size": 256,
        "downsample_size": 16,
        "num_classes": CLASSES,
        "results_dir": "results",
    }
    args = argparse.Namespace(**{**known, **arguments})
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "steps": 5, "args": args}


def imported(path, content, *, heads=HEADS, grid=None, ema=False):
    torch.save(content, path)
    return generator_of(read_checkpoint(path, ema=ema), heads=heads, grid=grid)


def assert_published(generator, state, *, length=None):
    config = generator.config
    labels, tokens = inputs(config.grid, length=length)
    expected = published_logits(state, labels, tokens, heads=config.heads, grid=config.grid)
    assert expected.std() > 0.5
    with torch.no_grad():
        torch.testing.assert_close(generator(labels, tokens).double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(generator.double()(labels, tokens), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("content", "grid", "length"),
    [
        (ddp(STATE), (16, 16), None),
        (ddp(STATE, image_size=384), (24, 24), 80),  # three rows and a bit
        (STATE, (16, 16), 60),  # consolidated, as FSDP saves
    ],
)
def test_logits_are_those_of_the_published_forward_pass(content, grid, length, tmp_path):
    found = imported(tmp_path / "published.pt", content)
    assert found.generator.config.grid == grid
    assert found.grid_told == ("args" in content)
    assert not found.generator.training
    assert_published(found.generator, STATE, length=length)


def test_any_grid(tmp_path):
    found = imported(tmp_path / "consolidated.pth", STATE, grid=(5, 9))
    assert found.grid_told and found.generator.config.grid == (5, 9)
    assert_published(found.generator, STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["model", "module", "state_dict", None])
def test_forms_of_a_file(prefix, key, tmp_path):
    state = {prefix + name: tensor for name, tensor in {**STATE, "freqs_cis": torch.zeros(257, 6, 2)}.items()}
    found = imported(tmp_path / "published.pt", {key: state, "steps": 3} if key else state)
    assert found.left_out == (("steps", "freqs_cis") if key else ("freqs_cis",))
    kept = found.generator.state_dict()
    assert kept.keys() == STATE.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in STATE.items())


def test_averaged_weights(tmp_path):
    content = {**ddp(STATE), "ema": {name: 2 * tensor for name, tensor in STATE.items()}}
    taken, averaged = (imported(tmp_path / "a.pt", content, ema=ema) for ema in (False, True))
    assert taken.left_out == ("optimizer", "steps", "args", "ema")
    assert averaged.left_out == ("model", "optimizer", "steps", "args")
    assert torch.equal(taken.generator.output.weight * 2, averaged.generator.output.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_of_the_same_values(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    state["norm.weight"] = STATE["norm.weight"]
    found = imported(tmp_path / "half.pt", ddp(state))
    assert found.dtypes == tuple(sorted(["float32", str(dtype)[6:]]))
    for name, tensor in found.generator.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[name].float())
    assert_published(found.generator, state, length=40)


def test_dropouts_come_from_the_arguments(tmp_path):
    path = tmp_path / "a.pt"
    usual = imported(path, STATE).generator.config
    assert (usual.class_dropout, usual.token_dropout, usual.residual_dropout, usual.feedforward_dropout) == (0.1,) * 4
    assert usual.drop_path == 0
    config = imported(path, ddp(STATE, dropout_p=0.2, token_dropout_p=0.3)).generator.config
    assert (config.token_dropout, config.residual_dropout, config.feedforward_dropout) == (0.3, 0.2, 0.2)
    config = imported(path, ddp(STATE, dropout_p=0.2, drop_path_rate=0.15)).generator.config  # then no dropout
    assert (config.drop_path, config.residual_dropout, config.feedforward_dropout) == (0.15, 0, 0)


@pytest.mark.parametrize("told", [{}, {"class_dropout_prob": 0.0}])
def test_a_table_without_null_class(told, tmp_path):
    """Of a training that hid no classes: there is nothing to guide with, and all classes stay."""
    state = state_dict(rows=CLASSES)
    found = imported(tmp_path / "a.pt", ddp(state, **told))
    assert not found.null_class
    assert (found.generator.config.classes, found.generator.config.class_dropout) == (CLASSES, 0)
    table = found.generator.cls_embedding.embedding_table.weight
    assert torch.equal(table[:CLASSES], state["cls_embedding.embedding_table.weight"]) and not table[CLASSES].any()


@pytest.mark.parametrize(("inner", "multiple"), [(256, 256), (128, 128), (131, 131), (512, 512)])
def test_feedforward_widths(inner, multiple, tmp_path):
    config = imported(tmp_path / "a.pt", state_dict(inner=inner, depth=1)).generator.config
    assert (config.feedforward_width, config.feedforward_multiple_of) == (inner, multiple)


def test_heads_of_published_sizes(tmp_path):
    """By width and depth, or by the model's name where the depth is another; what is given must not contradict."""
    big = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in big_state("B").items()}
    assert imported(tmp_path / "a.pt", big, heads=None).generator.config.heads == 12
    shallow = {name: tensor for name, tensor in big.items() if not name.startswith(("layers.10.", "layers.11."))}
    assert imported(tmp_path / "a.pt", ddp(shallow, num_classes=1000), heads=None).generator.config.heads == 12


def big_state(name):
    with torch.device("meta"):
        return LlamaGen(published_config(name, vocabulary_size=64)).state_dict()


@pytest.fixture
def refused(fvq, tmp_path):
    """An import that must fail: its one line; what the output held stays."""

    def run(content, *options, status=1):
        torch.save(content, "bad.pt")
        (tmp_path / "kept.safetensors").write_bytes(b"before")
        found, out, err = fvq("import-checkpoint", "bad.pt", "-o", "kept.safetensors", "--force", *options)
        assert found == status and out == "", (found, out, err)
        assert err.startswith("fvq: error: ") and err.count("\n") == 1
        assert (tmp_path / "kept.safetensors").read_bytes() == b"before"
        return err

    return run


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


QUERY_KEY_VALUE = "layers.0.attention.wqkv.weight"
TABLE = "cls_embedding.embedding_table.weight"
TEXT = {"cls_embedding.cap_proj.fc1.weight": torch.zeros(4, 2), "cls_embedding.uncond_embedding": torch.zeros(120, 2)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**without(STATE, TABLE), **TEXT}, "generates from text (cls_embedding.cap_proj.fc1.weight); only class-"),
        (without(STATE, TABLE), f"no class-conditional LlamaGen: {TABLE} is missing"),
        (without(STATE, "tok_embeddings.weight"), "no class-conditional LlamaGen: tok_embeddings.weight is missing"),
        (without(STATE, "output.weight"), "no class-conditional LlamaGen; tensors: 1 missing (output.weight)"),
        (
            {**STATE, "lm_head.bias": torch.zeros(1)},
            "no class-conditional LlamaGen; tensors: 1 unexpected (lm_head.bias)",
        ),
        ({**STATE, "module.norm.weight": STATE["norm.weight"]}, "has norm.weight twice, with and without a prefix"),
        ({**STATE, QUERY_KEY_VALUE: torch.zeros(96, WIDTH)}, f"{QUERY_KEY_VALUE} has 96 rows, not 3 * 48: keys and va"),
        ({**STATE, "output.weight": torch.zeros(61, WIDTH)}, "output.weight is (61, 48) and must be (60, 48)"),
        ({**STATE, TABLE: torch.zeros(3)}, f"{TABLE} is (3,) and must have 2 dimensions"),
        (
            {**STATE, "norm.weight": torch.ones(WIDTH).double()},
            "norm.weight is float64; float32, bfloat16, float16 are",
        ),
        (state_dict(inner=127), "layers.0.feed_forward.w1.weight has 127 rows, fewer than 2/3 of 4 * 48"),
        (ddp(STATE, num_classes=1000), f"{TABLE} has 11 rows, but its arguments tell 1000 classes"),
        (ddp(STATE, cls_token_num=2), "its arguments tell 2 class tokens (cls_token_num), not 1"),
        (ddp(STATE, image_size="large"), "its argument image_size is 'large', not a number"),
        (ddp(STATE, image_size=8), "its arguments tell images of 8 pixels at ratio 16"),
        (ddp(STATE, token_dropout_p=1.5), "token_dropout: should be less than 1, not 1.5"),
    ],
)
def test_checkpoints_that_are_no_such_generator(refused, content, message):
    assert f"bad.pt: {message}" in refused(content, "--heads", HEADS)


def test_heads_that_tensors_cannot_tell(refused):
    assert "bad.pt: 3 blocks of width 48 are no published size; give its --heads" in refused(STATE)
    assert "width (48) must be divisible by heads (5)" in refused(STATE, "--heads", 5)
    assert "width / heads (6) must be divisible by 4" in refused(STATE, "--heads", 8)
    big = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in big_state("B").items()}
    assert "a GPT-B of 12 heads, not 8 (--heads)" in refused(ddp(big, num_classes=1000), "--heads", 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "fvq"], "bad.pt: holds a generator, which knows no --layout"),
        (["--image-size", 256], "bad.pt: holds a generator, which knows no --image-size"),
        (["--grid", "24"], "bad.pt: its arguments tell a grid of 16x16, not 24x24 (--grid)"),
        (["--grid", "16x"], "--grid: '16x' is neither a number of rows and columns (24) nor both (24x32)"),
        (["--grid", "0"], "--grid: '0' is neither"),
        (["--codebook-size", 16384], "bad.pt: has a codebook of 60 codes, not 16,384 (--codebook-size)"),
        (["--ema"], "bad.pt: holds no ema, but model, optimizer, steps and 1 more"),
    ],
)
def test_options_that_do_not_fit(refused, options, message):
    assert message in refused(ddp(STATE), "--heads", HEADS, *options)


def test_an_import_says_what_it_is(fvq, tmp_path):
    torch.save({name: tensor.bfloat16() for name, tensor in STATE.items()}, "consolidated.pth")
    status, out, err = fvq("import-checkpoint", "consolidated.pth", "-o", "here/generator.safetensors", "--heads", 4)
    assert (status, err) == (0, "")
    parameters = sum(tensor.numel() for tensor in STATE.values())
    assert out.splitlines() == [
        "LlamaGen of no published size",
        "3 blocks of width 48, 4 heads, feed-forward width 256",
        "vocabulary 60; 10 classes and the null class",
        "grid 16x16: 256 tokens (the file does not tell; --grid sets another)",
        f"{parameters:,} parameters",
        "bfloat16 became float32, of the same values",
        "left out: nothing",
        "wrote here/generator.safetensors (the generator)",
        "wrote here/generator.safetensors.provenance.json (how it came about)",
    ]
    assert LlamaGen.load("here/generator.safetensors").config.vocabulary_size == 60
    record = json.loads((tmp_path / "here/generator.safetensors.provenance.json").read_text(encoding="utf-8"))
    assert record["stage"] == "fvq import-checkpoint" and record["parameters"]["dtypes"] == ["bfloat16"]
    assert list(record["inputs"]) == ["consolidated.pth"]


def test_a_published_size_is_named(fvq):
    big = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in big_state("B").items()}
    torch.save(ddp(big, num_classes=1000), "c2i_B_384.pt")
    status, out, err = fvq("import-checkpoint", "c2i_B_384.pt", "-o", "b.safetensors", "--codebook-size", 64)
    assert (status, err) == (0, "")
    assert out.splitlines()[:4] == [
        "LlamaGen-B",
        "12 blocks of width 768, 12 heads, feed-forward width 2048",
        "vocabulary 64; 1,000 classes and the null class",
        "grid 16x16: 256 tokens",
    ]


def test_there_and_back(fvq):
    torch.save(ddp(STATE), "published.pt")
    assert fvq("import-checkpoint", "published.pt", "-o", "ours.safetensors", "--heads", HEADS)[0] == 0
    status, out, _ = fvq("export-checkpoint", "ours.safetensors", "-o", "back.pt")
    assert status == 0
    assert out.splitlines() == [
        "the published code reads it as Transformer with dim=48, n_layer=3, n_head=4, vocab_size=60, block_size=256, "
        "num_classes=10",
        "wrote back.pt (LlamaGen's layout)",
        "wrote back.pt.provenance.json (how it came about)",
    ]
    back = torch.load("back.pt", weights_only=True)
    assert back.keys() == {"model"} and back["model"].keys() == STATE.keys()
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in STATE.items())
    status, _, err = fvq("export-checkpoint", "ours.safetensors", "-o", "back.pt")
    assert status == 1 and "back.pt: exists already; --force overwrites it" in err


def test_the_published_code_has_square_grids(fvq, tmp_path):
    torch.save(STATE, "wide.pt")
    assert fvq("import-checkpoint", "wide.pt", "-o", "wide.safetensors", "--heads", HEADS, "--grid", "8x16")[0] == 0
    status, out, err = fvq("export-checkpoint", "wide.safetensors", "-o", "wide.pt", "--force")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert "wide.safetensors: grid 8x16: LlamaGen's layout has as many rows as columns" in err
    assert torch.load("wide.pt", weights_only=True).keys() == STATE.keys()
