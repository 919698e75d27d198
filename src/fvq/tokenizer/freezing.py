"""Freezing a tokenizer, its codes in the order of their use, with a proof on real images that nothing else changed."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from fvq.data.image_table import to_model_range
from fvq.quantize import Quantizer
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.index_backpropagation import IndexBackpropagationQuantizer
from fvq.quantize.multiscale import MultiscaleQuantizer
from fvq.quantize.residual import ResidualQuantizer
from fvq.quantize.usage import code_counts
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
    before: Tokenizer,
    after: Tokenizer,
    table: Images,
    batch_size: int | None = None,
    order_k: Tensor | None = None,
) -> dict[str, float]:
    """What differs between two tokenizers of one device on a table's images, of which one batch is in memory at a time.

    Args:
        before: a tokenizer.
        after: another one with as many tokens.
        table: the images.
        batch_size: images at once.
        order_k: int64 (K,), which of the codes of ``before`` each code of ``after`` is; by default the same.

    Returns:
        ``images``, ``tokens``, ``changed_tokens`` (indices of other codes) and ``largest_difference`` (of any
        reconstructed value, in [-1, 1] units, each tokenizer decoding its own indices).
    """
    tokens, changed, largest = 0, 0, 0.0
    order_k = None if order_k is None else order_k.to(before.device)
    for rows in torch.arange(len(table)).split(batch_size or images_at_once(before)):
        batch = to_model_range(table.images(rows).to(before.device))
        indices, other_indices = before.encode(batch), after.encode(batch)
        tokens += indices.numel()
        changed += int((indices != (other_indices if order_k is None else order_k[other_indices])).sum())
        difference = (before.decode(indices) - after.decode(other_indices)).abs().max()
        largest = max(largest, float(difference.nan_to_num(nan=float("inf"))))
    return {"images": len(table), "tokens": tokens, "changed_tokens": changed, "largest_difference": largest}


def freeze_tokenizer(tokenizer: Tokenizer, table: Images) -> tuple[Tokenizer, dict[str, float | str]]:
    """The frozen tokenizer, and the comparison on the images of a table that proves it the same.

    Where the quantizer has a codebook, codes are numbered by how often the images use them: 0 is the most used one, and
    codes used equally often stay in the order they were trained in. If that changed a token, as it can where a vector
    lies equally near two codes, the trained numbers are kept.

    Returns:
        The tokenizer, and what ``compare_tokenizers`` gives with ``code_order``: ``by use`` or ``as trained``.

    Raises:
        UserError: an index or a reconstruction changed by the freezing itself.
    """
    frozen = tokenizer.freeze()
    if _stored_codebook(frozen.quantizer) is not None:
        order_k = order_of_use(frozen, table)
        ordered = order_codes(frozen, order_k)
        comparison = compare_tokenizers(tokenizer, ordered, table, order_k=order_k)
        if not (comparison["changed_tokens"] or comparison["largest_difference"]):
            return ordered, {**comparison, "code_order": "by use"}
    comparison = compare_tokenizers(tokenizer, frozen, table)
    if comparison["changed_tokens"] or comparison["largest_difference"]:
        raise UserError(
            f"the frozen tokenizer differs: {comparison['changed_tokens']:.0f} of {comparison['tokens']:.0f} tokens, "
            f"reconstructions by up to {comparison['largest_difference']:.3g}"
        )
    return frozen, {**comparison, "code_order": "as trained"}


def order_of_use(tokenizer: Tokenizer, table: Images) -> Tensor:
    """The codes by how often a table's images use them, the most used first, equal ones as they are: int64 (K,)."""
    counts_k = torch.zeros(tokenizer.config.codebook_size, dtype=torch.int64)
    for rows in torch.arange(len(table)).split(images_at_once(tokenizer)):
        indices = tokenizer.encode(to_model_range(table.images(rows).to(tokenizer.device)))
        counts_k += code_counts(indices, len(counts_k)).cpu()
    return counts_k.argsort(descending=True, stable=True)


def order_codes(tokenizer: Tokenizer, order_k: Tensor) -> Tokenizer:
    """A copy of a frozen tokenizer whose code j is its code ``order_k[j]``; all codes are there, under other numbers.

    Args:
        tokenizer: frozen; the quantizers ``residual`` and ``multiscale`` have one codebook for all of their tokens.
        order_k: int64 (K,), each code once.

    Raises:
        ValueError: the tokenizer is not frozen or has no codebook, or the order leaves out a code.
    """
    ordered = copy.deepcopy(tokenizer)
    codebook_kd = _stored_codebook(ordered.quantizer)
    if codebook_kd is None or not tokenizer.config.frozen:
        raise ValueError("only a frozen tokenizer with a codebook can be ordered")
    if not torch.equal(order_k.sort().values.cpu(), torch.arange(len(codebook_kd))):
        raise ValueError(f"the order must name each of the {len(codebook_kd)} codes once")
    with torch.no_grad():
        codebook_kd.copy_(codebook_kd[order_k.to(tokenizer.device)])
    return ordered


def _stored_codebook(quantizer: Quantizer) -> nn.Parameter | None:
    """The codebook that a frozen quantizer looks its codes up in; None where they follow from their numbers."""
    if isinstance(quantizer, ResidualQuantizer | MultiscaleQuantizer):
        quantizer = quantizer.inner
    if isinstance(quantizer, CodebookQuantizer | IndexBackpropagationQuantizer):
        return quantizer.codebook
    return None
