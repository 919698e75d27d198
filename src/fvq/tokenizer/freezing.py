"""Freezing a tokenizer, with a proof on real images that nothing changed."""

from torch import Tensor

from fvq.data.image_table import to_model_range
from fvq.runtime.errors import UserError
from fvq.tokenizer.tokenizer import Tokenizer


def compare_tokenizers(before: Tokenizer, after: Tokenizer, images: Tensor, batch_size: int = 256) -> dict[str, float]:
    """What differs between two tokenizers on images uint8 (N, 3, H, W).

    Returns:
        ``images``, ``tokens``, ``changed_tokens`` (indices that differ) and ``largest_difference`` (of any
        reconstructed value, in [-1, 1] units, each tokenizer decoding its own indices).
    """
    tokens, changed, largest = 0, 0, 0.0
    for start in range(0, len(images), batch_size):
        batch = to_model_range(images[start : start + batch_size])
        indices, frozen_indices = before.encode(batch), after.encode(batch)
        tokens += indices.numel()
        changed += int((indices != frozen_indices).sum())
        difference = (before.decode(indices) - after.decode(frozen_indices)).abs().max()
        largest = max(largest, float(difference.nan_to_num(nan=float("inf"))))
    return {"images": len(images), "tokens": tokens, "changed_tokens": changed, "largest_difference": largest}


def freeze_tokenizer(tokenizer: Tokenizer, images: Tensor) -> tuple[Tokenizer, dict[str, float]]:
    """The frozen tokenizer, and the comparison on images uint8 (N, 3, H, W) that proves it the same.

    Raises:
        UserError: an index or a reconstruction changed.
    """
    frozen = tokenizer.freeze()
    comparison = compare_tokenizers(tokenizer, frozen, images)
    if comparison["changed_tokens"] or comparison["largest_difference"]:
        raise UserError(
            f"the frozen tokenizer differs: {comparison['changed_tokens']:.0f} of {comparison['tokens']:.0f} tokens, "
            f"reconstructions by up to {comparison['largest_difference']:.3g}"
        )
    return frozen, comparison
