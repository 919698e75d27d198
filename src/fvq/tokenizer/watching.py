"""What a training shows of a tokenizer on its way: pictures, and a warning where codes die."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fvq.data.image_table import to_model_range, to_uint8
from fvq.quantize.usage import usage_ceiling
from fvq.runtime.files import write_atomically
from fvq.runtime.picture import draw_reconstructions
from fvq.tokenizer.tokenizer import Tokenizer

_FALL = 0.1
_RECOVERY = 0.05
_OPENING = 10


def save_grid(tokenizer: Tokenizer, images_bchw: Tensor, folder: Path, step: int) -> Path:
    """Write ``step-00001500.png``: a few images uint8 (B, 3, H, W), reconstructions and errors. Returns its path.

    The training goes on as if nothing had been: weights, buffers, gradients, modes and random streams stay as they are.

    Raises:
        ValueError: the weights give latents that are not finite.
    """
    # What `quantize` gives is without the moving averages' and anchors' updates, which `forward` makes when training.
    indices = tokenizer.encode(to_model_range(images_bchw.to(tokenizer.device)))
    reconstruction_bchw = to_uint8(tokenizer.decode(indices)).cpu()
    path = folder / f"step-{step:08d}.png"
    with write_atomically(path) as temporary:
        draw_reconstructions(images_bchw.cpu(), reconstruction_bchw).save(temporary)
    return path


class UsageWatch:
    """Says when codes are dying.

    That is so where usage, relative to what so many tokens can reach (``usage_ceiling``), lies in two successive rows
    of the history more than a tenth below its best; of few codes, more than chance moves their number n, 2·√n. It is
    said once, and again after another such fall, or after a recovery to within a twentieth of the best. A training's
    first rows may fall without a word, as long as they fall and ten at most: random weights spread over more codes
    than the trained ones soon after.
    """

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self._opening = 0  # rows that fell from the start; none once a row did not
        self._best: Mapping[str, float] = {}
        self._best_share = self._last_share = math.inf
        self._said = 1.0

    def add(self, row: Mapping[str, float]) -> str | None:
        """One line where this row, the history's next with ``step``, ``usage`` and ``usage_tokens``, says so."""
        share = row["usage"] / usage_ceiling(int(row["usage_tokens"]), self.codebook_size)
        before, self._last_share = self._last_share, share
        if 0 <= self._opening < _OPENING and share < before:
            self._opening += 1
            self._best, self._best_share = row, share
            return None
        self._opening = -1
        if share >= self._best_share:
            self._best, self._best_share = row, share
        relative = share / self._best_share
        if relative >= 1 - _RECOVERY:
            self._said = 1.0
        fall = max(_FALL, 2 / math.sqrt(self._best_share * self.codebook_size))
        if max(relative, before / self._best_share) >= self._said - fall:
            return None
        self._said = relative
        return (
            f"usage fell from {100 * self._best['usage']:.1f} % at step {self._best['step']:,.0f} "
            f"to {100 * row['usage']:.1f} % at step {row['step']:,.0f}: codes are dying; "
            "a smaller learning rate, a warm-up or the quantizer fvq may help"
        )
