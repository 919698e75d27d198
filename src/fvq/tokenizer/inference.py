"""A tokenizer over many images: reconstructions and token tables."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fvq.data.image_table import to_model_range, to_uint8
from fvq.data.open import LabelledImages
from fvq.data.views import apply_view
from fvq.runtime.progress import track
from fvq.tokenizer.tokenizer import Tokenizer
from fvq.tokens import TokenBatch

_BATCH = 256
_PIXELS = 2**21


def images_at_once(tokenizer: Tokenizer) -> int:
    """Images of a batch: 256, or fewer where they are larger than 90 pixels."""
    return max(1, min(_BATCH, _PIXELS // tokenizer.config.image_size**2))


def reconstruct(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Indices int64 (N, *index_shape) and reconstructions uint8 of images uint8 (N, 3, H, W), on the CPU."""
    indices = torch.empty(len(images), *tokenizer.config.index_shape, dtype=torch.int64)
    reconstructions = torch.empty_like(images)
    device, batch = tokenizer.device, images_at_once(tokenizer)
    with track("reconstructing", len(images)) as advance:
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            indices[rows] = tokenizer.encode(to_model_range(images[rows].to(device))).cpu()
            reconstructions[rows] = to_uint8(tokenizer.decode(indices[rows].to(device))).cpu()
            advance(len(images[rows]))
    return indices, reconstructions


def decode_tokens(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) of tokens int64 (N, tokens), on the CPU."""
    size = tokenizer.config.image_size
    images = torch.empty(len(tokens), 3, size, size, dtype=torch.uint8)
    device, batch = tokenizer.device, images_at_once(tokenizer)
    for start in range(0, len(tokens), batch):
        rows = slice(start, start + batch)
        images[rows] = to_uint8(tokenizer.decode(tokens[rows].to(device))).cpu()
    return images


def encode_views(tokenizer: Tokenizer, table: LabelledImages, views: tuple[str, ...]) -> Iterator[TokenBatch]:
    """The tokens of every image in every view, a batch (B, tokens) of a view at a time, images in the table's order."""
    device, batch = tokenizer.device, images_at_once(tokenizer)
    with track("encoding", len(table) * len(views)) as advance:
        for start in range(0, len(table), batch):
            image_ids = torch.arange(start, min(start + batch, len(table)))
            images = table.images(image_ids)
            for view in views:
                indices = tokenizer.encode(to_model_range(apply_view(images, view).to(device)))
                yield TokenBatch(
                    image_ids=image_ids, labels=table.labels[image_ids], view=view, codes=indices.flatten(1).cpu()
                )
                advance(len(images))
