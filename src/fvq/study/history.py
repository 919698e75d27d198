"""A tokenizer's training history, read and checked."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError


@dataclass(frozen=True)
class History:
    """A tokenizer's training: usage (0 to 1) in windows of at most ``usage_tokens`` tokens, reconstruction error."""

    usage_steps: npt.NDArray[np.int64]
    usage: npt.NDArray[np.float64]
    usage_tokens: int
    error_steps: npt.NDArray[np.int64]
    error: npt.NDArray[np.float64]


def read_history(path: Path) -> History:
    """Read `history.csv` of a tokenizer.

    Raises:
        UserError: the file is missing, damaged, lacks a column or holds something that is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not valid CSV ({error})") from None
    if not lines:
        raise UserError(f"{path}: holds no step")
    for name in ("step", "usage", "usage_tokens", "reconstruction"):
        if name not in lines[0]:
            raise UserError(f"{path}: lacks the column {name}")
    steps = _column(path, lines, "step")
    usage, errors = _column(path, lines, "usage"), _column(path, lines, "reconstruction")
    tokens = _column(path, lines, "usage_tokens")
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
    )


def _column(path: Path, lines: Sequence[Mapping[str, str | None]], name: str) -> npt.NDArray[np.float64]:
    """A column as float64, NaN where the cell is empty."""
    values = []
    for number, line in enumerate(lines, 2):
        text = (line[name] or "").strip()
        try:
            value = float(text) if text else math.nan
        except ValueError:
            value = math.inf
        if math.isinf(value) or text.lower() == "nan":
            raise UserError(f"{path}: line {number}: {name} must be a finite number, not {text!r}")
        values.append(value)
    return np.array(values)
