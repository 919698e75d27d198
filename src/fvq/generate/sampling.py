"""Drawing images' tokens: key-value cache, classifier-free guidance, truncated draws, resumable runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.seeds import generator

if TYPE_CHECKING:
    from fvq.generate.llamagen import LlamaGen


class SamplingSettings(BaseModel):
    """How tokens are drawn; see ``LlamaGen.sample``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cfg_scale: float = Field(ge=1, description="classifier-free guidance; 1 is none")
    cfg_start: int = Field(ge=0, description="the first token that is guided, from 0")
    temperature: float = Field(ge=0, description="divides the logits; 0 takes the likeliest token")
    top_k: int = Field(ge=0, description="only this many likeliest tokens are drawn; 0 is all")
    top_p: float = Field(
        gt=0, le=1, description="only the likeliest tokens of this joint probability are drawn; 1 is all"
    )


def class_labels(count: int, classes: int, how: Literal["balanced", "uniform"], seed: int) -> Tensor:
    """``count`` labels (int64) from 0 to ``classes - 1``.

    ``balanced``: 0, 1, 2, … over and over, so that counts differ by at most one in any stretch. ``uniform``: drawn
    independently, as LlamaGen's sampling script does.
    """
    if how == "balanced":
        return torch.arange(count) % classes
    if how == "uniform":
        return torch.randint(classes, (count,), generator=generator(seed, "sampled labels"))
    raise UserError(f"labels: {how!r} is neither balanced nor uniform")


class LayerCache:
    """Keys and values of the tokens seen so far in one block, in preallocated memory."""

    def __init__(self, batch: int, heads: int, length: int, head_width: int, like: Tensor) -> None:
        self._keys = like.new_empty(batch, heads, length, head_width)
        self._values = torch.empty_like(self._keys)
        self.filled = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B, heads, 1, head_width); return all so far (B, heads, filled, head_width)."""
        self._keys[:, :, self.filled] = key[:, :, 0]
        self._values[:, :, self.filled] = value[:, :, 0]
        self.filled += 1
        return self._keys[:, :, : self.filled], self._values[:, :, : self.filled]


def empty_caches(model: "LlamaGen", batch: int) -> list[LayerCache]:
    """One cache per block, for whole images."""
    config, like = model.config, model.output.weight
    return [LayerCache(batch, config.heads, config.tokens, config.head_width, like) for _ in range(config.depth)]


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B, K) with -inf outside the ``top_k`` likeliest (0: all) and, among those, outside the fewest likeliest
    whose probability reaches ``top_p``. Of equal logits the lower index is kept.
    """
    vocabulary = logits.shape[-1]
    if not 0 < top_k < vocabulary:
        top_k = vocabulary
    if top_k == vocabulary and top_p == 1:
        return logits
    # Only a threshold is taken from the order: draws go by vocabulary, where near-equal tokens cannot swap places.
    ordered = logits.sort(descending=True).values if top_k == vocabulary else logits.topk(top_k).values
    kept = torch.full_like(ordered[:, :1], top_k, dtype=torch.int64)
    if top_p < 1:
        cumulative = ordered.softmax(-1).cumsum(-1, dtype=torch.float64)
        kept = 1 + (cumulative[:, :-1] < top_p).sum(-1, keepdim=True)
    threshold = ordered.gather(-1, kept - 1)
    above = logits > threshold
    ties = logits == threshold
    first_ties = ties & (ties.cumsum(-1) <= kept - above.sum(-1, keepdim=True))
    return logits.masked_fill(~(above | first_ties), -torch.inf)


def draw(logits: Tensor, settings: SamplingSettings, uniforms: Tensor) -> Tensor:
    """Tokens (B,) from logits (B, K), by inverse cumulative probability at ``uniforms`` (B,) float64 in (0, 1]."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    kept = truncate(logits.float() / settings.temperature, settings.top_k, settings.top_p)
    cumulative = kept.softmax(-1).cumsum(-1, dtype=torch.float64)
    # The first token at which the sum reaches the target; the target is above 0, so never a token of probability 0.
    return torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:])[:, 0]


def check_sampling(model: "LlamaGen", labels: Tensor, settings: SamplingSettings) -> None:
    """UserError where a label is no class of the model, or where it cannot be guided."""
    classes = model.config.classes
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise UserError(f"labels: {int(wrong[0])} is no class of this generator (0 to {classes - 1})")
    if settings.cfg_scale > 1 and model.config.class_dropout == 0:
        raise UserError("cfg_scale: this generator was trained with class_dropout 0 and cannot be guided; set it to 1")


@torch.inference_mode()
def sample_tokens(
    model: "LlamaGen", labels: Tensor, settings: SamplingSettings, seed: int, image_numbers: Tensor
) -> Tensor:
    """Tokens (B, h*w) int64 for checked labels (B,); image i draws from the stream of (seed, its number)."""
    count, length = len(labels), model.config.tokens
    device = model.output.weight.device
    tokens = torch.empty(count, length, dtype=torch.int64, device=device)
    if count == 0:
        return tokens
    streams = [generator(seed, "image", int(number)) for number in image_numbers]
    uniforms = 1 - torch.stack([torch.rand(length, generator=s, dtype=torch.float64) for s in streams]).to(device)
    guided = settings.cfg_scale > 1 and settings.cfg_start < length
    labels = labels.to(device)
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.config.classes)])
    caches = empty_caches(model, len(labels))
    was_training = model.training
    model.eval()
    try:
        for position in range(length):
            if position == 0:
                logits = model.start(labels, caches)
            else:
                newest = tokens[:, position - 1]
                logits = model.advance(newest.repeat(2) if guided else newest, caches)
            if guided:
                logits, unconditional = logits.chunk(2)
                if position >= settings.cfg_start:
                    logits = unconditional + settings.cfg_scale * (logits - unconditional)
            tokens[:, position] = draw(logits, settings, uniforms[:, position])
    finally:
        model.train(was_training)
    return tokens


def sample_many(
    model: "LlamaGen",
    labels: Tensor,
    settings: SamplingSettings,
    *,
    seed: int,
    part_folder: Path,
    batch_size: int,
    on_progress: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Tokens (N, h*w) int64, on the CPU, for labels (N,); a killed run goes on from its finished batches.

    Each batch's tokens are written to ``part_folder`` as they come. The folder belongs to this model, these labels,
    settings and seed: the caller names it after a digest of them, and removes it once the result is safely written.
    ``on_progress`` is told of each batch's number of images, those of an earlier run included.

    Raises:
        UserError: a label is out of range, a part in the folder is damaged or does not fit, guidance is impossible.
    """
    check_sampling(model, labels, settings)
    if batch_size < 1:
        raise UserError(f"batch_size: must be at least 1, not {batch_size}")
    parts = [torch.empty(0, model.config.tokens, dtype=torch.int64)]
    for first in range(0, len(labels), batch_size):
        numbers = torch.arange(first, min(first + batch_size, len(labels)))
        path = part_folder / f"tokens-{first:08d}-{first + len(numbers):08d}.npy"
        if path.is_file():
            part = _read_part(path, (len(numbers), model.config.tokens))
        else:
            part = sample_tokens(model, labels[numbers], settings, seed, numbers).cpu()
            with write_atomically(path) as temporary:
                np.save(temporary, part.numpy().astype(np.int32))
        parts.append(part)
        on_progress(len(numbers))
    return torch.cat(parts)


def _read_part(path: Path, shape: tuple[int, int]) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable ({error}); remove it and run again") from None
    if array.shape != shape or array.dtype != np.int32:
        raise UserError(f"{path}: holds {array.dtype} {array.shape}, not int32 {shape}; remove it and run again")
    return torch.from_numpy(array.astype(np.int64))
