"""What fixes a tokenizer's shape; it travels in the weights file."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fvq.quantize import Quantizer
from fvq.quantize.build import COMPOSED, build_quantizer, frozen_name, frozen_options, quantizer_options
from fvq.quantize.multiscale import SCALES, MultiscaleQuantizer
from fvq.quantize.residual import DEPTH

# Those without tensors among their options.
OneIndexQuantizerName = Literal["vq", "vq-ema", "vq-l2", "linear", "simvq", "mlp5", "fvq", "cvq", "ibq", "lfq", "fsq"]
QuantizerName = Literal[OneIndexQuantizerName, "residual", "multiscale"]
_INNER = ("vq", "linear", "simvq", "mlp5", "fvq")
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
    bridge: Bridge | None = Field(description="for the quantizer fvq, also as the inner one of others")
    options: dict[str, Option] = Field(default_factory=dict, description="the quantizer's own, see build_quantizer")
    frozen: bool = Field(description="whether the codebook is final and the projector gone")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.image_size % self.architecture.ratio:
            raise ValueError(f"image_size {self.image_size} is not divisible by the ratio {self.architecture.ratio}")
        quantizer = check_quantizer(self.quantizer, self.codebook_size, self.code_dim, self.bridge, self.options)
        if isinstance(quantizer, MultiscaleQuantizer) and quantizer.side != self.grid[0]:
            raise ValueError(
                f"the last of scales is {quantizer.side}, and the token grid's side is {self.grid[0]} "
                f"(image_size {self.image_size} over the ratio {self.architecture.ratio})"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of places in the latents of an image."""
        side = self.image_size // self.architecture.ratio
        return side, side

    @property
    def index_shape(self) -> tuple[int, ...]:
        """The shape of an image's indices: (h, w), for ``residual`` (h, w, depth), for ``multiscale`` (Σk²,)."""
        options: Mapping[str, Any] = self.options
        match self.quantizer:
            case "residual":
                return *self.grid, options.get("depth", DEPTH)
            case "multiscale":
                return (sum(scale**2 for scale in options.get("scales", SCALES)),)
        return self.grid

    @property
    def tokens(self) -> int:
        """Indices of an image."""
        return math.prod(self.index_shape)

    def build_quantizer(self) -> Quantizer:
        """The quantizer, where ``frozen`` in the form that ``freeze`` gives, with weights yet to be loaded."""
        name: str = self.quantizer
        options = _all_options(name, self.bridge, self.options)
        if "commitment_weight" in quantizer_options(name):
            options = {"commitment_weight": self.commitment_weight, **options}
        if self.frozen:
            name, options = frozen_name(name), frozen_options(name, options)
        return build_quantizer(name, codebook_size=self.codebook_size, code_dim=self.code_dim, **options)


def check_quantizer(
    name: str, codebook_size: int, code_dim: int, bridge: Bridge | None, options: Mapping[str, Option]
) -> Quantizer:
    """The quantizer without memory for its weights.

    Raises:
        ValueError: the bridge or the options do not fit the quantizer and the sizes.
    """
    learned, called = name, name
    if name in COMPOSED:
        learned = str(options.get("inner", "vq"))
        called = f"{name} with the inner quantizer {learned}"
        if learned not in _INNER:
            raise ValueError(f"inner must be {', '.join(_INNER[:-1])} or {_INNER[-1]}, not {learned}")
    if (learned == "fvq") != (bridge is not None):
        raise ValueError(f"bridge must {'not be null' if learned == 'fvq' else 'be null'} for quantizer {called}")
    try:
        with torch.device("meta"):
            return build_quantizer(
                name, codebook_size=codebook_size, code_dim=code_dim, **_all_options(name, bridge, options)
            )
    except TypeError as error:  # an option of another type
        raise ValueError(f"options of quantizer {called}: {error}") from None


def _all_options(name: str, bridge: Bridge | None, options: Mapping[str, Option]) -> dict[str, Any]:
    """The options with the bridge's sizes among them, which are in a field of their own where another composes it."""
    if bridge is None:
        return dict(options)
    sizes = bridge.model_dump()
    own = quantizer_options(name) if name in COMPOSED else ()
    if repeated := [option for option in options if option in sizes and option not in own]:
        raise ValueError(f"option {repeated[0]} belongs to the bridge")
    return {"bridge": sizes, **options} if name in COMPOSED else {**sizes, **options}
