"""The transformer: against the published forward pass written out, causality, initial state, files, bad settings."""

import math

import pytest
import torch
from pydantic import ValidationError

from fvq.generate import LlamaGen, LlamaGenConfig
from fvq.generate.llamagen import DropPath
from fvq.generate.rotary import rotary_table, rotate
from fvq.runtime.errors import UserError
from fvq.runtime.weights import save_weights

SETTINGS = {
    "vocabulary_size": 23,
    "classes": 5,
    "grid": (2, 3),
    "width": 32,
    "depth": 2,
    "heads": 4,
    "feedforward_multiple_of": 16,
    "class_dropout": 0.1,
    "token_dropout": 0.1,
    "residual_dropout": 0.1,
    "feedforward_dropout": 0.1,
}


def small_config(**changes) -> LlamaGenConfig:
    return LlamaGenConfig(**{**SETTINGS, **changes})


def random_model(seed: int = 0, **changes) -> LlamaGen:
    """With large weights everywhere: the initial output layer is zero, and all logits with it."""
    torch.manual_seed(seed)
    model = LlamaGen(small_config(**changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def random_inputs(model: LlamaGen, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    return torch.randint(config.classes, (batch,)), torch.randint(config.vocabulary_size, (batch, config.tokens))


def published_logits(model: LlamaGen, label: int, tokens: list[int]) -> torch.Tensor:
    """LlamaGen's forward pass of one image, token by token and head by head, in float64."""
    config, weights = model.config, model.state_dict()
    width, heads, size = config.width, config.heads, config.width // config.heads

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean() + 1e-5) * weights[name]

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        if position == 0:  # the published table has cosine 0 and sine 0 for the class token
            return torch.zeros_like(x)
        row, column = divmod(position - 1, config.grid[1])
        out = x.clone()
        for pair in range(size // 2):
            place, number = (row, pair) if pair < size // 4 else (column, pair - size // 4)
            angle = place / 10000 ** (2 * number / (size // 2))
            a, b = x[2 * pair], x[2 * pair + 1]
            out[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
        return out

    stream = [weights["cls_embedding.embedding_table.weight"][label]]
    stream += [weights["tok_embeddings.weight"][token] for token in tokens[:-1]]
    for layer in range(config.depth):
        of = f"layers.{layer}."
        qkv = [weights[of + "attention.wqkv.weight"] @ norm(x, of + "attention_norm.weight") for x in stream]
        added = []
        for position in range(len(stream)):
            mixed = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                query = turned(qkv[position][:width][part], position)
                keys = [turned(qkv[i][width : 2 * width][part], i) for i in range(position + 1)]
                values = torch.stack([qkv[i][2 * width :][part] for i in range(position + 1)])
                mixed.append(torch.softmax(torch.stack([query @ key for key in keys]) / size**0.5, 0) @ values)
            added.append(weights[of + "attention.wo.weight"] @ torch.cat(mixed))
        stream = [x + y for x, y in zip(stream, added, strict=True)]
        for position, x in enumerate(stream):
            y = norm(x, of + "ffn_norm.weight")
            gate = weights[of + "feed_forward.w1.weight"] @ y
            inner = gate * torch.sigmoid(gate) * (weights[of + "feed_forward.w3.weight"] @ y)
            stream[position] = x + weights[of + "feed_forward.w2.weight"] @ inner
    return torch.stack([weights["output.weight"] @ norm(x, "norm.weight") for x in stream])


def test_logits_equal_the_published_forward_pass():
    model = random_model().double()
    labels, tokens = random_inputs(model, batch=3)
    expected = torch.stack([published_logits(model, int(i), t.tolist()) for i, t in zip(labels, tokens, strict=True)])
    with torch.no_grad():
        logits = model(labels, tokens)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(model.float()(labels, tokens).double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_rotary_positions_of_a_grid():
    table = rotary_table((2, 3), head_width=8, base=100.0)
    assert table.shape == (7, 4, 2)
    assert not table[0].any()
    angles = torch.atan2(table[1:, :, 1], table[1:, :, 0]).reshape(2, 3, 4)
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    torch.testing.assert_close(angles, torch.stack([rows, rows / 10, columns, columns / 10], dim=-1))


def test_half_precision_keeps_positions_exact():
    model = random_model().bfloat16()
    assert model.table.dtype == torch.float32
    assert torch.equal(model.table, rotary_table((2, 3), head_width=8, base=10000.0))
    x = torch.randn(2, 7, 4, 8).bfloat16()
    turned = rotate(x, model.table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.double(), model.table.double()).bfloat16())
    assert torch.equal(turned[:, 1], x[:, 1])  # row 0, column 0
    logits = model(*random_inputs(model))
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_compiled_under_bfloat16_autocast():
    model = random_model(drop_path=0.2).train()
    labels, tokens = random_inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = compiled(labels, tokens)
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        exact = model(labels, tokens)
        torch.testing.assert_close(compiled(labels, tokens), exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(compiled(labels, tokens).float(), exact, rtol=0, atol=0.05 * exact.abs().max())


def test_a_model_comes_from_the_meta_device():
    torch.manual_seed(0)
    model = random_model()
    with torch.device("meta"):
        blank = LlamaGen(model.config)
    labels, tokens = random_inputs(model)
    assert blank(labels.to("meta"), tokens.to("meta")).shape == (4, 6, 23)
    blank.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(blank.eval()(labels, tokens), model(labels, tokens))


def test_a_token_changes_only_what_comes_after_it():
    model = random_model()
    labels, tokens = random_inputs(model)
    with torch.no_grad():
        before = model(labels, tokens)
        for position in range(model.config.tokens):
            changed = tokens.clone()
            changed[:, position] = (changed[:, position] + 1) % model.config.vocabulary_size
            after = model(labels, changed)
            torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1], rtol=0, atol=1e-5)
            if position + 1 < model.config.tokens:
                assert (after[:, position + 1] - before[:, position + 1]).abs().amax(1).min() > 1e-2


def test_initial_weights():
    torch.manual_seed(0)
    model = LlamaGen(small_config(vocabulary_size=300, width=128))
    assert not model.output.weight.any()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and name != "output.weight":
            assert 0.019 < parameter.std() < 0.021, name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
    logits = model.eval()(*random_inputs(model))
    assert logits.shape == (4, 6, 300)
    assert not logits.any()


def test_feedforward_width_is_rounded_up():
    assert small_config(width=768, heads=12, feedforward_multiple_of=256).feedforward_width == 2048
    assert small_config(width=1280, heads=20, feedforward_multiple_of=256).feedforward_width == 3584
    assert small_config(width=128, feedforward_multiple_of=11).feedforward_width == 341


def test_labels_are_hidden_in_training_only():
    model = random_model(class_dropout=0.25)
    labels = torch.arange(4000) % 5
    table = model.cls_embedding.embedding_table.weight
    assert len(table) == 6
    assert torch.equal(model.cls_embedding(labels), table[labels])
    model.train()
    embedded = model.cls_embedding(labels)
    hidden = (embedded == table[5]).all(1)
    assert 0.2 < hidden.float().mean() < 0.3
    assert torch.equal(embedded[~hidden], table[labels[~hidden]])
    embedded.sum().backward()
    assert table.grad is not None
    assert table.grad[5].abs().sum() > 0
    model = random_model(class_dropout=0).train()
    assert torch.equal(model.cls_embedding(labels), model.cls_embedding.embedding_table.weight[labels])


def test_each_dropout_acts_in_training():
    for name in ("token_dropout", "residual_dropout", "feedforward_dropout"):
        off = {"class_dropout": 0.0, "token_dropout": 0.0, "residual_dropout": 0.0, "feedforward_dropout": 0.0}
        model = random_model(**off).train()
        labels, tokens = random_inputs(model)
        assert torch.equal(model(labels, tokens), model(labels, tokens))
        model = random_model(**{**off, name: 0.5}).train()
        assert not torch.equal(model(labels, tokens), model(labels, tokens)), name


def test_drop_path_rises_from_the_first_block_to_the_last():
    model = random_model(depth=4, drop_path=0.3)
    assert [block.drop_path.rate for block in model.layers] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert random_model(depth=1, drop_path=0.3).layers[0].drop_path.rate == 0
    assert LlamaGenConfig(**SETTINGS).drop_path == 0


def test_drop_path_skips_branches_of_whole_images():
    torch.manual_seed(0)
    x = torch.randn(2000, 3, 2)
    drop_path = DropPath(0.25)
    assert torch.equal(drop_path.eval()(x), x)
    ratio = drop_path.train()(x) / x
    kept = ratio[:, 0, 0] > 0
    assert 0.72 < kept.float().mean() < 0.78
    torch.testing.assert_close(ratio, torch.where(kept, 4 / 3, 0.0)[:, None, None].expand_as(ratio))


def test_a_block_whose_branches_are_dropped_does_nothing():
    off = {"class_dropout": 0.0, "token_dropout": 0.0, "residual_dropout": 0.0, "feedforward_dropout": 0.0}
    model = random_model(**off, drop_path=1 - 1e-9).train()
    inputs = random_inputs(model)
    skipped = model(*inputs)
    assert not torch.allclose(skipped, model.eval()(*inputs))
    model.layers = model.layers[:1]
    assert torch.equal(skipped, model(*inputs))


def test_save_and_load(tmp_path):
    model = random_model()
    labels, tokens = random_inputs(model)
    model.save(tmp_path / "generator.safetensors")
    loaded = LlamaGen.load(tmp_path / "generator.safetensors")
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(labels, tokens), model(labels, tokens))
    older = {name: value for name, value in model.config.model_dump(mode="json").items() if name != "drop_path"}
    save_weights(tmp_path / "older.safetensors", model.state_dict(), kind="generator", config=older)
    assert LlamaGen.load(tmp_path / "older.safetensors").config == model.config


def test_bad_files(tmp_path):
    path = tmp_path / "generator.safetensors"
    model = random_model()
    good, config = model.state_dict(), model.config.model_dump(mode="json")
    with pytest.raises(UserError, match=r"generator\.safetensors: no such file"):
        LlamaGen.load(path)
    save_weights(path, good, kind="tokenizer", config=config)
    with pytest.raises(UserError, match=r"generator\.safetensors: holds a tokenizer"):
        LlamaGen.load(path)
    save_weights(path, good, kind="generator", config={**config, "widht": 32})
    with pytest.raises(UserError, match=r"generator\.safetensors: widht: is no known parameter"):
        LlamaGen.load(path)
    save_weights(path, good, kind="generator", config={**config, "vocabulary_size": 24})
    with pytest.raises(UserError, match=r"output\.weight is \(23, 32\) and must be \(24, 32\)"):
        LlamaGen.load(path)
    save_weights(path, {k: v for k, v in good.items() if k != "norm.weight"}, kind="generator", config=config)
    with pytest.raises(UserError, match=r"norm\.weight is None"):
        LlamaGen.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"width \(32\) must be divisible by heads \(3\)"),
        ({"width": 24, "heads": 4}, r"width / heads \(6\) must be divisible by 4"),
        ({"class_dropout": 1.0}, "class_dropout"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"norm_eps": math.inf}, "norm_eps"),
        ({"grid": (2, 0)}, "grid"),
        ({"layers": 2}, "layers"),
    ],
)
def test_bad_configuration(changes, message):
    with pytest.raises(ValidationError, match=message):
        small_config(**changes)
