"""A tokenizer over many images: reconstructions and token tables."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fvq.data.image_table import to_model_range, to_uint8
from fvq.data.open import LabelledImages
from fvq.data.views import expand_views
from fvq.tokenizer.tokenizer import Tokenizer
from fvq.tokens import TokenBatch

_BATCH = 256
_PIXELS = 2**21


def images_at_once(tokenizer: Tokenizer) -> int:
    """Images of a batch: 256, or fewer where they are larger than 90 pixels."""
    return max(1, min(_BATCH, _PIXELS // tokenizer.config.image_size**2))


def reconstruct(
    tokenizer: Tokenizer, images: Tensor, advance: Callable[[int], None] = lambda count: None
) -> tuple[Tensor, Tensor]:
    """Indices int64 (N, *index_shape) and reconstructions uint8 of images uint8 (N, 3, H, W), on the CPU.

    ``advance`` is called with the number of images done, now and then.
    """
    indices = torch.empty(len(images), *tokenizer.config.index_shape, dtype=torch.int64)
    reconstructions = torch.empty_like(images)
    device, batch = tokenizer.device, images_at_once(tokenizer)
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


def encode_views(
    tokenizer: Tokenizer, images: LabelledImages, views: Sequence[str], image_ids: Tensor | Sequence[int]
) -> Iterator[TokenBatch]:
    """The tokens of the images at ``image_ids`` in every view, in their order.

    A batch (B, tokens) is of one view. Some images' batches, one for each of the names that ``expand_views`` gives,
    come before those of the next images.
    """
    names, ids_n = expand_views(views), torch.as_tensor(image_ids, dtype=torch.int64)
    device, batch = tokenizer.device, images_at_once(tokenizer)
    for start in range(0, len(ids_n), batch):
        ids_b = ids_n[start : start + batch]
        views_bvchw = images.views(ids_b, names)
        for number, name in enumerate(names):
            indices = tokenizer.encode(to_model_range(views_bvchw[:, number].to(device)))
            yield TokenBatch(image_ids=ids_b, labels=images.labels[ids_b], view=name, codes=indices.flatten(1).cpu())
