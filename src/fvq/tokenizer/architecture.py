"""The VQGAN encoder and decoder in the form that LlamaGen publishes (VQ-16, VQ-8), with sizes as parameters."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """norm, swish, 3×3 convolution, twice, around a skip that is 1×1 where the channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) to (B, channels_out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.skip(x) + hidden


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        height, width = x.shape[-2:]
        query, key, value = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Halve both sides with a strided 3×3 convolution, padded on the right and below as in VQGAN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h / 2, w / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by repetition, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Images (B, 3, H, W) to latents (B, latent_channels, h, w).

    Args:
        channels: width of the first level.
        multipliers: width of each level over ``channels``; each level after the first halves the sides.
        residual_blocks: residual blocks per level.
        attention: self-attention at the lowest resolution and a middle part of block, attention, block.
        latent_channels: channels of the result.
        pixel_shuffle: fold squares of this side into channels before the first level; 1 in the published models, more
            makes small models fast on a CPU.
    """

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        attention: bool,
        latent_channels: int,
        pixel_shuffle: int = 1,
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(pixel_shuffle),
            nn.Conv2d(3 * pixel_shuffle**2, widths[0], 3, padding=1),
        ]
        current = widths[0]
        for level, width in enumerate(widths):
            if level:
                layers.append(Downsample(current))
            for _ in range(residual_blocks):
                layers.append(ResidualBlock(current, width))
                current = width
                if attention and level == len(widths) - 1:
                    layers.append(AttentionBlock(current))
        if attention:
            layers += _middle(current)
        self.layers = nn.Sequential(*layers)
        self.norm_out = _norm(current)
        self.conv_out = nn.Conv2d(current, latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] (B, 3, H, W) to latents."""
        return self.conv_out(F.silu(self.norm_out(self.layers(images))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) to images (B, 3, H, W): the encoder mirrored, one more block per level."""

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        attention: bool,
        latent_channels: int,
        pixel_shuffle: int = 1,
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        current = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, current, 3, padding=1)]
        if attention:
            layers += _middle(current)
        for level in reversed(range(len(widths))):
            for _ in range(residual_blocks + 1):
                layers.append(ResidualBlock(current, widths[level]))
                current = widths[level]
                if attention and level == len(widths) - 1:
                    layers.append(AttentionBlock(current))
            if level:
                layers.append(Upsample(current))
        self.layers = nn.Sequential(*layers)
        self.norm_out = _norm(current)
        self.conv_out = nn.Conv2d(current, 3 * pixel_shuffle**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(pixel_shuffle)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents to images; the values are near [-1, 1] but not clamped."""
        images: Tensor = self.unfold(self.conv_out(F.silu(self.norm_out(self.layers(latents)))))
        return images

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, where adaptive loss weights are measured."""
        return self.conv_out.weight


def _norm(channels: int) -> nn.Module:
    """Group norm with 32 groups as in VQGAN; fewer where the channels do not divide."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def _middle(channels: int) -> list[nn.Module]:
    return [ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)]
