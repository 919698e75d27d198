"""What fixes a tokenizer's shape; it travels in the weights file."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fvq.quantize.build import build_quantizer, quantizer_options

# Those with one index a place and no tensors among their options.
QuantizerName = Literal["vq", "vq-ema", "vq-l2", "linear", "simvq", "mlp5", "fvq", "cvq", "ibq", "lfq", "fsq"]
Option = int | float | bool | str | tuple[int, ...] | None
Multipliers = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(_Config):
    """Sizes of the encoder and the decoder."""

    channels: int = Field(ge=1, description="channels of the first level")
    multipliers: Multipliers = Field(
        description="channels of each level over the first's; each level after the first halves the sides"
    )
    residual_blocks: int = Field(ge=1, description="residual blocks per level; the decoder has one more")
    attention: bool = Field(description="self-attention at the lowest resolution")
    latent_channels: int = Field(ge=1, description="channels between the encoder and the projection to code_dim")
    pixel_shuffle: int = Field(ge=1, description="side of the squares folded into channels first; 1 as published")

    @property
    def ratio(self) -> int:
        """Image side over latent side."""
        return int(self.pixel_shuffle * 2 ** (len(self.multipliers) - 1))


class Bridge(_Config):
    """Sizes of VQBridge; ``null`` takes the default."""

    patch: int | None = Field(ge=1, description="codes per bridge token; null: by codebook size")
    width: int | None = Field(ge=1, description="token width; null: code_dim")
    depth: int = Field(ge=1, description="transformer blocks")
    heads: int = Field(ge=1, description="attention heads")
    layout: Literal["grid", "sequence"] = Field(description="which codes form a group")
    block: Literal["vit", "dit"] = Field(description="the paper's blocks or those of the released scripts")


class TokenizerConfig(_Config):
    """Everything that fixes a tokenizer's shape."""

    image_size: int = Field(ge=1, description="height and width of the images in pixels")
    architecture: Architecture
    quantizer: QuantizerName
    codebook_size: int = Field(ge=2, description="number of codes")
    code_dim: int = Field(ge=1, description="dimension of a code")
    commitment_weight: float = Field(ge=0, description="β of Eq. 5")
    bridge: Bridge | None = Field(description="for the quantizer fvq")
    options: dict[str, Option] = Field(default_factory=dict, description="the quantizer's own, see build_quantizer")
    frozen: bool = Field(description="whether the codebook is final and the projector gone")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.image_size % self.architecture.ratio:
            raise ValueError(f"image_size {self.image_size} is not divisible by the ratio {self.architecture.ratio}")
        check_quantizer(self.quantizer, self.codebook_size, self.code_dim, self.bridge, self.options)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in an image."""
        side = self.image_size // self.architecture.ratio
        return side, side

    def quantizer_options(self) -> dict[str, Option]:
        """What ``build_quantizer`` takes beside the sizes."""
        options = {**(self.bridge.model_dump() if self.bridge else {}), **self.options}
        if "commitment_weight" in quantizer_options(self.quantizer):
            options = {"commitment_weight": self.commitment_weight, **options}
        return options


def check_quantizer(
    name: str, codebook_size: int, code_dim: int, bridge: Bridge | None, options: Mapping[str, Option]
) -> None:
    """Raise ValueError where the bridge or the options do not fit the quantizer and the sizes."""
    if (name == "fvq") != (bridge is not None):
        raise ValueError(f"bridge must {'not be null' if name == 'fvq' else 'be null'} for quantizer {name}")
    with torch.device("meta"):
        build_quantizer(
            name,
            codebook_size=codebook_size,
            code_dim=code_dim,
            **(bridge.model_dump() if bridge else {}),
            **options,
        )
