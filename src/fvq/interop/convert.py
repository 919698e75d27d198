"""The tensors of a tokenizer under published names, and back; every value stays as it is."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fvq.interop.layouts import Layout, published_names
from fvq.tokenizer import TokenizerConfig

_COMPRESS = "quantizer.projector.compress.weight"


def to_published(tensors: Mapping[str, Tensor], config: TokenizerConfig, layout: Layout) -> dict[str, Tensor]:
    """The state dict of a tokenizer of this configuration in a published layout.

    Query, key and value are split, and the bridge's first layer is a convolution (width, d, side, side).
    """
    published: dict[str, Tensor] = {}
    for name, targets in _names(tensors, config, layout).items():
        tensor = tensors[name]
        if name == _COMPRESS:
            side = math.isqrt(tensor.shape[1] // config.code_dim)
            tensor = tensor.unflatten(1, (side, side, config.code_dim)).permute(0, 3, 1, 2)
        published.update(zip(targets, (part.clone() for part in tensor.chunk(len(targets))), strict=True))
    return published


def from_published(
    published: Mapping[str, Tensor], blank: Mapping[str, Tensor], config: TokenizerConfig, layout: Layout
) -> dict[str, Tensor]:
    """What ``to_published`` gave, as a state dict with the names of ``blank``."""
    tensors = {}
    for name, sources in _names(blank, config, layout).items():
        tensor = torch.cat([published[source] for source in sources])
        tensors[name] = tensor.permute(0, 2, 3, 1).flatten(1) if name == _COMPRESS else tensor
    return tensors


def _names(tensors: Mapping[str, Tensor], config: TokenizerConfig, layout: Layout) -> dict[str, tuple[str, ...]]:
    sizes = config.architecture
    return published_names(tensors, layout, len(sizes.multipliers), sizes.residual_blocks)
