"""Where a generator's training tokens come from."""

from typing import Protocol

import torch
from torch import Tensor

from fvq.runtime.batches import batch_indices
from fvq.runtime.errors import UserError
from fvq.runtime.seeds import generator


class TokenSource(Protocol):
    """Images as tokens, several views of each."""

    @property
    def images(self) -> int:
        """Number of images, views not counted."""

    def batch(self, step: int, batch_size: int, seed: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The ``part`` of the ``batch_size`` images that training step ``step`` sees: tokens (b, h*w), labels (b,).

        Both int64. An epoch visits each image once, in shuffled order, in one of its views drawn at random.
        """


class TokensInMemory:
    """Tokens (N, V, h*w) int64 of N images in V views each, with labels (N,) int64."""

    def __init__(self, tokens_nvt: Tensor, labels_n: Tensor) -> None:
        if tokens_nvt.dim() != 3 or labels_n.shape != tokens_nvt.shape[:1] or not tokens_nvt.shape[1]:
            raise UserError(
                f"tokens: must be (images, views, tokens) with a label per image, not {tuple(tokens_nvt.shape)} with "
                f"{tuple(labels_n.shape)} labels"
            )
        self._tokens_nvt, self._labels_n = tokens_nvt, labels_n

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._tokens_nvt)

    def batch(self, step: int, batch_size: int, seed: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """See ``TokenSource``."""
        chosen = batch_indices(self.images, batch_size, step, seed)
        views = torch.randint(self._tokens_nvt.shape[1], (batch_size,), generator=generator(seed, "views", step))
        return self._tokens_nvt[chosen[part], views[part]], self._labels_n[chosen[part]]
