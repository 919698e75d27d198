"""Scores and their minima in one kernel: the shortlist on CUDA never writes a score to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fvq.quantize.shortlist import FUSED_TILE

_TOKENS = 128
_CHANNELS = 64


def fused_group_minima(z_nd: Tensor, codes_kd: Tensor, half_norms_k: Tensor, group: int) -> Tensor:
    """The smallest score |e|²/2 - z·e of each group of codes: float32 (n, K / group).

    Args:
        z_nd: bfloat16 (n, d).
        codes_kd: bfloat16 (K, d), K a multiple of ``FUSED_TILE``.
        half_norms_k: float32 (K,), |e|²/2.
        group: codes of a group, laid out as ``shortlist.Codes`` says.
    """
    minima_ng = torch.empty(len(z_nd), len(codes_kd) // group, dtype=torch.float32, device=z_nd.device)
    # Token tiles vary fastest: all of them are done while a tile of codes is in the cache.
    grid = (triton.cdiv(len(z_nd), _TOKENS), len(codes_kd) // FUSED_TILE)
    _group_minima[grid](
        z_nd,
        codes_kd,
        half_norms_k,
        minima_ng,
        len(z_nd),
        DIM=z_nd.shape[1],
        GROUPS=minima_ng.shape[1],
        GROUP=group,
        TOKENS=_TOKENS,
        CODES=FUSED_TILE,
        CHANNELS=_CHANNELS,
        num_warps=8,
        num_stages=3,
        enable_fp_fusion=True,
    )
    return minima_ng


@triton.jit  # type: ignore[untyped-decorator]
def _group_minima(  # type: ignore[no-untyped-def]
    z,
    codes,
    half_norms,
    minima,
    tokens,
    DIM: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    CODES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    per_tile: tl.constexpr = CODES // GROUP
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.program_id(1) * CODES + tl.arange(0, CODES)
    products = tl.zeros((TOKENS, CODES), dtype=tl.float32)
    for start in range(0, DIM, CHANNELS):
        channels = start + tl.arange(0, CHANNELS)
        inside = channels < DIM
        z_tile = tl.load(
            z + rows[:, None].to(tl.int64) * DIM + channels[None, :],
            mask=(rows < tokens)[:, None] & inside[None, :],
            other=0.0,
        )
        code_tile_t = tl.load(
            codes + columns[None, :].to(tl.int64) * DIM + channels[:, None],
            mask=inside[:, None],
            other=0.0,
        )
        products = tl.dot(z_tile, code_tile_t, products)
    scores = tl.load(half_norms + columns)[None, :] - products
    smallest = tl.min(tl.reshape(scores, (TOKENS, GROUP, per_tile)), axis=1)
    places = tl.program_id(1) * per_tile + tl.arange(0, per_tile)
    tl.store(minima + rows[:, None].to(tl.int64) * GROUPS + places[None, :], smallest, mask=(rows < tokens)[:, None])
