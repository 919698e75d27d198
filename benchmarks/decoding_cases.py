"""Decoding steps of a LlamaGen beside the floor that the machine sets and beside the published loop run eagerly."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cases import TINY, Case, Work, wait_for
from torch import Tensor

from fvq.generate import LlamaGen, SamplingSettings
from fvq.generate.decoding import Decoder
from fvq.generate.rotary import rotate
from fvq.generate.sizes import published_config

SIZE = "B"
IMAGES = 8
SETTINGS = SamplingSettings(cfg_scale=1.75, cfg_start=0, temperature=1.0, top_k=2000, top_p=1.0)
FLOOR_PRODUCT = "floor: one square product of as many multiply-adds"
FLOOR_READING = "floor: reading as many bytes"
DECODER = "Decoder"
PUBLISHED = "the published loop, eager"


def decoding_cases(device: str) -> list[Case]:
    """Decoding on ``cpu`` or ``cuda``: in float32, and in bfloat16 where the processor has instructions for it."""
    dtypes = [torch.float32]
    if device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    rivals = {
        DECODER: partial(_decode, compiled=False),
        PUBLISHED: _decode_as_published,
        FLOOR_PRODUCT: _multiply,
        FLOOR_READING: _read,
    }
    if device == "cuda":
        rivals["Decoder, compiled"] = partial(_decode, compiled=True)
    return [
        Case(
            title=f"Decoding: GPT-{SIZE}, {IMAGES} images with guidance, {name(dtype)}, {len(positions(device))} steps",
            base=FLOOR_PRODUCT if device == "cpu" else PUBLISHED,
            rivals={rival: partial(prepare, device, dtype) for rival, prepare in rivals.items()},
            agree=agree,
            rounds=5,
        )
        for dtype in dtypes
    ]


def name(dtype: torch.dtype) -> str:
    """Without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def positions(device: str) -> range:
    """The steps that are timed: on a CPU every sixteenth of an image's 256, all of them where graphs hold the steps."""
    return range(8, 256, 16) if device == "cpu" else range(256)


def agree(result: Any, expected: Any) -> None:
    """The tokens of the published loop are those of the decoder, up to draws that rounding moves."""
    if isinstance(result, Tensor):  # the floors draw nothing
        share = float((result == expected).float().mean())
        assert share > 0.97, f"only {share:.1%} of the tokens are the same"


def _model(device: str, dtype: torch.dtype) -> LlamaGen:
    torch.manual_seed(0)
    config = published_config(SIZE, **({"depth": 2} if TINY else {}))
    model = LlamaGen(config).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model.to(device, dtype)


def _drawn_by() -> tuple[Tensor, Tensor]:
    """Labels and uniforms."""
    return torch.arange(IMAGES), 1 - torch.rand(IMAGES, 256, generator=torch.Generator().manual_seed(1)).double()


def _matrices(model: LlamaGen) -> int:
    """Weights that a step multiplies by."""
    embeddings = model.cls_embedding.embedding_table.weight, model.tok_embeddings.weight
    return sum(p.numel() for p in model.parameters() if p.dim() == 2) - sum(p.numel() for p in embeddings)


def _multiply(device: str, dtype: torch.dtype) -> Work:
    """The multiply-adds of the published step, twice as many sequences as images, in one product of square matrices."""
    side = round((2 * IMAGES * _matrices(_model("meta", dtype))) ** (1 / 3))
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def work() -> None:
        for _ in positions(device):
            torch.mm(a, b, out=out)
        wait_for(device)

    return work


def _read(device: str, dtype: torch.dtype) -> Work:
    """The matrices' bytes, added up."""
    count = _matrices(_model("meta", dtype)) * dtype.itemsize // 4
    values = torch.ones(count, device=device)

    def work() -> None:
        for _ in positions(device):
            values.sum()
        wait_for(device)

    return work


def _decode(device: str, dtype: torch.dtype, *, compiled: bool) -> Work:
    decoder = Decoder(_model(device, dtype), SETTINGS, IMAGES, compiled=compiled)
    labels, uniforms = _drawn_by()
    batch = decoder.new_batch(labels, uniforms)
    _fill(batch.cache)

    @torch.inference_mode()
    def work() -> Tensor:
        if decoder.graphs is not None:
            return decoder.graphs.run(labels, uniforms, lambda: None).cpu()
        batch.tokens.zero_()
        for position in positions(device):
            batch.position.fill_(position)
            decoder.step(batch, position + 1, first=False)
        return batch.tokens[:, positions(device)].clone()

    return work


@torch.inference_mode()
def _fill(cache_dcshtw: Tensor) -> None:
    """Keys and values of an image under way, the same for every rival."""
    drawn = torch.randn(cache_dcshtw.shape[2:], generator=torch.Generator().manual_seed(2))
    cache_dcshtw.copy_(drawn)


def _decode_as_published(device: str, dtype: torch.dtype) -> Work:
    """The loop of LlamaGen's generate.py, written from what it does.

    A cache of full length behind a causal mask, guidance by doubling, scaled dot-product attention over the whole
    cache, ``topk``. Draws go by the same uniforms as the decoder's, so that tokens can be compared.
    """
    model = _model(device, dtype)
    config = model.config
    length = 8 * math.ceil((config.tokens + 1) / 8)
    shape = (config.depth, 2, 2 * IMAGES, config.heads, length, config.head_width)
    cache = torch.zeros(shape, device=device, dtype=dtype)
    mask = torch.tril(torch.ones(length, length, dtype=torch.bool, device=device)).repeat(2 * IMAGES, 1, 1)
    labels, uniforms = _drawn_by()
    sequences = torch.cat([labels, torch.full_like(labels, config.classes)]).to(device)
    uniforms = uniforms.to(device)
    if device == "cpu":
        _fill(cache[..., : config.tokens, :])
    tokens = torch.zeros(IMAGES, config.tokens, dtype=torch.int64, device=device)

    def forward(x: Tensor, position: Tensor) -> Tensor:
        seen = mask[:, None, position]
        for layer, (kept_keys, kept_values) in zip(model.layers, cache, strict=True):
            attention = layer.attention
            qkv = attention.wqkv(layer.attention_norm(x)).unflatten(-1, (3, config.heads, -1))
            query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
            turn = model.table[position]
            query, key = (rotate(part.transpose(1, 2), turn).transpose(1, 2) for part in (query, key))
            kept_keys[:, :, position], kept_values[:, :, position] = key, value
            # As many heads of keys as of queries: a copy of the whole cache, which the loop makes all the same.
            keys, values = kept_keys.repeat_interleave(1, dim=1), kept_values.repeat_interleave(1, dim=1)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
            x = x + attention.wo(mixed.transpose(1, 2).flatten(2))
            x = x + layer.feed_forward(layer.ffn_norm(x))
        return model.output(model.norm(x))[:, -1].float()

    @torch.inference_mode()
    def work() -> Tensor:
        tokens.zero_()
        for number in positions(device):
            position = torch.tensor([number], device=device)
            if number == 0:
                x = model.cls_embedding.embedding_table(sequences)[:, None]
            else:
                newest = tokens[:, number - 1 : number]
                x = model.tok_embeddings(torch.cat([newest, newest]))
            conditional, unconditional = forward(x, position).chunk(2)
            logits = unconditional + (conditional - unconditional) * SETTINGS.cfg_scale
            logits = logits / SETTINGS.temperature
            logits[logits < logits.topk(SETTINGS.top_k).values[:, -1:]] = -torch.inf
            sums = F.softmax(logits, dim=-1).double().cumsum(-1)
            tokens[:, number] = torch.searchsorted(sums, uniforms[:, number, None] * sums[:, -1:])[:, 0]
        return tokens[:, positions(device)].cpu()

    return work
