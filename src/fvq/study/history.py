"""A tokenizer's training history, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError
from fvq.study.columns import Columns, read_columns

_WATCHED = (
    "code_displacement",
    "code_displacement_max",
    "feature_displacement",
    "switched_share",
    "switched_outside_margin_share",
    "bound_violations",
)
_SLIDING = ("sliding_usage", "sliding_usage_tokens")


@dataclass(frozen=True)
class Window:
    """The share of codes (0 to 1) among some ``tokens`` of the training."""

    usage: float
    tokens: int


@dataclass(frozen=True)
class Stability:
    """What single optimisation steps did to the assignments of some images (Appendix E), an entry a watched step.

    Displacements are distances; shares (0 to 1) are of the images' tokens. ``switched_outside_margin_share``: those
    that switched although their margin exceeds 2δ_z. ``bound_violations``: tokens that contradict a bound.
    """

    steps: npt.NDArray[np.int64]
    code_displacement: npt.NDArray[np.float64]
    code_displacement_max: npt.NDArray[np.float64]
    feature_displacement: npt.NDArray[np.float64]
    switched_share: npt.NDArray[np.float64]
    switched_outside_margin_share: npt.NDArray[np.float64]
    bound_violations: npt.NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """A tokenizer's training: usage (0 to 1) in windows of at most ``usage_tokens`` tokens, reconstruction error.

    ``last_window`` is the last of these windows; ``sliding`` the literature's window at the end of training, None
    where it was not counted; ``stability`` is None for a quantizer without a codebook that learns by gradients.
    """

    usage_steps: npt.NDArray[np.int64]
    usage: npt.NDArray[np.float64]
    usage_tokens: int
    error_steps: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]
    last_window: Window
    sliding: Window | None
    stability: Stability | None


def read_history(path: Path) -> History:
    """Read `history.csv` of a tokenizer.

    Raises:
        UserError: the file is missing, damaged, lacks a column or holds something that is no number.
    """
    columns = read_columns(path, ("step", "usage", "usage_tokens", "reconstruction"), (*_SLIDING, *_WATCHED))
    steps, usage, errors = columns["step"], columns["usage"], columns["reconstruction"]
    tokens = columns["usage_tokens"]
    if np.isnan(steps).any() or np.isnan(usage).all() or np.isnan(errors).all():
        raise UserError(f"{path}: step, usage and reconstruction must hold numbers")
    # Not every line need carry every column: usage may be counted less often than the loss is logged.
    has_usage, has_error = ~np.isnan(usage), ~np.isnan(errors)
    if np.isnan(tokens[has_usage]).any():
        raise UserError(f"{path}: usage_tokens must stand beside every usage")
    return History(
        usage_steps=steps[has_usage].astype(np.int64),
        usage=usage[has_usage],
        usage_tokens=int(tokens[has_usage].max()),
        error_steps=steps[has_error].astype(np.int64),
        error=errors[has_error],
        last_window=Window(float(usage[has_usage][-1]), int(tokens[has_usage][-1])),
        sliding=_sliding(path, columns),
        stability=_stability(path, columns),
    )


def _sliding(path: Path, columns: Columns) -> Window | None:
    counted = _together(path, columns, _SLIDING)
    if counted is None:
        return None
    return Window(float(counted["sliding_usage"][-1]), int(counted["sliding_usage_tokens"][-1]))


def _stability(path: Path, columns: Columns) -> Stability | None:
    watched = _together(path, columns, _WATCHED)
    if watched is None:
        return None
    steps = watched.pop("step").astype(np.int64)
    return Stability(steps, **watched)


def _together(path: Path, columns: Columns, names: Sequence[str]) -> Columns | None:
    """``step`` and the named columns on the lines that hold them; None where no line does, all of them or none."""
    held = {name: ~np.isnan(columns[name]) for name in names if name in columns}
    if not any(lines.any() for lines in held.values()):
        return None
    for name in names:
        if name not in held:
            raise UserError(f"{path}: lacks the column {name}")
        if (held[name] != held[names[0]]).any():
            raise UserError(f"{path}: {name} must stand beside every {names[0]}")
    return {name: columns[name][held[names[0]]] for name in ("step", *names)}
