"""Freezing: codes in the order of their use, proven to be the same tokenizer otherwise."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer_composed import several_codes
from test_tokenizer_model import IMAGES, OPTIONS, QUANTIZERS, Images, tokenizer, uint8_images
from torch.nn import functional as F

from fvq.quantize.codebook import CodebookQuantizer
from fvq.runtime.errors import UserError
from fvq.tokenizer import Tokenizer, freezing
from fvq.tokenizer.architecture import Encoder
from fvq.tokenizer.freezing import compare_tokenizers, freeze_tokenizer, order_codes, order_of_use

WITHOUT_CODEBOOK = ("lfq", "fsq")
WITH_CODEBOOK = (*(name for name in QUANTIZERS if name not in WITHOUT_CODEBOOK), "residual", "multiscale")


def model_of(name):
    return several_codes(name) if name in ("residual", "multiscale") else tokenizer(name)


def codebook_of(frozen):
    (codebook_kd,) = (tensor for name, tensor in frozen.state_dict().items() if name.endswith("codebook"))
    return codebook_kd


def use_of(model, images):
    return Counter(model.encode(images / 127.5 - 1).flatten().tolist())


@pytest.mark.parametrize("name", WITH_CODEBOOK)
def test_codes_are_numbered_by_use(name):
    model, images = model_of(name), uint8_images(7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen, check = freeze_tokenizer(model, Images(images))
    assert check == {
        "images": 7,
        "tokens": 7 * model.config.tokens,
        "changed_tokens": 0,
        "largest_difference": 0.0,
        "code_order": "by use",
    }
    old, new = use_of(model, images), use_of(frozen, images)
    order = sorted(range(64), key=lambda code: -old[code])  # Python's sorting is stable
    assert order != list(range(64))
    assert [new[code] for code in range(64)] == [old[code] for code in order]
    assert torch.equal(codebook_of(frozen), codebook_of(model.freeze())[order])
    assert torch.equal(frozen.decode(frozen.encode(IMAGES)), model.decode(model.encode(IMAGES)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert frozen.config == model.freeze().config
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("name", WITH_CODEBOOK)
def test_numbers_are_kept_in_files_and_by_freezing_again(tmp_path, name):
    images = Images(uint8_images())
    frozen, _ = freeze_tokenizer(model_of(name), images)
    frozen.save(tmp_path / "tokenizer.safetensors")
    loaded = Tokenizer.load(tmp_path / "tokenizer.safetensors")
    assert torch.equal(loaded.encode(IMAGES), frozen.encode(IMAGES))
    again, check = freeze_tokenizer(loaded, images)
    assert check["code_order"] == "by use"
    assert torch.equal(codebook_of(again), codebook_of(frozen))


@pytest.mark.parametrize("name", WITHOUT_CODEBOOK)
def test_quantizers_without_codebook_keep_their_numbers(name):
    model, images = tokenizer(name), Images(uint8_images())
    assert name in OPTIONS
    frozen, check = freeze_tokenizer(model, images)
    assert (check["code_order"], check["changed_tokens"], check["tokens"]) == ("as trained", 0, 96)
    assert torch.equal(frozen.encode(IMAGES), model.encode(IMAGES))
    assert images.asked == [6]


def test_published_codes_of_unit_length_stay_so():
    """As an imported LlamaGen tokenizer has them: any length in the file, normalised before the lookup."""
    model = tokenizer("vq-l2")
    frozen, check = freeze_tokenizer(model, Images(uint8_images()))
    assert check["code_order"] == "by use"
    assert type(frozen.quantizer) is CodebookQuantizer
    unit_kd = F.normalize(model.quantizer.codebook, dim=1)
    assert codebook_of(frozen).tolist() != unit_kd.tolist()
    assert sorted(codebook_of(frozen).tolist()) == sorted(unit_kd.tolist())


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(64)), name=st.sampled_from(["vq", "ibq", "residual", "multiscale"]))
def test_any_order_is_the_same_tokenizer(order, name):
    frozen, order_k = model_of(name).freeze(), torch.tensor(order)
    ordered = order_codes(frozen, order_k)
    indices = frozen.encode(IMAGES)
    numbers_k = order_k.argsort()  # of each old code
    assert torch.equal(ordered.encode(IMAGES), numbers_k[indices])
    assert torch.equal(ordered.decode(numbers_k[indices]), frozen.decode(indices))
    comparison = compare_tokenizers(frozen, ordered, Images(uint8_images()), order_k=order_k)
    assert (comparison["changed_tokens"], comparison["largest_difference"]) == (0, 0.0)


def test_orders_that_are_none_are_refused():
    frozen = tokenizer("vq").freeze()
    for order in (range(63), [0, *range(63)], range(1, 65)):
        with pytest.raises(ValueError, match="must name each of the 64 codes once"):
            order_codes(frozen, torch.tensor(order))
    for model in (tokenizer("fvq"), tokenizer("vq"), tokenizer("fsq").freeze()):
        with pytest.raises(ValueError, match="only a frozen tokenizer with a codebook"):
            order_codes(model, torch.arange(64))


def test_freezing_alone_never_renumbers():
    model = tokenizer()
    assert torch.equal(model.freeze().encode(IMAGES), model.encode(IMAGES))


def test_equal_codes_are_no_obstacle():
    """Of equal codes the first is used alone, and so comes first again."""
    model = tokenizer("vq")
    with torch.no_grad():
        model.quantizer.codebook[32:] = model.quantizer.codebook[:32].flip(0)
    frozen, check = freeze_tokenizer(model, Images(uint8_images()))
    assert check["code_order"] == "by use"
    assert use_of(frozen, uint8_images()).keys() < set(range(33))


def brightness_as_latent(monkeypatch, codes):
    """A tokenizer whose only varying latent is the brightness of 4×4 pixels in [-1, 1], and its first codes."""
    monkeypatch.setattr(Encoder, "forward", lambda self, images: F.avg_pool2d(images[:, :1], 4).repeat(1, 8, 1, 1))
    model = tokenizer("vq")
    with torch.no_grad():
        model.to_codes.weight.zero_()[0, 0] = 1
        model.to_codes.bias.zero_()
        model.quantizer.codebook.zero_()[:, 0] = torch.arange(100.0, 164.0)
        model.quantizer.codebook[: len(codes), 0] = torch.tensor(codes)
    return model


def flat_images(*values):
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)


def test_order_of_use_is_stable(monkeypatch):
    model = brightness_as_latent(monkeypatch, [0.9, 50, -1, 40, 1, 0])
    images = Images(flat_images(0, 255, 130, 0, 255))
    assert order_of_use(model, images).tolist() == [2, 4, 5, 0, 1, 3, *range(6, 64)]


def test_ties_between_codes_keep_the_trained_order(monkeypatch):
    """White lies midway between codes 0 and 1, so 0 takes it; in the order of use the busier 1 would."""
    model = brightness_as_latent(monkeypatch, [1.5, 0.5])
    images = Images(flat_images(255, 204, 204))
    assert model.encode(flat_images(255, 204) / 127.5 - 1)[:, 0, 0].tolist() == [0, 1]
    assert order_of_use(model, images).tolist()[:2] == [1, 0]
    frozen, check = freeze_tokenizer(model, images)
    assert check == {
        "images": 3,
        "tokens": 48,
        "changed_tokens": 0,
        "largest_difference": 0.0,
        "code_order": "as trained",
    }
    assert torch.equal(codebook_of(frozen), codebook_of(model.freeze()))


def test_freezing_is_proven_on_images():
    model, table = tokenizer(), Images(uint8_images())
    frozen, check = freeze_tokenizer(model, table)
    comparison = {"images": 6, "tokens": 96, "changed_tokens": 0, "largest_difference": 0.0}
    assert check == {**comparison, "code_order": "by use"}
    assert frozen.config.frozen
    assert table.asked == [6, 6]
    assert compare_tokenizers(model, model.freeze(), table, batch_size=4) == comparison
    assert table.asked == [6, 6, 4, 2]


def other_codes(frozen):
    frozen.quantizer.codebook.copy_(frozen.quantizer.codebook.roll(1, 0))


def other_decoder(frozen):
    frozen.decoder.conv_out.bias.add_(1e-6)


def broken_decoder(frozen):
    frozen.decoder.conv_out.bias.fill_(math.nan)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (other_codes, r"the frozen tokenizer differs: [1-9]\d* of 96 tokens, reconstructions by up to"),
        (other_decoder, r"the frozen tokenizer differs: 0 of 96 tokens, reconstructions by up to \d.*e-0[67]"),
        (broken_decoder, "the frozen tokenizer differs: 0 of 96 tokens, reconstructions by up to inf"),
    ],
)
def test_freezing_that_changes_something_is_refused(monkeypatch, tamper, message):
    honest = Tokenizer.freeze

    def freeze(self):
        frozen = honest(self)
        with torch.no_grad():
            tamper(frozen)
        return frozen

    monkeypatch.setattr(freezing.Tokenizer, "freeze", freeze)
    with pytest.raises(UserError, match=message):
        freeze_tokenizer(tokenizer(), Images(uint8_images()))
