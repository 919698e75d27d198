"""The paper's small experiments as two stages left them, read and checked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fvq.runtime.errors import UserError
from fvq.runtime.files import read_json
from fvq.runtime.parquet import check_columns, check_no_nulls, open_described, unreadable_as_user_errors
from fvq.study.columns import read_columns

_TRAJECTORY_FIGURES = ("path_ratio", "turning_net", "distance_first")
_MAP_FIGURES = ("usage", "tokens", "ceiling")
_POINTS = ("z_e_x", "z_e_y", "z_q_x", "z_q_y", "target_x", "target_y")


@dataclass(frozen=True)
class Trajectory:
    """One run of the toy of Figure 2, left: z_e and z_q float64 (steps + 1, 2), target float64 (2,).

    ``path_ratio``: z_e's path over its straight distance; ``turning_net``: degrees that it turns in one sense;
    ``distance_first``: mean |z_q - z_e| in the first third.
    """

    name: str
    z_e: npt.NDArray[np.float64]
    z_q: npt.NDArray[np.float64]
    target: npt.NDArray[np.float64]
    path_ratio: float
    turning_net: float
    distance_first: float


@dataclass(frozen=True)
class CodeMap:
    """Features float32 (F, 2) and codes float32 (C, 2) of a row in one plane, and which codes, bool (C,), are used.

    ``usage`` is of all codes, counted over ``tokens``, of which uniform use would reach the share ``ceiling``.
    """

    row: str
    feature_xy: npt.NDArray[np.float32]
    code_xy: npt.NDArray[np.float32]
    code_used: npt.NDArray[np.bool_]
    usage: float
    tokens: int
    ceiling: float


@dataclass(frozen=True)
class SizeCurve:
    """The quantization loss of one training with so many codes, against steps."""

    codebook_size: int
    steps: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]


def read_trajectories(folder: Path) -> tuple[Trajectory, ...]:
    """The experiments of `trajectories.parquet` in its order, with their figures from `trajectories.json`.

    Raises:
        UserError: a file is missing, damaged or empty, or lacks a figure of an experiment.
    """
    path = folder / "trajectories.parquet"
    table = _read_table(
        path, "trajectories", {"experiment": pa.string(), "step": pa.int64(), **dict.fromkeys(_POINTS, pa.float64())}
    )
    check_no_nulls(path, table)
    names = table["experiment"].unique().to_pylist()
    if not names:
        raise UserError(f"{path}: holds no experiment")
    figures = _read_figures(folder / "trajectories.json", names, _TRAJECTORY_FIGURES)
    trajectories = []
    for name in names:
        own = table.filter(pc.equal(table["experiment"], name)).sort_by("step")
        z_e, z_q, target = (_plane(own, f"{point}_x", f"{point}_y") for point in ("z_e", "z_q", "target"))
        if not all(np.isfinite(points).all() for points in (z_e, z_q, target)):
            raise UserError(f"{path}: {name}: a coordinate is not finite")
        trajectories.append(Trajectory(name, z_e, z_q, target[-1], **figures[name]))
    return tuple(trajectories)


def read_code_maps(folder: Path, rows: Iterable[str]) -> tuple[CodeMap, ...]:
    """The maps of those of ``rows`` that `code_map.parquet` holds, in the order of ``rows``; its other rows are left.

    Raises:
        UserError: a file is missing or damaged, or lacks a figure of a row.
    """
    path = folder / "code_map.parquet"
    types = {"row": pa.string(), "kind": pa.string(), "x": pa.float32(), "y": pa.float32(), "used": pa.bool_()}
    table = _read_table(path, "code_map", types)
    check_no_nulls(path, table.drop_columns("used"))
    held = set(table["row"].unique().to_pylist())
    names = [row for row in rows if row in held]
    figures = _read_figures(folder / "code_map.json", names, _MAP_FIGURES)
    maps = []
    for name in names:
        own = table.filter(pc.equal(table["row"], name))
        features, codes = (own.filter(pc.equal(own["kind"], kind)) for kind in ("feature", "code"))
        if not len(features) or not len(codes) or codes["used"].null_count:
            raise UserError(f"{path}: {name}: a map needs features, and codes that are used or not")
        maps.append(
            CodeMap(
                row=name,
                feature_xy=_plane(features, "x", "y"),
                code_xy=_plane(codes, "x", "y"),
                code_used=codes["used"].to_numpy(),
                usage=figures[name]["usage"],
                tokens=int(figures[name]["tokens"]),
                ceiling=figures[name]["ceiling"],
            )
        )
    return tuple(maps)


def read_sizes(path: Path) -> tuple[SizeCurve, ...]:
    """The curves of `sizes.csv`, smallest codebook first.

    Raises:
        UserError: the file is missing, damaged, or lacks a number.
    """
    columns = read_columns(path, ("codebook_size", "step", "loss"))
    for name, values in columns.items():
        if np.isnan(values).any():
            raise UserError(f"{path}: line {int(np.isnan(values).argmax()) + 2}: {name} is missing")
    sizes = columns["codebook_size"]
    return tuple(
        SizeCurve(int(size), columns["step"][sizes == size].astype(np.int64), columns["loss"][sizes == size])
        for size in np.unique(sizes).tolist()
    )


def _read_table(path: Path, format_name: str, types: Mapping[str, pa.DataType]) -> pa.Table:
    file, _ = open_described(path, format_name)
    with file:
        check_columns(path, file.schema_arrow, types)
        with unreadable_as_user_errors(path):
            return file.read(columns=list(types))


def _read_figures(path: Path, names: Iterable[str], keys: Iterable[str]) -> dict[str, dict[str, float]]:
    """The figures ``keys`` of each of ``names``, finite numbers."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold one object of figures, not {type(data).__name__}")
    return {name: {key: _figure(path, name, data.get(name), key) for key in keys} for name in names}


def _figure(path: Path, name: str, figures: Any, key: str) -> float:
    if not isinstance(figures, dict) or key not in figures:
        raise UserError(f"{path}: lacks {key} of {name}")
    value = figures[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {key} of {name} must be a finite number, not {value!r}")
    return value


def _plane(table: pa.Table, x: str, y: str) -> npt.NDArray[Any]:
    return np.stack([table[x].to_numpy(), table[y].to_numpy()], axis=1)
