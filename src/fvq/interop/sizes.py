"""What the shapes of published tensors tell of the tokenizer's configuration."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from fvq.interop.layouts import BRIDGE, CODEBOOK, Layout, places
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.tokenizer import Architecture, Bridge, TokenizerConfig

NORM_GROUPS = 32  # of every group norm in the published models


def infer_config(
    tensors: Mapping[str, Tensor], layout: Layout, *, heads: int, image_size: int, path: Path | str
) -> TokenizerConfig:
    """The configuration of a published tokenizer, its commitment weight the published 0.25.

    Args:
        tensors: the state dict in this layout.
        layout: the published layout.
        heads: attention heads of the bridge, which tensors cannot tell.
        image_size: height and width of the images in pixels, neither.
        path: the file, for errors.

    Raises:
        UserError: a tensor that tells a size is missing, or the sizes do not make a tokenizer.
    """

    def size(name: str, dimension: int, of: int = 4) -> int:
        if name not in tensors:
            raise UserError(f"{path}: not of the layout {layout}: {name} is missing")
        shape = tuple(tensors[name].shape)
        if len(shape) != of:
            raise UserError(f"{path}: {name} is {shape} and must have {of} dimensions")
        return shape[dimension]

    at = places(layout)
    levels = len(_children(tensors, f"encoder.{at.down}"))
    _check_attention([_children(tensors, f"encoder.{at.down}.{level}.attn") for level in range(levels)], path)
    channels = size("encoder.conv_in.weight", 0)
    widths = [size(f"encoder.{at.down}.{level}.{at.block}.0.conv1.weight", 0) for level in range(levels)]
    if not channels or channels % NORM_GROUPS or any(width % channels for width in widths):
        raise UserError(
            f"{path}: levels of {', '.join(map(str, widths))} channels; they must be multiples of the first "
            f"convolution's {channels}, and this one of {NORM_GROUPS}"
        )
    try:
        bridge = None
        if layout in ("fvq-vit", "fvq-dit"):
            bridge = Bridge(
                patch=size(f"{BRIDGE}.x_embedder.proj.weight", 3) ** 2,
                width=size(f"{BRIDGE}.x_embedder.proj.weight", 0),
                depth=max(1, len(_children(tensors, f"{BRIDGE}.blocks"))),
                heads=heads,
                layout="grid",
                block="dit" if layout == "fvq-dit" else "vit",
            )
        return TokenizerConfig(
            image_size=image_size,
            architecture=Architecture(
                channels=channels,
                multipliers=tuple(width // channels for width in widths),
                residual_blocks=len(_children(tensors, f"encoder.{at.down}.0.{at.block}")),
                attention=True,
                latent_channels=size("encoder.conv_out.weight", 0),
                pixel_shuffle=1,
            ),
            quantizer="vq-l2" if layout == "llamagen" else "fvq" if bridge else "vq",
            codebook_size=size(CODEBOOK, 0, of=2),
            code_dim=size(CODEBOOK, 1, of=2),
            commitment_weight=0.25,
            bridge=bridge,
            frozen=layout == "fvq",
        )
    except ValidationError as error:
        raise UserError(describe_validation_error(error, str(path))) from None


def _children(names: Iterable[str], parent: str) -> set[str]:
    """What follows ``parent.`` in the names, up to the next dot."""
    return {name.removeprefix(f"{parent}.").split(".")[0] for name in names if name.startswith(f"{parent}.")}


def _check_attention(blocks: list[set[str]], path: Path | str) -> None:
    found = [level + 1 for level, indices in enumerate(blocks) if indices]
    if found != [len(blocks)]:
        where = f"in the levels {', '.join(map(str, found))}" if found else "in no level"
        raise UserError(
            f"{path}: the encoder has attention {where} of {len(blocks)}; it must have it in the last alone"
        )
