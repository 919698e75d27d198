"""The transformer blocks of VQBridge, as the paper describes them and as the released training scripts use them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Layers(nn.Module):
    """What both blocks are made of: attention with biases, and a feed-forward part with tanh-GELU; no dropout."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, int(width * mlp_ratio))
        self.mlp_out = nn.Linear(int(width * mlp_ratio), width)

    def _attend(self, x_td: Tensor) -> Tensor:
        tokens, width = x_td.shape
        qkv = self.attention_in(x_td).reshape(1, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.attention_out(mixed.transpose(1, 2).reshape(tokens, width))

    def _feed_forward(self, x_td: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(x_td), approximate="tanh"))


class ViTBlock(_Layers):
    """Pre-norm block of the paper (§3.2), with the released code's norms without parameters."""

    def forward(self, x_td: Tensor) -> Tensor:
        """Tokens (T, width) to (T, width)."""
        x_td = x_td + self._attend(norm(x_td))
        return x_td + self._feed_forward(norm(x_td))


class DiTBlock(_Layers):
    """The same with adaLN-Zero (DiT, Peebles & Xie 2023): a condition shifts and scales inputs and gates outputs."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x_td: Tensor, condition_1d: Tensor) -> Tensor:
        """Tokens (T, width) to (T, width), given a condition (1, width)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition_1d).chunk(6, dim=1)
        x_td = x_td + gate * self._attend(modulate(norm(x_td), shift, scale))
        return x_td + mlp_gate * self._feed_forward(modulate(norm(x_td), mlp_shift, mlp_scale))


def norm(x_td: Tensor) -> Tensor:
    """Layer norm without parameters."""
    return F.layer_norm(x_td, x_td.shape[-1:], eps=1e-6)


def modulate(x_td: Tensor, shift_1d: Tensor, scale_1d: Tensor) -> Tensor:
    """Tokens shifted and scaled; a shift and a scale of 0 change nothing."""
    return x_td * (1 + scale_1d) + shift_1d


def sequence_positions(tokens: int, width: int) -> Tensor:
    """Fixed sin-cos positions float32 (tokens, width), width even: sines, then cosines, of t / 10000^(2i / width)."""
    return _sin_cos(torch.arange(tokens), width)


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed sin-cos positions float32 (side², width) of a grid in row-major order, width divisible by 4.

    The column in the first half of the channels and the row in the second, as in MAE and DiT.
    """
    rows_t, columns_t = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return torch.cat([_sin_cos(columns_t, width // 2), _sin_cos(rows_t, width // 2)], dim=1)


def _sin_cos(places_t: Tensor, width: int) -> Tensor:
    frequencies = 10000.0 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    angles = places_t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
