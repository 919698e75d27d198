"""A tokenizer in the layout of LlamaGen's checkpoints, which FVQ's released code reads as well."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvq.interop.convert import to_published
from fvq.interop.sizes import NORM_GROUPS
from fvq.quantize.build import frozen_name
from fvq.runtime.errors import UserError
from fvq.tokenizer import Architecture, Tokenizer

_USAGE_LENGTH = 65536  # of the published usage counter, whatever the codebook

# (channels, multipliers, residual blocks, latent channels) of the models that the published code names.
_NAMED = {
    (128, (1, 1, 2, 2, 4), 2, 256): "VQ-16",
    (128, (1, 2, 2, 4), 2, 256): "VQ-8",
    (128, (1, 1, 2, 2, 4), 4, 256): "VQ-16-res4",
    (128, (1, 1, 2, 2, 4), 2, 512): "VQ-16-z512",
}


@dataclass(frozen=True, eq=False)
class ExportedTokenizer:
    """A tokenizer as the published code reads it."""

    tensors: dict[str, Tensor]
    l2_norm: bool
    """what ``codebook_l2_norm`` must be; the tensors do not tell"""
    model: str
    """the published name of the architecture, or its sizes where it has none"""


def export_tokenizer(tokenizer: Tokenizer) -> ExportedTokenizer:
    """The state dict of LlamaGen's ``VQModel``; of a tokenizer with projector, as it is after freezing.

    Every tensor keeps its value. The usage counter, which only training reads, is zero.

    Raises:
        UserError: the layout cannot hold the quantizer or the architecture.
    """
    config = tokenizer.config
    model = _published_model(config.architecture)
    l2_norm = config.quantizer == "vq-l2" and not config.frozen
    if frozen_name(config.quantizer) != "vq":
        raise UserError(f"quantizer {config.quantizer}: LlamaGen's layout holds nearest-code lookups in one codebook")
    if not l2_norm:
        tokenizer = tokenizer.freeze()
    tensors = to_published(tokenizer.state_dict(), tokenizer.config, "llamagen")
    tensors["quantize.codebook_used"] = torch.zeros(_USAGE_LENGTH)
    return ExportedTokenizer(tensors, l2_norm, model)


def _published_model(sizes: Architecture) -> str:
    first = sizes.channels * sizes.multipliers[0]
    multipliers = tuple(multiplier // sizes.multipliers[0] for multiplier in sizes.multipliers)
    if sizes.pixel_shuffle != 1:
        raise UserError(f"pixel_shuffle {sizes.pixel_shuffle}: LlamaGen's layout has none (1)")
    if not sizes.attention:
        raise UserError("attention false: LlamaGen's layout has attention at the lowest resolution")
    if first % NORM_GROUPS:
        raise UserError(f"channels {first}: LlamaGen's group norm needs multiples of {NORM_GROUPS}")
    if any(multiplier % sizes.multipliers[0] for multiplier in sizes.multipliers):
        raise UserError(f"multipliers {sizes.multipliers}: in LlamaGen's layout they are multiples of the first")
    named = _NAMED.get((first, multipliers, sizes.residual_blocks, sizes.latent_channels))
    return named or (
        f"ch={first}, ch_mult={list(multipliers)}, num_res_blocks={sizes.residual_blocks}, "
        f"z_channels={sizes.latent_channels}"
    )
