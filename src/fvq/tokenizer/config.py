"""What fixes a tokenizer's shape; it travels in the weights file."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fvq.quantize.bridge import check_bridge_sizes, default_patch

QuantizerName = Literal["vq", "linear", "mlp5", "fvq"]
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


class TokenizerConfig(_Config):
    """Everything that fixes a tokenizer's shape."""

    image_size: int = Field(ge=1, description="height and width of the images in pixels")
    architecture: Architecture
    quantizer: QuantizerName
    codebook_size: int = Field(ge=2, description="number of codes")
    code_dim: int = Field(ge=1, description="dimension of a code")
    commitment_weight: float = Field(ge=0, description="β of Eq. 5")
    bridge: Bridge | None = Field(description="for the quantizer fvq")
    frozen: bool = Field(description="whether the codebook is final and the projector gone")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.image_size % self.architecture.ratio:
            raise ValueError(f"image_size {self.image_size} is not divisible by the ratio {self.architecture.ratio}")
        check_bridge(self.quantizer, self.bridge, self.codebook_size, self.code_dim)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in an image."""
        side = self.image_size // self.architecture.ratio
        return side, side


def check_bridge(quantizer: str, bridge: Bridge | None, codebook_size: int, code_dim: int) -> None:
    """Raise ValueError where the bridge does not fit the quantizer and the sizes."""
    if (quantizer == "fvq") != (bridge is not None):
        raise ValueError(f"bridge must {'not be null' if quantizer == 'fvq' else 'be null'} for quantizer {quantizer}")
    if bridge:
        check_bridge_sizes(
            codebook_size,
            width=bridge.width or code_dim,
            heads=bridge.heads,
            patch=bridge.patch or default_patch(codebook_size),
            layout=bridge.layout,
        )
