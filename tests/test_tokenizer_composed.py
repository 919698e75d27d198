"""Tokenizers whose quantizer composes another: several codes a place (RQ-VAE) and coarse to fine maps (VAR)."""

import pytest
import torch
from pydantic import ValidationError
from test_tokenizer_model import BRIDGE, IMAGES, Images, config, tokenizer, uint8_images
from test_tokenizer_training import SCHEDULE, error_of, settings, write_table

from fvq.data.image_table import to_model_range
from fvq.quantize.usage import code_counts, usage_figures
from fvq.tokenizer import Tokenizer
from fvq.tokenizer.freezing import compare_tokenizers, freeze_tokenizer
from fvq.tokenizer.inference import decode_tokens, encode_views, reconstruct
from fvq.tokenizer.training import train_tokenizer

INNER = ("vq", "linear", "simvq", "mlp5", "fvq")
OWN = {"residual": {"depth": 3}, "multiscale": {"scales": (1, 2, 4)}}
SHAPES = {"residual": (4, 4, 3), "multiscale": (1 + 4 + 16,)}
NAMES = tuple(OWN)


def composed(name, inner="fvq", **options):
    """The arguments of a configuration."""
    return {
        "quantizer": name,
        "bridge": BRIDGE if inner == "fvq" else None,
        "options": {"inner": inner, **OWN[name], **options},
    }


def several_codes(name, inner="fvq", **changes):
    return tokenizer(**{**composed(name, inner), **changes})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "train.parquet", 16, 64)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", NAMES)
def test_images_to_indices_and_back(name, inner):
    model = several_codes(name, inner)
    indices = model.encode(IMAGES)
    assert indices.shape == (6, *SHAPES[name])
    assert indices.dtype == torch.int64
    assert (model.config.index_shape, model.config.tokens) == (SHAPES[name], indices[0].numel())
    assert len(indices.unique()) > 2
    images = model.decode(indices)
    assert images.shape == IMAGES.shape
    assert torch.equal(model.decode(indices.flatten(1)), images)
    reconstruction, quantized = model(IMAGES)
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(reconstruction.clamp(-1, 1), images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "place"), [("residual", (slice(None), 0, 0, 2)), ("multiscale", (slice(None), 1 + 4))]
)
def test_tokens_in_a_row_keep_their_places(name, place):
    """The last code of the first place changes the images there the most."""
    model = several_codes(name)
    indices = model.encode(IMAGES)
    changed = indices.clone()
    changed[place] = (changed[place] + 7) % 64
    difference = (model.decode(changed.flatten(1)) - model.decode(indices)).abs().sum((0, 1))
    assert difference[:4, :4].sum() > difference[12:, 12:].sum()


def test_sizes_that_are_not_given_are_the_published_ones():
    residual = config("residual")
    assert (residual.index_shape, residual.tokens) == ((4, 4, 4), 64)
    multiscale = config("multiscale", image_size=64)
    assert multiscale.index_shape == (680,)
    assert type(Tokenizer(multiscale).quantizer.inner.projector) is torch.nn.Identity


@pytest.mark.parametrize("name", NAMES)
def test_the_inner_quantizer_has_the_bridge_and_the_weights(name):
    model = several_codes(name, commitment_weight=0.75, bridge={**BRIDGE, "depth": 2, "width": 4})
    inner = model.quantizer.inner
    assert inner.commitment_weight == 0.75
    assert inner.codebook_weight == 1
    assert len(inner.projector.blocks) == 2
    assert model.config.index_shape == SHAPES[name]
    heavier = several_codes(name, "vq", options={"codebook_weight": 3, **OWN[name]})
    assert heavier.quantizer.inner.codebook_weight == 3


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", NAMES)
def test_freezing_changes_no_bit(name, inner):
    model = several_codes(name, inner)
    frozen = model.freeze()
    indices = model.encode(IMAGES)
    assert torch.equal(frozen.encode(IMAGES), indices)
    assert torch.equal(frozen.decode(indices), model.decode(indices))
    assert frozen.config == model.config.model_copy(update={"frozen": True})
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert {key for key in frozen.state_dict() if "inner" in key} == {"quantizer.inner.codebook"}
    assert torch.equal(frozen.freeze().encode(IMAGES), indices)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", NAMES)
def test_files_hold_the_whole_tokenizer(tmp_path, name, inner, frozen):
    model = several_codes(name, inner)
    model = model.freeze() if frozen else model
    model.save(tmp_path / "tokenizer.safetensors")
    torch.manual_seed(9)
    loaded = Tokenizer.load(tmp_path / "tokenizer.safetensors")
    assert loaded.config == model.config
    assert loaded.config.frozen is frozen
    assert loaded.state_dict().keys() == model.state_dict().keys()
    indices = model.encode(IMAGES)
    assert torch.equal(loaded.encode(IMAGES), indices)
    assert torch.equal(loaded.decode(indices), model.decode(indices))
    assert torch.equal(loaded(IMAGES)[1].loss, model(IMAGES)[1].loss)


@pytest.mark.parametrize("name", NAMES)
def test_freezing_is_proven_on_images(name):
    """Batches of the same size on both sides, the last one smaller: convolutions round as their batch wants."""
    model, images = several_codes(name), uint8_images(7)
    _, check = freeze_tokenizer(model, Images(images))
    comparison = {"images": 7, "tokens": 7 * model.config.tokens, "changed_tokens": 0, "largest_difference": 0.0}
    assert check == {**comparison, "code_order": "by use"}
    frozen = model.freeze()
    for batch_size in (1, 3, 7):
        assert compare_tokenizers(model, frozen, Images(images), batch_size=batch_size) == comparison


@pytest.mark.parametrize("inner", ["vq", "fvq"])
@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_reconstruction_error(table, name, inner):
    chosen = config(**composed(name, inner))
    fast = settings(learning_rate=1e-2, probe_images=4)
    model, history = train_tokenizer(chosen, table, fast, SCHEDULE, steps=100, seed=0)
    assert history[-1]["reconstruction"] < 0.65 * history[0]["reconstruction"]
    assert error_of(model, table) < 0.8 * to_model_range(table.images()).var(0).mean()
    for row in history:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["codebook"] + row["commitment"], rel=1e-5)
        assert row["usage_tokens"] == 5 * 8 * chosen.tokens
        assert 0 < row["usage"] <= 1
        assert 0 < row["sliding_usage"] <= 1
        assert 1 <= row["perplexity"] <= 64
        # Margins are of one code a place.
        assert "margin_median" not in row
    frozen, comparison = freeze_tokenizer(model, table)
    assert comparison["tokens"] == 64 * chosen.tokens
    assert error_of(frozen, table) == error_of(model, table)


@pytest.mark.parametrize("name", NAMES)
def test_many_images(table, name):
    model = several_codes(name).freeze()
    images = table.images()
    indices, reconstructions = reconstruct(model, images)
    assert indices.shape == (64, *SHAPES[name])
    assert torch.equal(decode_tokens(model, indices.flatten(1)), reconstructions)
    figures = usage_figures(code_counts(indices, 64))
    assert figures["usage_tokens"] == 64 * model.config.tokens
    assert figures["usage_codes"] == len(indices.unique())
    (batch,) = encode_views(model, table, ("center",), range(64))
    assert torch.equal(batch.codes, indices.flatten(1))


@pytest.mark.parametrize(
    ("name", "indices", "message"),
    [
        ("residual", (2, 4, 4), r"indices must be \(B, 4, 4, 3\), not \(2, 4, 4\)"),
        ("residual", (2, 4, 4, 4), r"indices must be \(B, 4, 4, 3\), not \(2, 4, 4, 4\)"),
        ("residual", (2, 16), r"indices must be \(B, 4, 4, 3\), not \(2, 16\)"),
        ("multiscale", (2, 4, 4), r"indices must be \(B, 21\), not \(2, 4, 4\)"),
        ("multiscale", (2, 20), r"indices must be \(B, 21\), not \(2, 20\)"),
    ],
)
def test_decode_refuses(name, indices, message):
    with pytest.raises(ValueError, match=message):
        several_codes(name).decode(torch.zeros(indices, dtype=torch.int64))


NEITHER = "inner must be vq, linear, simvq, mlp5 or fvq, not"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bridge": None}, "bridge must not be null for quantizer residual with the inner quantizer fvq"),
        ({"options": {"inner": "vq"}}, "bridge must be null for quantizer residual with the inner quantizer vq"),
        ({"options": {}}, "bridge must be null for quantizer residual with the inner quantizer vq"),
        ({"options": {"inner": "vqgan-lc"}}, f"{NEITHER} vqgan-lc"),
        ({"options": {"inner": "vq-l2"}}, f"{NEITHER} vq-l2"),
        ({"options": {"inner": "residual"}}, f"{NEITHER} residual"),
        ({"options": {"inner": None}}, f"{NEITHER} None"),
        ({"options": {"inner": "fvq", "depth": 0}}, "depth must be at least 1, not 0"),
        ({"options": {"inner": "fvq", "depth": 2.5}}, "options of quantizer residual with the inner .* fvq: 'float'"),
        ({"options": {"inner": "fvq", "depth": "many"}}, "options of quantizer residual with the inner .* fvq: '<'"),
        ({"options": {"inner": "fvq", "heads": 2}}, "option heads belongs to the bridge"),
        (
            {"options": {"inner": "fvq", "dept": 2}},
            "quantizer 'fvq' has no option dept; its .*; those of residual are inner",
        ),
        ({"codebook_size": 1000}, "the nearest sizes that work are 900 and 1024"),
        (
            composed("multiscale", scales=(1, 2)),
            r"the last of scales is 2, and the token grid's side is 4 \(image_size 16 over the ratio 4\)",
        ),
        ({**composed("multiscale"), "options": {"inner": "fvq"}}, "the last of scales is 16, and the token grid's"),
        (composed("multiscale", scales=(2, 1, 4)), r"scales must be ascending sides from 1, not \(2, 1, 4\)"),
        (composed("multiscale", scales=4), "options of quantizer multiscale with the inner quantizer fvq: 'int'"),
        (composed("multiscale", phi_weight=1.5), r"phi_weight must lie in \[0, 1\], not 1.5"),
        (composed("multiscale", depth=2), "option depth belongs to the bridge"),
    ],
)
def test_configurations_that_do_not_fit(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**{**composed("residual"), **changes})
