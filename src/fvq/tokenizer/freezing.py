"""Freezing a tokenizer, with a proof on real images that nothing changed."""

from typing import Protocol

import torch
from torch import Tensor

from fvq.data.image_table import to_model_range
from fvq.runtime.errors import UserError
from fvq.tokenizer.inference import images_at_once
from fvq.tokenizer.tokenizer import Tokenizer


class Images(Protocol):
    """What holds images, such as an ``ImageTable``."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor, /) -> Tensor:
        """The images uint8 (B, 3, H, W) at indices int64 (B,)."""
        ...


def compare_tokenizers(
    before: Tokenizer, after: Tokenizer, table: Images, batch_size: int | None = None
) -> dict[str, float]:
    """What differs between two tokenizers of one device on a table's images, of which one batch is in memory at a time.

    Returns:
        ``images``, ``tokens``, ``changed_tokens`` (indices that differ) and ``largest_difference`` (of any
        reconstructed value, in [-1, 1] units, each tokenizer decoding its own indices).
    """
    tokens, changed, largest = 0, 0, 0.0
    for rows in torch.arange(len(table)).split(batch_size or images_at_once(before)):
        batch = to_model_range(table.images(rows).to(before.device))
        indices, frozen_indices = before.encode(batch), after.encode(batch)
        tokens += indices.numel()
        changed += int((indices != frozen_indices).sum())
        difference = (before.decode(indices) - after.decode(frozen_indices)).abs().max()
        largest = max(largest, float(difference.nan_to_num(nan=float("inf"))))
    return {"images": len(table), "tokens": tokens, "changed_tokens": changed, "largest_difference": largest}


def freeze_tokenizer(tokenizer: Tokenizer, table: Images) -> tuple[Tokenizer, dict[str, float]]:
    """The frozen tokenizer, and the comparison on the images of a table that proves it the same.

    Raises:
        UserError: an index or a reconstruction changed.
    """
    frozen = tokenizer.freeze()
    comparison = compare_tokenizers(tokenizer, frozen, table)
    if comparison["changed_tokens"] or comparison["largest_difference"]:
        raise UserError(
            f"the frozen tokenizer differs: {comparison['changed_tokens']:.0f} of {comparison['tokens']:.0f} tokens, "
            f"reconstructions by up to {comparison['largest_difference']:.3g}"
        )
    return frozen, comparison
