"""Originals with their reconstructions: stored ones, or those that a tokenizer makes as they are asked for."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from fvq.evaluate.image_sets import ImageSet
from fvq.evaluate.preparation import AS_STORED, Preparation, prepare_batch
from fvq.runtime.errors import UserError


class Pair(NamedTuple):
    """A batch of B originals and what became of them."""

    original: Tensor
    """uint8 (B, 3, H, W)"""
    reconstruction: Tensor
    """uint8 (B, 3, H, W): what errors are measured on"""
    compared: Tensor
    """uint8 (B, 3, H, W): the reconstructions whose features are compared, as the protocol prepares them"""
    indices: Tensor | None
    """The tokens, integers (B, …); None where only images are stored"""


class Pairs(Protocol):
    """Originals and reconstructions in one order."""

    @property
    def name(self) -> str:
        """Of the reconstructions, as the user named them."""

    @property
    def digest(self) -> str:
        """SHA-256 of what the reconstructions follow from."""

    @property
    def preparation(self) -> str:
        """What was done to the reconstructions that are compared, in the words of a figure's protocol."""

    @property
    def originals(self) -> ImageSet:
        """The originals as the protocol prepares them: the reference of the Fréchet distance."""

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Pair]:
        """The pairs from ``start`` to ``stop``, as an image set's batches."""


class StoredPairs:
    """Two sets of images in the same order.

    ``compared`` and ``originals`` are they as the protocol prepares them, the same objects where it does nothing.
    """

    def __init__(
        self,
        reconstructions: ImageSet,
        plain_originals: ImageSet,
        *,
        compared: ImageSet | None = None,
        originals: ImageSet | None = None,
    ) -> None:
        self.name = reconstructions.name
        self.originals = plain_originals if originals is None else originals
        self._reconstructions, self._plain = reconstructions, plain_originals
        self._compared = reconstructions if compared is None else compared
        if len(reconstructions) != len(plain_originals):
            raise UserError(
                f"{reconstructions.name}: {len(reconstructions):,} images do not pair with the "
                f"{len(plain_originals):,} of {plain_originals.name}"
            )
        sizes = [(images.width, images.height) for images in (reconstructions, plain_originals)]
        if sizes[0] != sizes[1]:
            ours, theirs = ("x".join(map(str, size)) for size in sizes)
            raise UserError(
                f"{reconstructions.name}: images of {ours} pixels do not pair with those of {theirs} of "
                f"{plain_originals.name}; --size scales and crops the originals"
            )

    @property
    def digest(self) -> str:
        """As ``Pairs``."""
        return self._reconstructions.digest

    @property
    def preparation(self) -> str:
        """As ``Pairs``."""
        return self._compared.preparation.describe()

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Pair]:
        """As ``Pairs``."""
        sets = [self._plain, self._reconstructions]
        if self._compared is not self._reconstructions:
            sets.append(self._compared)
        for batch in zip(*(images.batches(start, stop, batch_size) for images in sets), strict=True):
            yield Pair(batch[0], batch[1], batch[-1], None)


class MadePairs:
    """The reconstructions of ``plain_originals`` by a function of batches uint8 (B, 3, H, W).

    It gives their tokens (B, …) and reconstructions uint8 (B, 3, H, W). ``tokenizer_sha256`` is of its file.
    ``originals`` are the originals as the protocol prepares them; of that, JPEG compression is also done to the
    reconstructions that are compared.
    """

    def __init__(
        self,
        reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]],
        plain_originals: ImageSet,
        *,
        name: str,
        tokenizer_sha256: str,
        originals: ImageSet | None = None,
    ) -> None:
        self.name = name
        self.originals = plain_originals if originals is None else originals
        self._reconstruct, self._plain = reconstruct, plain_originals
        self._tokenizer_sha256 = tokenizer_sha256
        self._compression = Preparation(jpeg_quality=self.originals.preparation.jpeg_quality)

    @property
    def digest(self) -> str:
        """As ``Pairs``: of the tokenizer and the originals."""
        return hashlib.sha256(f"{self._tokenizer_sha256} {self._plain.digest}".encode()).hexdigest()

    @property
    def preparation(self) -> str:
        """As ``Pairs``."""
        return self._compression.describe().replace(AS_STORED.describe(), "as reconstructed")

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[Pair]:
        """As ``Pairs``."""
        for original in self._plain.batches(start, stop, batch_size):
            indices, reconstruction = self._reconstruct(original)
            yield Pair(original, reconstruction, prepare_batch(reconstruction, self._compression), indices)
