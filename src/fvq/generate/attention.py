"""Attention of a newest token to those before it, which a cache holds; and the norm before it."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvq.generate.rotary import rotate


@dataclass(frozen=True, eq=False)
class Place:
    """Where a step stands."""

    position: Tensor
    """int64 (1,)"""
    span: int
    """Tokens of the cache that are read; without a mask the newest one is the last of them."""
    turn: Tensor
    """(1, head width / 2, 2): the position's entry of the rotary table."""
    seen: Tensor | None
    """bool (1, span): the tokens up to the position; None where that is all of them."""


class Attend(Protocol):
    def __call__(self, qkv: Tensor, cache: Tensor, place: Place) -> Tensor:
        """What the newest tokens gather, (S, heads, head width), from queries, keys and values (S, 3, heads, width).

        ``cache`` (2, S, heads, h*w, head width) holds the keys and values before them, and then theirs as well.
        """
        ...


def attention_for(cache: Tensor, place: Place) -> Attend:
    """The quickest way for blocks whose caches (2, S, heads, h*w, head width) are like this one."""
    if cache.device.type != "cpu" or cache.dtype != torch.float32 or place.seen is not None:
        return _attend
    _, sequences, heads, length, _ = cache.shape
    firsts = torch.arange(0, sequences * heads * length, length, dtype=torch.int32)
    rows = firsts[:, None] + torch.arange(place.span, dtype=torch.int32)
    starts = torch.arange(0, rows.numel(), place.span, dtype=torch.int32)
    return partial(_attend_in_bags, rows=rows.flatten(), starts=starts)


def normalize(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """``norm(x)`` of x (R, C); in float32 on a CPU in fewer operations than torch's, whose launches take most time."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or norm.eps is None:
        return norm(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * length.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()).mul_(norm.weight)


def _attend(qkv: Tensor, cache: Tensor, place: Place) -> Tensor:
    query, key = rotate(qkv[:, None, :2], place.turn)[:, 0].unbind(1)
    cache.index_copy_(3, place.position, torch.stack([key, qkv[:, 2]])[:, :, :, None])
    keys, values = cache[:, :, :, : place.span].unbind()
    return F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=place.seen)[:, :, 0]


def _attend_in_bags(qkv: Tensor, cache: Tensor, place: Place, *, rows: Tensor, starts: Tensor) -> Tensor:
    """With one query a sequence, torch's attention on a CPU takes longer than these two passes over the cache.

    The weighted sum of the values is an embedding bag's: it reads each once, in order. Changes ``qkv``.
    """
    width = cache.shape[-1]
    torch.view_as_complex(qkv[:, :2].unflatten(-1, (-1, 2))).mul_(torch.view_as_complex(place.turn))
    cache[:, :, :, place.span - 1] = qkv[:, 1:].transpose(0, 1)
    keys, values = cache.flatten(1, 2).unbind()
    query = qkv[:, 0].reshape(-1, 1, width)
    scores = torch.baddbmm(query.new_zeros(1), query, keys[:, : place.span].mT, beta=0, alpha=width**-0.5)
    weights = scores.softmax(-1).flatten()
    mixed = F.embedding_bag(rows, values.flatten(0, 1), starts, mode="sum", per_sample_weights=weights)
    return mixed.view_as(qkv[:, 0])
