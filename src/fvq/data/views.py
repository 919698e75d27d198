"""Named views of an image, the same every time: what a token table caches several of."""

import torch
from torch import Tensor

from fvq.runtime.errors import UserError

_FLIP = "_flip"
VIEWS: tuple[str, ...] = tuple(
    crop + flip for crop in ("center", "shift_tl", "shift_tr", "shift_bl", "shift_br") for flip in ("", _FLIP)
)
"""The image itself, its four shifted crops, and the mirror image of each: ten, as LlamaGen's TenCrop gives."""


def apply_view(images: Tensor, name: str) -> Tensor:
    """The view ``name`` of ``images`` (B, 3, H, W), same shape and dtype.

    ``center`` is the image itself. ``shift_tl``, ``_tr``, ``_bl``, ``_br``: the image padded on all sides by
    reflection, by an eighth of its height and width (rounded down), cut at that corner. ``_flip`` mirrors the
    result left to right.

    Raises:
        UserError: no view of this name.
    """
    if name not in VIEWS:
        raise UserError(f"view {name!r} is unknown; there are {', '.join(VIEWS)}")
    crop = name.removesuffix(_FLIP)
    if crop != "center":
        corner = crop.removeprefix("shift_")
        rows = _shifted(images.shape[-2], to_end=corner[0] == "b", device=images.device)
        columns = _shifted(images.shape[-1], to_end=corner[1] == "r", device=images.device)
        images = images[..., rows, :][..., columns]
    return images.flip(-1) if name.endswith(_FLIP) else images


def _shifted(length: int, *, to_end: bool, device: torch.device) -> Tensor:
    """Positions (length,) along a side that a window shifted by an eighth of it sees; past the edge they run back."""
    shift = length // 8
    positions = (torch.arange(length, device=device) - shift).abs()
    return length - 1 - positions.flip(0) if to_end else positions
