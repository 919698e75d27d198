"""Decoding steps as CUDA graphs: hundreds of small kernels are launched as one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fvq.generate.decoding import Decoder

# Graphs of one decoder. Each attends to a longer part of the cache: with four, an eighth is read in vain.
_SPANS = 4
_WARM_UPS = 3

Capture = Callable[[Callable[[], None], Callable[[], None]], Callable[[], None]]
"""From a step, and what puts its position back before each try, to what repeats the step."""


class GraphedSteps:
    """A decoder's steps on one static batch of its full size; smaller ones are filled up."""

    def __init__(self, decoder: "Decoder", capture: Capture) -> None:
        self._length = decoder.config.tokens
        self._span = -(-self._length // _SPANS)
        count = decoder.batch_size
        labels = torch.zeros(count, dtype=torch.int64)
        self._batch = decoder.new_batch(labels, torch.ones(count, self._length, dtype=torch.float64))

        def captured(span: int, *, first: bool) -> Callable[[], None]:
            def step() -> None:
                decoder.step(self._batch, span, first=first, masked=True)

            def reset() -> None:
                self._batch.position.fill_(0 if first else max(1, span - 1))

            return capture(step, reset)

        ends = range(self._span, self._length + self._span, self._span)
        self._first = captured(1, first=True)
        self._next = [captured(min(end, self._length), first=False) for end in ends if self._length > 1]

    def run(self, labels: Tensor, uniforms: Tensor, on_step: Callable[[], object]) -> Tensor:
        """Tokens (B, h*w) for labels (B,) and uniforms (B, h*w); ``on_step`` is called after each step's launch."""
        batch, count = self._batch, len(labels)
        batch.labels[:count].copy_(labels)
        batch.uniforms[:count].copy_(uniforms)
        batch.position.zero_()
        self._first()
        on_step()
        for position in range(1, self._length):
            self._next[position // self._span]()
            on_step()
        return batch.tokens[:count].clone()


def capture_in_cuda_graphs() -> Capture:
    """Captures steps, all in one pool of memory; their first runs (they compile) happen on a stream of their own."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                reset()
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            step()
        return graph.replay

    return capture
