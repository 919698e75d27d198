"""Token after token: a generator's weights and key-value cache laid out for drawing images fast.

On a CPU the matrices are packed once for oneDNN, whose sums do not depend on the number of rows: an image's tokens are
the same bit for bit whatever the batch size. Elsewhere (float64, a torch without oneDNN, GPUs) rounding may move a rare
draw from one batch size to another. On a GPU a step, the draw included, is a CUDA graph.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fvq.generate.attention import Attend, Place, attention_for, normalize
from fvq.generate.graphs import Capture, GraphedSteps, capture_in_cuda_graphs
from fvq.generate.matrices import lay_out
from fvq.generate.memory import planned_batch_size
from fvq.generate.sampling import SamplingSettings, check_labels, check_settings, draw
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator

if TYPE_CHECKING:
    from fvq.generate.llamagen import Block, LlamaGen


class _Block:
    """A transformer block's matrices and norms."""

    def __init__(self, block: "Block") -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.heads = attention.heads
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        self.wqkv, self.wo = lay_out(attention.wqkv.weight), lay_out(attention.wo.weight)
        self.w1, self.w2, self.w3 = (lay_out(w.weight) for w in (feed_forward.w1, feed_forward.w2, feed_forward.w3))


@dataclass(frozen=True, eq=False)
class Batch:
    """B images under way, in S sequences: twice as many where they are guided, the second half without class."""

    labels: Tensor
    """int64 (S,)"""
    uniforms: Tensor
    """float64 (B, h*w) in (0, 1]: what the draws follow from."""
    tokens: Tensor
    """int64 (B, h*w); those before the position are drawn."""
    position: Tensor
    """int64 (1,)"""
    cache: Tensor
    """(depth, 2, S, heads, h*w, head width): keys and values."""


class Decoder:
    """Draws images' tokens; make one and use it for many batches, and a new one after changing the model.

    Args:
        model: on its device, in the precision that it computes in.
        settings: how tokens are drawn.
        batch_size: images at once; None is as many as memory holds.
        compiled: whether torch's compiler fuses the kernels of a block, for many images on a GPU; it takes a minute.
        capture: how steps become graphs; by default as CUDA's on a GPU, and not at all on a CPU.

    Raises:
        UserError: the settings do not fit the model, its weights are not finite, or memory holds not even one image.
    """

    def __init__(
        self,
        model: "LlamaGen",
        settings: SamplingSettings,
        batch_size: int | None = None,
        *,
        compiled: bool = False,
        capture: Capture | None = None,
    ) -> None:
        check_settings(model.config, settings, batch_size)
        _check_weights(model)
        config, weight = model.config, model.output.weight
        self.config, self.settings, self.device = config, settings, weight.device
        self.guided = settings.guides(config.tokens)
        self.batch_size = batch_size or planned_batch_size(model, guided=self.guided)
        self._through_block = torch.compile(_through_block, dynamic=False) if compiled else _through_block
        with torch.inference_mode():
            self._blocks = [_Block(cast("Block", block)) for block in model.layers]
            self._norm, self._output = model.norm, lay_out(weight)
            self._classes = model.cls_embedding.embedding_table.weight
            self._embeddings = model.tok_embeddings.weight
            self._turns = model.table
            steps = torch.arange(config.tokens, device=self.device)
            self._scales = torch.where(steps < settings.cfg_start, 1.0, settings.cfg_scale)
            sequences = self.batch_size * (2 if self.guided else 1)
            self._cache = weight.new_zeros(config.depth, 2, sequences, config.heads, config.tokens, config.head_width)
            if capture is None and weight.device.type == "cuda":
                capture = capture_in_cuda_graphs()
            self.graphs = self._graphed(capture) if capture else None

    def _graphed(self, capture: Capture) -> GraphedSteps:
        try:
            # Each span of the cache is a graph of its own to the compiler, which all decoders of the process share.
            with torch._dynamo.config.patch(recompile_limit=1000):
                return GraphedSteps(self, capture)
        except torch._dynamo.exc.TorchDynamoException as error:
            if self._through_block is _through_block:
                raise
            reason = " ".join(str(error).split())[:200]
            print(f"fvq: torch's compiler does not work here, and steps run without it ({reason})", file=sys.stderr)
            self._through_block = _through_block
            return GraphedSteps(self, capture)

    @torch.inference_mode()
    def sample(
        self,
        labels: Tensor,
        seed: int,
        image_numbers: Tensor,
        on_progress: Callable[[float], object] = lambda images: None,
    ) -> Tensor:
        """Tokens (N, h*w) int64, on the CPU, for labels (N,); image i draws from the stream of (seed, its number).

        ``on_progress`` is told after each step what it was worth in whole images.
        """
        check_labels(self.config, labels)
        run = self.graphs.run if self.graphs else self.run
        tokens = torch.empty(len(labels), self.config.tokens, dtype=torch.int64)
        for first in range(0, len(labels), self.batch_size):
            rows = slice(first, first + self.batch_size)
            some = labels[rows]
            uniforms = _uniforms(seed, image_numbers[rows], self.config.tokens)
            tokens[rows] = run(some, uniforms, partial(on_progress, len(some) / self.config.tokens))
        return tokens

    def new_batch(self, labels: Tensor, uniforms: Tensor) -> Batch:
        """Labels (B,) and uniforms (B, h*w) before the first token."""
        sequences = torch.cat([labels, torch.full_like(labels, self.config.classes)]) if self.guided else labels
        return Batch(
            labels=sequences.to(self.device),
            uniforms=uniforms.to(self.device),
            tokens=torch.zeros(uniforms.shape, dtype=torch.int64, device=self.device),
            position=torch.zeros(1, dtype=torch.int64, device=self.device),
            cache=self._cache[:, :, : len(sequences)],
        )

    def run(self, labels: Tensor, uniforms: Tensor, on_step: Callable[[], object]) -> Tensor:
        """Tokens (B, h*w) of one batch, one step after another."""
        batch = self.new_batch(labels, uniforms)
        for position in range(self.config.tokens):
            self.step(batch, position + 1, first=position == 0)
            on_step()
        return batch.tokens

    def step(self, batch: Batch, span: int, *, first: bool, masked: bool = False) -> None:
        """Draw the token at the batch's position and move on.

        Attention reads the first ``span`` tokens of the cache; where the position is not the last of them, those after
        it must be ``masked``. Nothing but tensors changes, so that a CUDA graph can hold a step.
        """
        if first:
            x = F.embedding(batch.labels, self._classes)
        else:
            newest = batch.tokens.index_select(1, batch.position - 1)[:, 0]
            x = F.embedding(newest.repeat(2) if self.guided else newest, self._embeddings)
        seen = torch.arange(span, device=self.device)[None] <= batch.position if masked else None
        place = Place(batch.position, span, self._turns.index_select(0, batch.position), seen)
        attend = attention_for(batch.cache[0], place)
        for block, cache in zip(self._blocks, batch.cache.unbind(), strict=True):
            x = self._through_block(x, block, cache, place, attend)
        features = normalize(x, self._norm)
        if self.guided:
            # Guidance of logits is that of what they are a product of, at half the products; at scale 1 to the bit.
            conditional, unconditional = features.float().chunk(2)
            scale = self._scales.index_select(0, batch.position)
            features = torch.lerp(unconditional, conditional, scale).to(features.dtype)
        logits = self._output.product(features)
        uniforms = batch.uniforms.index_select(1, batch.position)[:, 0]
        batch.tokens.index_copy_(1, batch.position, draw(logits, self.settings, uniforms)[:, None])
        batch.position.add_(1)


def sample_tokens(
    model: "LlamaGen",
    labels: Tensor,
    settings: SamplingSettings,
    seed: int,
    image_numbers: Tensor,
    batch_size: int | None = None,
) -> Tensor:
    """Tokens (N, h*w) int64, on the CPU, for labels (N,); see ``Decoder``, which spares many calls their preparation.

    Raises:
        UserError: a label is no class of the model, and what ``Decoder`` raises.
    """
    check_labels(model.config, labels)
    if batch_size is None:
        planned = planned_batch_size(model, guided=settings.guides(model.config.tokens))
        batch_size = max(1, min(planned, len(labels)))
    return Decoder(model, settings, batch_size).sample(labels, seed, image_numbers)


def _check_weights(model: "LlamaGen") -> None:
    """UserError naming a parameter with infinite or undefined values: there is no drawing from what follows of them."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise UserError(f"the generator's weights {name} are not all finite")


def _uniforms(seed: int, image_numbers: Tensor, length: int) -> Tensor:
    """What images draw by, (B, length) float64 in (0, 1]."""
    streams = [generator(seed, "image", int(number)) for number in image_numbers]
    return 1 - torch.stack([torch.rand(length, generator=stream, dtype=torch.float64) for stream in streams])


def _through_block(x: Tensor, block: _Block, cache: Tensor, place: Place, attend: Attend) -> Tensor:
    """The stream (S, width) after a block, whose cache takes up this position's keys and values."""
    qkv = block.wqkv.product(normalize(x, block.attention_norm)).unflatten(-1, (3, block.heads, -1))
    x = block.wo.product_plus(attend(qkv, cache, place).flatten(1), x)
    normed = normalize(x, block.ffn_norm)
    gated = block.w3.product_times(normed, block.w1.silu_of_product(normed))
    return block.w2.product_plus(gated, x)
