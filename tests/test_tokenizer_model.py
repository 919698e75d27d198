"""The tokenizer as a model: shapes, contracts, files, freezing, the discriminator."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from fvq.runtime.errors import UserError
from fvq.runtime.weights import load_weights, save_weights
from fvq.tokenizer import Tokenizer, TokenizerConfig
from fvq.tokenizer.architecture import AttentionBlock, Decoder, Encoder, ResidualBlock
from fvq.tokenizer.config import OneIndexQuantizerName
from fvq.tokenizer.discriminator import PatchDiscriminator, discriminator_loss, generator_loss

ARCHITECTURE = {
    "channels": 8,
    "multipliers": (1, 2),
    "residual_blocks": 1,
    "attention": False,
    "latent_channels": 8,
    "pixel_shuffle": 2,
}
BRIDGE = {"patch": None, "width": None, "depth": 1, "heads": 2, "layout": "grid", "block": "vit"}
QUANTIZERS = get_args(OneIndexQuantizerName)
OPTIONS = {"lfq": {"code_dim": 6}, "fsq": {"code_dim": 3, "options": {"levels": (4, 4, 4)}}, "cvq": {}}


def config(quantizer="fvq", architecture=(), **changes):
    return TokenizerConfig(
        **{
            "image_size": 16,
            "architecture": {**ARCHITECTURE, **dict(architecture)},
            "quantizer": quantizer,
            "codebook_size": 64,
            "code_dim": 8,
            "commitment_weight": 0.25,
            "bridge": BRIDGE if quantizer == "fvq" else None,
            "frozen": False,
            **OPTIONS.get(quantizer, {}),
            **changes,
        }
    )


def tokenizer(quantizer="fvq", seed=0, **changes):
    """In mid-training: the codes lie about where the latents do, so that many are chosen."""
    torch.manual_seed(seed)
    model = Tokenizer(config(quantizer, **changes))
    for weights in (*model.quantizer.parameters(), *model.quantizer.buffers()):
        if weights.ndim == 2:
            torch.nn.init.normal_(weights, std=0.5)
    with torch.no_grad():
        model.to_codes.weight.mul_(5)
    return model.eval()


def uint8_images(count=6, side=16):
    return torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


IMAGES = uint8_images() / 127.5 - 1


class Images:
    """Images as a table gives them; the sizes of the batches that were asked for."""

    def __init__(self, images):
        self.everything, self.asked = images, []

    def __len__(self):
        return len(self.everything)

    def images(self, indices):
        self.asked.append(len(indices))
        return self.everything[indices]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_shapes_and_ranges(quantizer):
    model = tokenizer(quantizer)
    indices = model.encode(IMAGES)
    assert indices.shape == (6, 4, 4)
    assert indices.dtype == torch.int64
    assert len(indices.unique()) > 5
    images = model.decode(indices)
    assert images.shape == IMAGES.shape
    assert images.dtype == torch.float32
    assert -1 <= images.min() < images.max() <= 1
    assert not images.requires_grad
    reconstruction, quantized = model(IMAGES)
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(reconstruction.clamp(-1, 1), images, rtol=1e-4, atol=1e-4)


def test_tokens_in_a_row_are_row_major():
    model = tokenizer()
    indices = model.encode(IMAGES)
    assert torch.equal(model.decode(indices.flatten(1)), model.decode(indices))
    one = indices.clone()
    one[:, 0, 3] = (one[:, 0, 3] + 7) % 64
    changed = (model.decode(one) - model.decode(indices)).abs().sum((0, 1))
    assert changed[:4, 12:].sum() > changed[12:, :4].sum()


def test_values_are_clamped():
    model = tokenizer()
    with torch.no_grad():
        model.decoder.conv_out.bias.fill_(50.0)
    assert torch.equal(model.decode(model.encode(IMAGES)), torch.ones_like(IMAGES))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], r"images must be float \(B, 3, 16, 16\), not float32 \(3, 16, 16\)"),
        (IMAGES[..., :-1], r"not float32 \(6, 3, 16, 15\)"),
        (IMAGES[:, :1], r"not float32 \(6, 1, 16, 16\)"),
        (uint8_images(), r"not uint8 \(6, 3, 16, 16\)"),
        (IMAGES * math.nan, "NaN or infinite"),
    ],
)
def test_encode_refuses(images, message):
    with pytest.raises(ValueError, match=message):
        tokenizer().encode(images)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(2, 4, 5, dtype=torch.int64), r"indices must be \(B, 4, 4\), not \(2, 4, 5\)"),
        (torch.zeros(16, dtype=torch.int64), r"indices must be \(B, 4, 4\), not \(16,\)"),
        (torch.zeros(2, 15, dtype=torch.int64), r"not \(2, 15\)"),
        (torch.full((1, 4, 4), 64), r"indices must lie in \[0, 64\)"),
        (torch.full((1, 4, 4), -1), r"indices must lie in \[0, 64\)"),
        (torch.zeros(1, 4, 4), "indices must be int64, not float32"),
    ],
)
def test_decode_refuses(indices, message):
    with pytest.raises(ValueError, match=message):
        tokenizer().decode(indices)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_files_hold_the_whole_tokenizer(tmp_path, quantizer, frozen):
    model = tokenizer(quantizer).train()
    model = model.freeze() if frozen else model
    model.save(tmp_path / "tokenizer.safetensors")
    torch.manual_seed(9)
    loaded = Tokenizer.load(tmp_path / "tokenizer.safetensors")
    assert loaded.config == model.config
    assert loaded.config.frozen is frozen
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    indices = model.eval().encode(IMAGES)
    assert torch.equal(loaded.encode(IMAGES), indices)
    assert torch.equal(loaded.decode(indices), model.decode(indices))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_freezing_changes_no_bit(quantizer):
    model = tokenizer(quantizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = model.freeze()
    indices = model.encode(IMAGES)
    assert torch.equal(frozen.encode(IMAGES), indices)
    assert torch.equal(frozen.decode(indices), model.decode(indices))
    assert frozen.config == config(quantizer, frozen=True)
    assert not frozen.training
    assert not any("projector" in name for name in frozen.state_dict())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = frozen.freeze()
    assert torch.equal(again.encode(IMAGES), indices)


def test_frozen_and_unfrozen_files_are_not_mixed_up(tmp_path):
    model, path = tokenizer(), tmp_path / "tokenizer.safetensors"
    save_weights(path, model.state_dict(), kind="tokenizer", config=config(frozen=True).model_dump(mode="json"))
    with pytest.raises(
        UserError, match=r"tokenizer\.safetensors: quantizer\.projector\.\S+ is \(.*\) and must be None"
    ):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, config: tensors.pop("decoder.conv_out.bias"), "decoder.conv_out.bias is None and must be"),
        (
            lambda tensors, config: tensors.update({"to_codes.bias": torch.zeros(9)}),
            r"to_codes.bias is \(9,\) and must be \(8,\)",
        ),
        (lambda tensors, config: tensors.update(extra=torch.zeros(1)), r"extra is \(1,\) and must be None"),
        (
            lambda tensors, config: config.update(codebook_size=100),
            r"quantizer.codebook is \(64, 8\) and must be \(100, 8\)",
        ),
        (lambda tensors, config: config.update(codebook_size=63), "codebook_size 63 is not divisible by"),
        (lambda tensors, config: config.update(colour="red"), "colour: is no known parameter"),
        (lambda tensors, config: config.pop("image_size"), "image_size: is missing"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, damage, message):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer().save(path)
    tensors, values = load_weights(path, kind="tokenizer")
    damage(tensors, values)
    save_weights(path, tensors, kind="tokenizer", config=values)
    with pytest.raises(UserError, match=rf"tokenizer\.safetensors: {message}") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer().save(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"tokenizer\.safetensors: not a readable safetensors file"):
        Tokenizer.load(path)
    save_weights(path, {"a": torch.zeros(1)}, kind="extractor", config={})
    with pytest.raises(UserError, match=r"tokenizer\.safetensors: holds an extractor, not a tokenizer"):
        Tokenizer.load(path)
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such file"):
        Tokenizer.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("multipliers", "pixel_shuffle", "ratio"),
    [((1,), 1, 1), ((1,), 4, 4), ((1, 2), 2, 4), ((1, 1, 2, 2, 4), 1, 16), ((1, 2, 2, 4), 1, 8)],
)
def test_ratio_is_image_side_over_latent_side(multipliers, pixel_shuffle, ratio):
    sizes = config(architecture={"multipliers": multipliers, "pixel_shuffle": pixel_shuffle}).architecture
    assert sizes.ratio == ratio
    latents = Encoder(**sizes.model_dump())(torch.zeros(1, 3, 32, 32))
    assert latents.shape == (1, 8, 32 // ratio, 32 // ratio)
    assert Decoder(**sizes.model_dump())(latents).shape == (1, 3, 32, 32)


def test_the_published_architecture():
    """VQ-16: its sizes give the encoder and decoder of LlamaGen's paper, 72 million parameters with quantizer."""
    with torch.device("meta"):
        sizes = {
            "channels": 128,
            "multipliers": (1, 1, 2, 2, 4),
            "residual_blocks": 2,
            "attention": True,
            "latent_channels": 256,
            "pixel_shuffle": 1,
        }
        model = Tokenizer(config("vq", architecture=sizes, image_size=256, codebook_size=16384, code_dim=8))
    assert model.config.grid == (16, 16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 71_883_403
    layers = model.encoder.layers
    assert sum(isinstance(layer, ResidualBlock) for layer in layers) == 5 * 2 + 2
    assert sum(isinstance(layer, AttentionBlock) for layer in layers) == 2 + 1
    layers = model.decoder.layers
    assert sum(isinstance(layer, ResidualBlock) for layer in layers) == 5 * 3 + 2
    assert sum(isinstance(layer, AttentionBlock) for layer in layers) == 3 + 1


def test_attention_is_over_all_positions():
    torch.manual_seed(0)
    block, x = AttentionBlock(8), torch.randn(2, 8, 3, 5)
    hidden = F.group_norm(x, 8, eps=1e-6).double().flatten(2)
    weights = {name: value.double() for name, value in block.state_dict().items()}
    mixed = weights["query_key_value.weight"][:, :, 0, 0] @ hidden + weights["query_key_value.bias"][:, None]
    query, key, value = mixed.split(8, dim=1)
    shares = torch.softmax(query.transpose(1, 2) @ key / 8**0.5, dim=2)
    out = weights["out.weight"][:, :, 0, 0] @ (value @ shares.transpose(1, 2)) + weights["out.bias"][:, None]
    torch.testing.assert_close(block(x), x + out.reshape(x.shape), check_dtype=False, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "image_size 18 is not divisible by the ratio 4"),
        ({"codebook_size": 1000}, "the nearest sizes that work are 900 and 1024"),
        ({"bridge": None}, "bridge must not be null for quantizer fvq"),
        ({"quantizer": "vq", "bridge": BRIDGE}, "bridge must be null for quantizer vq"),
        ({"options": {"depht": 3}}, "quantizer 'fvq' has no option depht; its options are commitment_weight, "),
        ({"quantizer": "fsq", "bridge": None, "options": {}}, "no default levels"),
        ({"quantizer": "vqgan-lc", "bridge": None}, "Input should be 'vq', 'vq-ema', "),
        ({"options": {"depth": 3}}, "option depth belongs to the bridge"),
        ({"code_dim": 9}, "width 9 is not divisible by 2 heads"),
        ({"codebook_size": 1}, "greater than or equal to 2"),
        ({"architecture": {"multipliers": ()}}, "at least 1 item"),
    ],
)
def test_configurations_that_do_not_fit(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_the_configuration_in_weight_files():
    """Files hold it word for word: what is added here changes the bytes of every tokenizer."""
    assert config(code_dim=4).model_dump(mode="json") == {
        "image_size": 16,
        "architecture": {**ARCHITECTURE, "multipliers": [1, 2]},
        "quantizer": "fvq",
        "codebook_size": 64,
        "code_dim": 4,
        "commitment_weight": 0.25,
        "bridge": BRIDGE,
        "options": {},
        "frozen": False,
    }


@pytest.mark.parametrize(("side", "patches"), [(24, 1), (32, 2), (256, 30)])
def test_discriminator_judges_patches(side, patches):
    model = PatchDiscriminator().eval()
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 1, patches, patches)
    assert model.smallest_side == 24


def test_discriminator_has_the_published_size():
    """NLayerDiscriminator of pix2pix and VQGAN with batch norm: 4×4 kernels, bias only where no norm follows."""
    widths = [3, 64, 128, 256, 512, 1]
    weights = sum(16 * before * after for before, after in pairwise(widths))
    biases, norms = 64 + 1, 2 * (128 + 256 + 512)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in PatchDiscriminator().parameters())
    assert count == weights + biases + norms == 2_765_633


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1) / 2))
    assert generator_loss(fake).item() == 1.5
