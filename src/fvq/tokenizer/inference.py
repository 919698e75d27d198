"""A tokenizer over many images: reconstructions and token tables."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fvq.data.image_table import ImageTable, to_model_range, to_uint8
from fvq.data.views import apply_view
from fvq.runtime.progress import track
from fvq.tokenizer.tokenizer import Tokenizer
from fvq.tokens import TokenBatch

_BATCH = 256


def reconstruct(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Indices int64 (N, h, w) and reconstructions uint8 (N, 3, H, W) of images uint8 (N, 3, H, W), on the CPU."""
    indices = torch.empty(len(images), *tokenizer.config.grid, dtype=torch.int64)
    reconstructions = torch.empty_like(images)
    device = tokenizer.device
    with track("reconstructing", len(images)) as advance:
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            indices[rows] = tokenizer.encode(to_model_range(images[rows].to(device))).cpu()
            reconstructions[rows] = to_uint8(tokenizer.decode(indices[rows].to(device))).cpu()
            advance(len(images[rows]))
    return indices, reconstructions


def decode_tokens(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) of tokens int64 (N, h·w), on the CPU."""
    size = tokenizer.config.image_size
    images = torch.empty(len(tokens), 3, size, size, dtype=torch.uint8)
    device = tokenizer.device
    for start in range(0, len(tokens), _BATCH):
        rows = slice(start, start + _BATCH)
        images[rows] = to_uint8(tokenizer.decode(tokens[rows].to(device))).cpu()
    return images


def encode_views(tokenizer: Tokenizer, table: ImageTable, views: tuple[str, ...]) -> Iterator[TokenBatch]:
    """The tokens of every image in every view, a batch of one view at a time, images in the table's order."""
    device = tokenizer.device
    with track("encoding", len(table) * len(views)) as advance:
        for start in range(0, len(table), _BATCH):
            image_ids = torch.arange(start, min(start + _BATCH, len(table)))
            images = table.images(image_ids)
            for view in views:
                indices = tokenizer.encode(to_model_range(apply_view(images, view).to(device)))
                yield TokenBatch(
                    image_ids=image_ids, labels=table.labels[image_ids], view=view, codes=indices.flatten(1).cpu()
                )
                advance(len(images))
