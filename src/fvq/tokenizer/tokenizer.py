"""The tokenizer: images to indices and back."""

from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fvq.quantize import Quantized, Quantizer
from fvq.runtime.errors import UserError, describe_validation_error
from fvq.runtime.weights import load_weights, save_weights
from fvq.tokenizer.architecture import Decoder, Encoder
from fvq.tokenizer.config import TokenizerConfig


class Tokenizer(nn.Module):
    """Encoder, quantizer and decoder (Eq. 2 of the paper).

    Images are float tensors (B, 3, H, W) in [-1, 1]; indices are int64 (B, h, w), with the quantizer ``residual``
    (B, h, w, depth) and with ``multiscale`` (B, Σk²): (B, *config.index_shape).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.architecture.model_dump()
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        self.to_codes = nn.Conv2d(config.architecture.latent_channels, config.code_dim, 1)
        self.from_codes = nn.Conv2d(config.code_dim, config.architecture.latent_channels, 1)
        self.quantizer: Quantizer = config.build_quantizer()

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.to_codes.weight.device

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstructions (not clamped) and what the quantizer gave, for training."""
        quantized: Quantized = self.quantizer(self.to_codes(self.encoder(images)))
        return self.decoder(self.from_codes(quantized.quantized)), quantized

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Indices int64 (B, *index_shape) of images (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: the images have another shape or type, or NaN or infinite values.
        """
        size = self.config.image_size
        if images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise ValueError(
                f"images must be float (B, 3, {size}, {size}), not {str(images.dtype)[6:]} {tuple(images.shape)}"
            )
        return self.quantizer.quantize(self.to_codes(self.encoder(images)))

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of indices int64 (B, *index_shape), or (B, tokens) in row-major order.

        Raises:
            ValueError: the indices have another shape or leave the codebook.
        """
        shape = self.config.index_shape
        if indices.shape[1:] == (self.config.tokens,):
            indices = indices.unflatten(1, shape)
        if indices.shape[1:] != shape:
            raise ValueError(f"indices must be (B, {', '.join(map(str, shape))}), not {tuple(indices.shape)}")
        images: Tensor = self.decoder(self.from_codes(self.quantizer.indices_to_vectors(indices)))
        return images.clamp(-1, 1)

    def freeze(self) -> "Tokenizer":
        """The same tokenizer with the mapped codebook as its own, without bridge and raw codebook (paper §3.2)."""
        frozen = Tokenizer(self.config.model_copy(update={"frozen": True}))
        frozen.quantizer = self.quantizer.freeze()
        for name in ("encoder", "decoder", "to_codes", "from_codes"):
            getattr(frozen, name).load_state_dict(getattr(self, name).state_dict())
        return frozen.requires_grad_(False).to(self.device).eval()

    def save(self, path: Path | str) -> None:
        """Write safetensors with the configuration in the metadata, whole or not at all."""
        save_weights(path, self.state_dict(), kind="tokenizer", config=self.config.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what ``save`` wrote, in evaluation mode; UserError where it is missing, damaged or something else."""
        tensors, config = load_weights(path, kind="tokenizer")
        try:
            tokenizer = cls(TokenizerConfig.model_validate(config))
        except ValidationError as error:
            raise UserError(describe_validation_error(error, str(path))) from None
        wanted = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(f"{path}: {name} is {found.get(name)} and must be {wanted.get(name)}")
        tokenizer.load_state_dict(tensors)
        return tokenizer.eval()
