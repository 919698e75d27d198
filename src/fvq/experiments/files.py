"""The experiments' results as files, each whole or not there at all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fvq.experiments.code_map import CodeMap
from fvq.experiments.straight_through import Trajectory, describe
from fvq.runtime.files import write_atomically, write_json
from fvq.runtime.parquet import with_description
from fvq.runtime.training import History, write_history

TRAJECTORY_COLUMNS = {
    "experiment": pa.string(),
    "step": pa.int64(),
    **dict.fromkeys(("z_e_x", "z_e_y", "z_q_x", "z_q_y", "target_x", "target_y"), pa.float64()),
    "index": pa.int64(),
}
CODE_MAP_COLUMNS = {
    "row": pa.string(),
    "kind": pa.string(),
    "x": pa.float32(),
    "y": pa.float32(),
    "used": pa.bool_(),
}


def write_trajectories(folder: Path, trajectories: Mapping[str, Trajectory]) -> None:
    """Write `trajectories.parquet` (``TRAJECTORY_COLUMNS``, one row a step) and `trajectories.json`.

    The JSON holds what ``describe`` says of each experiment, by its name.
    """
    parts = [
        [
            pa.array([name] * len(run.indices)),
            np.arange(len(run.indices)),
            *run.z_e.T,
            *run.z_q.T,
            *(np.full(len(run.indices), value) for value in run.target),
            run.indices,
        ]
        for name, run in trajectories.items()
    ]
    _write_parquet(folder / "trajectories.parquet", "trajectories", TRAJECTORY_COLUMNS, parts)
    write_json(folder / "trajectories.json", {name: describe(run) for name, run in trajectories.items()})


def write_code_maps(folder: Path, maps: Mapping[str, CodeMap]) -> None:
    """Write `code_map.parquet` (``CODE_MAP_COLUMNS``, one row a point) and `code_map.json`.

    ``kind`` is ``feature`` or ``code``; ``used`` is null for features. The JSON holds ``usage``, ``tokens`` and
    ``ceiling`` of each tokenizer, by its name.
    """
    parts = []
    for name, drawn in maps.items():
        features, codes = len(drawn.feature_xy), len(drawn.code_xy)
        parts.append(
            [
                pa.array([name] * (features + codes)),
                pa.array(["feature"] * features + ["code"] * codes),
                *np.concatenate([drawn.feature_xy, drawn.code_xy]).T,
                pa.array([None] * features + drawn.code_used.tolist(), pa.bool_()),
            ]
        )
    _write_parquet(folder / "code_map.parquet", "code_map", CODE_MAP_COLUMNS, parts)
    figures = {
        name: {"usage": drawn.usage, "tokens": drawn.tokens, "ceiling": drawn.ceiling} for name, drawn in maps.items()
    }
    write_json(folder / "code_map.json", figures)


def write_sizes(folder: Path, histories: Mapping[int, History]) -> None:
    """Write `sizes.csv`: ``codebook_size``, then the columns of ``train_on_sizes``, one line a row of a history."""
    rows: History = [{"codebook_size": size, **row} for size, history in histories.items() for row in history]
    write_history(folder / "sizes.csv", rows)


def _write_parquet(path: Path, name: str, columns: Mapping[str, pa.DataType], parts: list[list[object]]) -> None:
    schema = with_description(pa.schema(list(columns.items())), name)
    table = pa.concat_tables([schema.empty_table(), *(pa.table(part, schema=schema) for part in parts)])
    with write_atomically(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
