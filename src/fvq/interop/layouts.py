"""The names that published checkpoints give to the tensors of a tokenizer.

Sources: FoundationVision/LlamaGen ``tokenizer_image/vq_model.py``; yfChang-cv/FVQ ``tokenizer_image/vq_model.py``,
``vq_model_qbridge.py``, ``vq_model_qbridge_release.py``, ``qbridge.py`` and ``qbridge_ViT.py``;
CompVis/taming-transformers ``models/vqgan.py`` and ``diffusionmodules/model.py``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Layout = Literal["llamagen", "fvq", "fvq-vit", "fvq-dit", "taming"]

DESCRIPTIONS: dict[Layout, str] = {
    "llamagen": "LlamaGen's tokenizer, with a normalised codebook",
    "fvq": "FVQ's released form, without bridge",
    "fvq-vit": "FVQ's training form with the bridge of qbridge_ViT.py",
    "fvq-dit": "FVQ's training form with the bridge of qbridge.py",
    "taming": "taming-transformers' VQGAN",
}
CODEBOOK = "quantize.embedding.weight"
BRIDGE = "quantize.qbridge"
LABELS = f"{BRIDGE}.y_embedder.embedding_table.weight"
POSITIONS = f"{BRIDGE}.pos_embed"


@dataclass(frozen=True)
class Places:
    """Where encoder and decoder have their parts."""

    down: str
    up: str
    up_from_lowest: bool
    """whether the decoder's levels are counted from the lowest resolution"""
    block: str
    middle: tuple[str, str, str]


_LLAMAGEN = Places("conv_blocks", "conv_blocks", True, "res", ("mid.0", "mid.1", "mid.2"))
_TAMING = Places("down", "up", False, "block", ("mid.block_1", "mid.attn_1", "mid.block_2"))

_LEAVES = {"skip": ("nin_shortcut",), "out": ("proj_out",), "query_key_value": ("q", "k", "v")}
_OUTER = {"to_codes": "quant_conv", "from_codes": "post_quant_conv"}
_BRIDGE = {
    "compress": "x_embedder.proj",
    "expand": "final_layer.linear",
    "labels": "y_embedder.embedding_table",
    "modulation": "final_layer.adaLN_modulation.1",
}
_BRIDGE_BLOCK = {
    "attention_in": "attn.qkv",
    "attention_out": "attn.proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
}


def recognise(names: Iterable[str]) -> tuple[Layout, ...]:
    """The layouts that these names may be of: none, one, or two that have the same names."""
    names = set(names)
    if POSITIONS in names:
        return ("fvq-dit",)
    if any(name.startswith(f"{BRIDGE}.") for name in names):
        return ("fvq-vit",)
    if any(name.startswith("encoder.conv_blocks.") for name in names):
        return ("llamagen", "fvq")
    if any(name.startswith("encoder.down.") for name in names):
        return ("taming",)
    return ()


def places(layout: Layout) -> Places:
    """Where a layout has the parts of encoder and decoder."""
    return _TAMING if layout == "taming" else _LLAMAGEN


def published_names(names: Iterable[str], layout: Layout, levels: int, blocks: int) -> dict[str, tuple[str, ...]]:
    """For each name of a tensor of ``Tokenizer`` those in the layout: three where query, key and value lie apart.

    Args:
        names: of a tokenizer with attention at its lowest resolution; of the quantizers without bridge, those whose
            only tensor is a codebook.
        layout: the published layout.
        levels: number of resolutions.
        blocks: residual blocks of a level of the encoder.
    """
    layers = {
        "encoder": _encoder_layers(places(layout), levels, blocks),
        "decoder": _decoder_layers(places(layout), levels, blocks),
    }
    return {name: _published(name, layers) for name in names}


def _published(name: str, layers: dict[str, list[str]]) -> tuple[str, ...]:
    if name == "quantizer.codebook":
        return (CODEBOOK,)
    match name.split("."):
        case [("to_codes" | "from_codes") as outer, kind]:
            return (f"{_OUTER[outer]}.{kind}",)
        case ["quantizer", "projector", "blocks", index, part, kind]:
            return (f"{BRIDGE}.blocks.{index}.{_BRIDGE_BLOCK[part]}.{kind}",)
        case ["quantizer", "projector", part, kind]:
            return (f"{BRIDGE}.{_BRIDGE[part]}.{kind}",)
        case [side, "layers", index, *leaf, kind]:
            stem = f"{side}.{layers[side][int(index)]}"
            if not leaf:
                return (f"{stem}.{kind}",)
            return tuple(f"{stem}.{part}.{kind}" for part in _LEAVES.get(leaf[0], leaf))
    return (name,)


def _encoder_layers(at: Places, levels: int, blocks: int) -> list[str]:
    """Of each of ``Encoder.layers``; the first, which folds squares of pixels, has no tensors."""
    layers = ["", "conv_in"]
    for level in range(levels):
        if level:
            layers.append(f"{at.down}.{level - 1}.downsample")
        layers += _level(f"{at.down}.{level}", at.block, blocks, attention=level == levels - 1)
    return [*layers, *at.middle]


def _decoder_layers(at: Places, levels: int, blocks: int) -> list[str]:
    """Of each of ``Decoder.layers``."""
    layers = ["conv_in", *at.middle]
    for level in reversed(range(levels)):
        stem = f"{at.up}.{levels - 1 - level if at.up_from_lowest else level}"
        layers += _level(stem, at.block, blocks + 1, attention=level == levels - 1)
        if level:
            layers.append(f"{stem}.upsample")
    return layers


def _level(stem: str, block: str, blocks: int, *, attention: bool) -> list[str]:
    parts = []
    for index in range(blocks):
        parts.append(f"{stem}.{block}.{index}")
        if attention:
            parts.append(f"{stem}.attn.{index}")
    return parts
