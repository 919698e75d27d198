"""One pass of a network over a set of images: what Fréchet distances and the Inception Score need, in constant memory.

The sums of 50,000 images take 70 MB, as those of a million do; features are kept only where someone asks for them.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvq.evaluate.frechet import FeatureStatistics, RunningStatistics
from fvq.evaluate.image_sets import ImageSet
from fvq.evaluate.images import check_images
from fvq.evaluate.inception_score import ScoreSums
from fvq.evaluate.networks.extractor import Extractor
from fvq.evaluate.segments import work_in_segments
from fvq.evaluate.summary_file import cache_key, features_written, named_sums, scores_in, statistics_in
from fvq.runtime.checkpoint import locked_in_turn, recipe_digest
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_atomically
from fvq.runtime.processes import in_any_process, is_first, wait_for_all
from fvq.runtime.progress import Advance

BATCH = 64

Sums = TypeVar("Sums", FeatureStatistics, ScoreSums)


@dataclass(frozen=True)
class Summary:
    """What a pass leaves of N images."""

    features: FeatureStatistics
    spatial: FeatureStatistics | None
    """None unless asked for, and where the network has none"""
    scores: ScoreSums | None
    """None unless asked for, and where the network knows no classes"""
    kept: Tensor | None
    """The features float32 (N, D) in the order of the images, mapped from the cache where there is one; None unless
    asked for."""


@dataclass(frozen=True)
class Pass:
    """What is asked of the network."""

    extractor: Extractor
    spatial: bool = False
    """Whether to sum its spatial features."""
    groups: Tensor | None = None
    """The group int64 (N,) of each image in the Inception Score; None: no score."""
    keep: bool = False
    """Whether to keep the features."""
    batch_size: int = BATCH


def summarize(wanted: Pass, images: ImageSet, *, cache: Path | None = None) -> Summary:
    """The pass over ``images``, in segments of a fixed order: the same bits however many processes share it.

    With a ``cache`` folder the result is found again by the content of the images, the network's weights and all else
    that it follows from; an interrupted pass goes on there, and one that another run is at is waited for. Several
    processes need one, which all of them see.

    Raises:
        UserError: images that are damaged or not uint8 RGB of one size, or what the network says is not finite.
        Interrupted: SIGTERM or SIGUSR1 came; with a cache, finished segments are kept.
        ValueError: a cache, and a network whose weights are not saved.
    """

    description = f"{wanted.extractor.name} of {images.name}"

    def work(start: int, stop: int, advance: Advance) -> dict[str, Tensor]:
        collected = Collected(wanted, images.name, start, stop)
        for batch in images.batches(start, stop, wanted.batch_size):
            collected.add(batch)
            advance(len(batch))
        return collected.tensors()

    if cache is None:
        merged = Merged(wanted, len(images))
        for tensors in work_in_segments(len(images), work, description=description):
            merged.add(tensors)
        return merged.summary()
    folder = cache / _key(wanted, images)
    found = _read(folder, wanted)
    if not in_any_process(found is None):
        assert found is not None
        return found
    with locked_in_turn(folder):
        found = _read(folder, wanted)  # by the run that was waited for
        if in_any_process(found is None):
            # Segments without features do not serve where these are to be kept.
            place = folder / ("segments-with-features" if wanted.keep else "segments")
            segments = work_in_segments(len(images), work, description=description, folder=place)
            if is_first():
                _write(folder, wanted, len(images), segments)
            wait_for_all()
            if is_first():
                shutil.rmtree(place, ignore_errors=True)
            found = _read(folder, wanted)
    if found is None:
        raise UserError(f"{folder}: what was just written there cannot be read; is the disk full?")
    return found


class Collected:
    """What the network says of the images from ``start`` to ``stop`` of a set, added up as they come."""

    def __init__(self, wanted: Pass, name: str, start: int, stop: int) -> None:
        self._wanted, self._name = wanted, name
        self._start, self._stop = start, stop
        self._features, self._spatial = RunningStatistics(), RunningStatistics()
        self._scores: ScoreSums | None = None
        self._kept: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Images uint8 (B, 3, H, W)."""
        check_images(images, self._name)
        first = self._start + self._features.count
        with torch.inference_mode():
            outputs = self._wanted.extractor(images, spatial=self._wanted.spatial)
        for values in outputs:
            if values is not None and not values.isfinite().all():
                name = self._wanted.extractor.name
                raise UserError(f"{self._name}: the extractor {name} gives values that are not finite")
        self._features.add(outputs.features)
        if outputs.spatial is not None:
            self._spatial.add(outputs.spatial)
        groups = self._wanted.groups
        if outputs.logits is not None and groups is not None:
            group_b = groups[first : first + len(outputs.logits)]
            self._scores = _joined(self._scores, ScoreSums.of(outputs.logits, group_b, int(groups.max()) + 1))
        if self._wanted.keep:
            self._kept.append(outputs.features.cpu())

    def tensors(self) -> dict[str, Tensor]:
        """The sums over these images, as ``Merged`` takes them."""
        count, wanted = self._features.count, self._stop - self._start
        if count != wanted:
            raise UserError(f"{self._name}: {wanted} images are expected, and there are {count}")
        spatial = self._spatial.statistics() if self._spatial.count else None
        tensors = named_sums(self._features.statistics(), spatial, self._scores)
        return tensors | {"kept": torch.cat(self._kept)} if self._wanted.keep else tensors


class Merged:
    """The summary of ``count`` images from those of their segments, which come in order.

    Features that are to be kept go to ``keep`` where it is given, and into the summary otherwise.
    """

    def __init__(self, wanted: Pass, count: int, keep: Callable[[Tensor], None] | None = None) -> None:
        self._features: FeatureStatistics | None = None
        self._spatial: FeatureStatistics | None = None
        self._scores: ScoreSums | None = None
        self._kept: Tensor | None = None
        self._filled = 0
        self._keep = keep
        if wanted.keep and keep is None:
            self._kept, self._keep = torch.empty(count, wanted.extractor.feature_dimension), self._hold

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """What ``Collected`` gave of the next segment."""
        self._features = _joined(self._features, statistics_in(tensors, "features"))
        self._spatial = _joined(self._spatial, statistics_in(tensors, "spatial"))
        self._scores = _joined(self._scores, scores_in(tensors))
        if self._keep is not None:
            self._keep(tensors["kept"])

    def summary(self) -> Summary:
        """Of all segments so far."""
        if self._features is None:
            raise UserError("no images were given")
        return Summary(self._features, self._spatial, self._scores, self._kept)

    def _hold(self, features_nd: Tensor) -> None:
        assert self._kept is not None
        self._kept[self._filled : self._filled + len(features_nd)] = features_nd
        self._filled += len(features_nd)


def _joined(first: Sums | None, second: Sums | None) -> Sums | None:
    if first is None or second is None:
        return second if first is None else first
    return first.merge(second)


_SUMS, _FEATURES = "sums.safetensors", "features.npy"


def _key(wanted: Pass, images: ImageSet) -> str:
    return cache_key(
        wanted.extractor,
        {
            "images": images.digest,
            "preparation": images.preparation.describe(),
            "count": len(images),
            "spatial": wanted.spatial,
            "groups": None if wanted.groups is None else recipe_digest({"groups": wanted.groups.tolist()}),
        },
    )


def _read(folder: Path, wanted: Pass) -> Summary | None:
    """None where there is no whole summary with all that is wanted."""
    try:
        tensors = load_file(folder / _SUMS)
        kept = None
        if wanted.keep:
            kept = torch.from_numpy(np.load(folder / _FEATURES, mmap_mode="c"))  # c: torch wants to be able to write
    except (OSError, EOFError, SafetensorError, ValueError):
        return None
    features = statistics_in(tensors, "features")
    return None if features is None else Summary(features, statistics_in(tensors, "spatial"), scores_in(tensors), kept)


def _write(folder: Path, wanted: Pass, count: int, segments: Iterable[Mapping[str, Tensor]]) -> None:
    with ExitStack() as stack:
        keep = None
        if wanted.keep:
            written = features_written(folder / _FEATURES, count, wanted.extractor.feature_dimension)
            keep = stack.enter_context(written)
        merged = Merged(wanted, count, keep)
        for tensors in segments:
            merged.add(tensors)
    summary = merged.summary()
    with write_atomically(folder / _SUMS) as temporary:
        save_file(named_sums(summary.features, summary.spatial, summary.scores), temporary)
