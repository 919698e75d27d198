"""Columns of numbers out of CSV files, checked."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fvq.runtime.errors import UserError

Columns = dict[str, npt.NDArray[np.float64]]


def read_columns(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """The named columns as float64, NaN where a cell is empty; those of ``optional`` where the file has them.

    Raises:
        UserError: the file is missing, damaged, empty, lacks a column or holds something that is no finite number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not valid CSV ({error})") from None
    if not lines:
        raise UserError(f"{path}: holds no line of figures")
    for name in names:
        if name not in lines[0]:
            raise UserError(f"{path}: lacks the column {name}")
    return {
        name: np.array([_number(path, number, name, line[name]) for number, line in enumerate(lines, 2)])
        for name in (*names, *optional)
        if name in lines[0]
    }


def _number(path: Path, number: int, name: str, cell: str | None) -> float:
    text = (cell or "").strip()
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value) or text.lower() == "nan":
        raise UserError(f"{path}: line {number}: {name} must be a finite number, not {text!r}")
    return value
