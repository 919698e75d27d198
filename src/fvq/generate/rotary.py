"""Rotary positions in two dimensions, as LlamaGen's gpt.py has them (``precompute_freqs_cis_2d``)."""

import torch
from torch import Tensor


def rotary_table(grid: tuple[int, int], head_width: int, base: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosine and sine for the class token and each token of the grid, (1 + h*w, head_width / 2, 2).

    The first half of a head's pairs turns with the row, the second with the column. The class token's entries are all
    zero, as released: its query and its key vanish, so that every token gives it the attention logit 0.
    """
    rows, columns = grid
    half = head_width // 2
    frequencies = base ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)
    by_row = torch.outer(torch.arange(rows), frequencies)[:, None].expand(-1, columns, -1)
    by_column = torch.outer(torch.arange(columns), frequencies)[None].expand(rows, -1, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(table[:1]), table]).to(dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channels of ``x`` (B, T, ..., C), taken as points of a plane, by ``table`` (T, C/2, 2).

    Bfloat16 and float16 are turned in float32; the result has the dtype of ``x``.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(exact).unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = table.to(exact).reshape(len(table), *[1] * (x.dim() - 3), -1, 2).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.flatten(-2).to(x.dtype)
