"""How a pass is kept in a cache: its folder's name, its sums as named tensors, its features as an npy file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvq.evaluate.frechet import FeatureStatistics
from fvq.evaluate.inception_score import ScoreSums
from fvq.evaluate.networks.extractor import Extractor
from fvq.runtime.checkpoint import recipe_digest
from fvq.runtime.files import write_atomically
from fvq.runtime.provenance import code_digest, library_versions


def cache_key(extractor: Extractor, recipe: Mapping[str, Any]) -> str:
    """The name of what follows from ``recipe``, the network, fvq's code and the libraries.

    Raises:
        ValueError: the network's weights have no hash.
    """
    if extractor.weights_sha256 == "not saved":
        raise ValueError(f"extractor {extractor.name}: its weights are not saved, and what they give cannot be cached")
    return recipe_digest(
        {
            "extractor": [extractor.name, extractor.weights_sha256, extractor.resize],
            "code": code_digest(),
            "versions": library_versions(),
            "recipe": dict(recipe),
        }
    )


def named_sums(
    features: FeatureStatistics | None, spatial: FeatureStatistics | None, scores: ScoreSums | None
) -> dict[str, Tensor]:
    """The sums as tensors that a file can hold."""
    tensors: dict[str, Tensor] = {}
    for name, statistics in (("features", features), ("spatial", spatial)):
        if statistics is not None:
            tensors[f"{name}.count"] = torch.tensor(statistics.count)
            tensors[f"{name}.mean"] = statistics.mean.cpu()
            tensors[f"{name}.scatter"] = statistics.scatter.cpu()
    if scores is not None:
        tensors["scores.count"] = scores.count_g
        tensors["scores.posterior_sum"] = scores.posterior_sum_gc
        tensors["scores.negative_entropy"] = scores.negative_entropy_g
    return tensors


def statistics_in(tensors: Mapping[str, Tensor], name: str) -> FeatureStatistics | None:
    """The ``features`` or ``spatial`` that ``named_sums`` named, or None."""
    if f"{name}.count" not in tensors:
        return None
    return FeatureStatistics(int(tensors[f"{name}.count"]), tensors[f"{name}.mean"], tensors[f"{name}.scatter"])


def scores_in(tensors: Mapping[str, Tensor]) -> ScoreSums | None:
    """The scores that ``named_sums`` named, or None."""
    if "scores.count" not in tensors:
        return None
    return ScoreSums(*(tensors[f"scores.{name}"] for name in ("count", "posterior_sum", "negative_entropy")))


@contextmanager
def features_written(path: Path, count: int, dimension: int) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function that takes float32 (n, ``dimension``) again and again, ``count`` rows in all, in their order.

    After the block they are an array in the npy file ``path``; where it fails there is none.
    """
    # Not through a map: where the disk is full, a write there kills the process.
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
        np.lib.format.write_array_header_1_0(file, header)

        def write(features_nd: Tensor) -> None:
            file.write(features_nd.contiguous().numpy().astype("<f4", copy=False).data)

        yield write
