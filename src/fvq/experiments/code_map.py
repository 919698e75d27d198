"""The map of Figure 2, right: a tokenizer's codes and its encoder's features, embedded in one plane."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from fvq.data.image_table import to_model_range
from fvq.evaluate.image_sets import ImageSet
from fvq.quantize.codebook import CodebookQuantizer
from fvq.quantize.usage import code_counts, usage_figures
from fvq.runtime.seeds import generator, seed_from
from fvq.tokenizer.tokenizer import Tokenizer

_BATCH = 256
_PERPLEXITY = 30


@dataclass(frozen=True)
class CodeMap:
    """Features and mapped codes of one tokenizer in one plane, whose axes and unit mean nothing.

    Attributes:
        feature_xy: float32 (F, 2).
        code_xy: float32 (C, 2).
        code_used: bool (C,), whether some token of the images has this code.
        usage: share of all codes that occur.
        tokens: number of tokens counted.
        ceiling: the share that this many uniform tokens would reach.
    """

    feature_xy: NDArray[np.float32]
    code_xy: NDArray[np.float32]
    code_used: NDArray[np.bool_]
    usage: float
    tokens: int
    ceiling: float


def map_codes(
    tokenizers: Mapping[str, Tokenizer], images: ImageSet, *, features: int, codes: int, seed: int
) -> dict[str, CodeMap]:
    """t-SNE of encoder features and mapped codes together, one map a tokenizer (paper, Figure 2).

    Usage is counted over all tokens of all images. The map shows ``features`` of the tokens (those of the same places
    in every tokenizer with the same grid) and ``codes`` of the codes, all where there are fewer, both drawn uniformly:
    the share of used codes on the map is that of the codebook but for the draw. On one machine the result follows
    from the arguments alone.

    Args:
        tokenizers: in evaluation mode, by name; with mapped codebooks of at least two dimensions.
        images: what is encoded, a batch at a time.
        features: tokens drawn.
        codes: codes drawn.
        seed: fixes the draws and the embedding.

    Raises:
        ValueError: a quantizer without mapped codes, a count below 1, or no more points than the perplexity of 30.
    """
    if features < 1 or codes < 1:
        raise ValueError(f"features and codes must be at least 1, not {features} and {codes}")
    return {
        name: _map(name, tokenizer, images, features=features, codes=codes, seed=seed)
        for name, tokenizer in tokenizers.items()
    }


@torch.no_grad()
def _map(name: str, tokenizer: Tokenizer, images: ImageSet, *, features: int, codes: int, seed: int) -> CodeMap:
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, CodebookQuantizer):
        raise ValueError(f"{name}: a map needs mapped codes (CodebookQuantizer), not {type(quantizer).__name__}")
    height, width = tokenizer.config.grid
    shown_features_f = _draw(len(images) * height * width, features, seed, "features")
    shown_codes_c = _draw(quantizer.codebook_size, codes, seed, "codes")
    points = len(shown_features_f) + len(shown_codes_c)
    if points <= _PERPLEXITY:
        raise ValueError(f"{name}: a map needs more than {_PERPLEXITY} features and codes together, not {points}")
    counts_k, features_fd = _encode(tokenizer, images, shown_features_f)
    codes_cd = quantizer.mapped_codebook()[shown_codes_c.to(tokenizer.device)].cpu()
    xy = _embed(torch.cat([features_fd, codes_cd]), seed)
    figures = usage_figures(counts_k)
    return CodeMap(
        feature_xy=xy[: len(features_fd)],
        code_xy=xy[len(features_fd) :],
        code_used=(counts_k > 0)[shown_codes_c].numpy(),
        usage=figures["usage"],
        tokens=int(figures["usage_tokens"]),
        ceiling=figures["usage_ceiling"],
    )


def _draw(count: int, shown: int, seed: int, what: str) -> Tensor:
    """At most ``shown`` of ``count`` indices, ascending."""
    return torch.randperm(count, generator=generator(seed, what))[:shown].sort().values


def _encode(tokenizer: Tokenizer, images: ImageSet, shown_f: Tensor) -> tuple[Tensor, Tensor]:
    """How often each code occurs, int64 (K,), and the features float32 (F, d) of tokens ``shown_f``, on the CPU."""
    quantizer, device = tokenizer.quantizer, tokenizer.device
    height, width = tokenizer.config.grid
    counts_k = torch.zeros(quantizer.codebook_size, dtype=torch.int64)
    rows = []
    for number, batch in enumerate(images.batches(0, len(images), _BATCH)):
        z_bdhw = tokenizer.to_codes(tokenizer.encoder(to_model_range(batch.to(device))))
        counts_k += code_counts(quantizer.quantize(z_bdhw), quantizer.codebook_size).cpu()
        z_nd = z_bdhw.movedim(1, -1).flatten(0, -2).float().cpu()
        places_f = shown_f - number * _BATCH * height * width
        rows.append(z_nd[places_f[(places_f >= 0) & (places_f < len(z_nd))]])
    return counts_k, torch.cat(rows)


def _embed(points_nd: Tensor, seed: int) -> NDArray[np.float32]:
    """t-SNE of the points (N, d) to (N, 2)."""
    # So few points have settled after half of the usual 1,000 iterations.
    embedding = TSNE(perplexity=_PERPLEXITY, init="pca", max_iter=500, random_state=seed_from(seed, "t-SNE") % 2**32)
    # Sums over several threads round as their number wants.
    with threadpool_limits(1):
        xy: NDArray[np.float32] = embedding.fit_transform(points_nd.numpy()).astype(np.float32)
    return xy
