"""The experiments' files: columns and values as documented, whole or not there."""

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from fvq.experiments import files
from fvq.experiments.code_map import CodeMap
from fvq.experiments.files import write_code_maps, write_sizes, write_trajectories
from fvq.experiments.straight_through import Trajectory, describe
from fvq.runtime.files import read_json
from fvq.runtime.parquet import open_described

RANDOM = np.random.default_rng(0)


def trajectory(steps):
    points = RANDOM.normal(size=(2, steps + 1, 2))
    return Trajectory(points[0], points[1], RANDOM.integers(9, size=steps + 1), RANDOM.normal(size=2))


def code_map(features, codes):
    feature_xy, code_xy = (RANDOM.normal(size=(count, 2)).astype(np.float32) for count in (features, codes))
    return CodeMap(feature_xy, code_xy, RANDOM.random(codes) < 0.5, 0.25, 4000, 0.98)


def test_trajectories(tmp_path):
    runs = {"vq": trajectory(4), "fvq": trajectory(6)}
    write_trajectories(tmp_path, runs)
    file, _ = open_described(tmp_path / "trajectories.parquet", "trajectories")
    rows = file.read().to_pylist()
    assert len(rows) == 5 + 7
    names = ["experiment", "step", "z_e_x", "z_e_y", "z_q_x", "z_q_y", "target_x", "target_y", "index"]
    assert list(rows[0]) == names
    for name, run in runs.items():
        own = [row for row in rows if row["experiment"] == name]
        assert [row["step"] for row in own] == list(range(len(run.indices)))
        assert [[row["z_e_x"], row["z_e_y"]] for row in own] == run.z_e.tolist()
        assert [[row["z_q_x"], row["z_q_y"]] for row in own] == run.z_q.tolist()
        assert [[row["target_x"], row["target_y"]] for row in own] == [run.target.tolist()] * len(own)
        assert [row["index"] for row in own] == run.indices.tolist()
    assert read_json(tmp_path / "trajectories.json") == {name: describe(run) for name, run in runs.items()}


def test_code_maps(tmp_path):
    maps = {"vq": code_map(3, 5), "fvq": code_map(4, 2)}
    write_code_maps(tmp_path, maps)
    file, _ = open_described(tmp_path / "code_map.parquet", "code_map")
    rows = file.read().to_pylist()
    assert len(rows) == 8 + 6
    assert list(rows[0]) == ["row", "kind", "x", "y", "used"]
    for name, drawn in maps.items():
        features, codes = ([row for row in rows if (row["row"], row["kind"]) == (name, k)] for k in ("feature", "code"))
        assert [[row["x"], row["y"]] for row in features] == drawn.feature_xy.tolist()
        assert [[row["x"], row["y"]] for row in codes] == drawn.code_xy.tolist()
        assert [row["used"] for row in codes] == drawn.code_used.tolist()
        assert {row["used"] for row in features} == {None}
    assert read_json(tmp_path / "code_map.json")["fvq"] == {"usage": 0.25, "tokens": 4000, "ceiling": 0.98}


def test_sizes(tmp_path):
    histories = {
        256: [{"step": 25, "loss": 0.3, "codebook": 0.2, "commitment": 0.1, "usage": 0.5, "usage_tokens": 800}],
        1024: [{"step": 25, "loss": 0.2, "codebook": 0.15, "commitment": 0.05, "usage": 1.0, "usage_tokens": 800}],
    }
    write_sizes(tmp_path, histories)
    with (tmp_path / "sizes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["codebook_size", "step", "loss", "codebook", "commitment", "usage", "usage_tokens"]
    assert [int(row["codebook_size"]) for row in rows] == [256, 1024]
    assert [float(row["loss"]) for row in rows] == [0.3, 0.2]


def test_a_failed_writing_leaves_the_old_file(tmp_path, monkeypatch):
    write_trajectories(tmp_path, {"vq": trajectory(4)})
    before = (tmp_path / "trajectories.parquet").read_bytes()

    def failing(table, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files.pq, "write_table", failing)
    with pytest.raises(OSError, match=r"No space left on device: .*trajectories\.parquet'$"):
        write_trajectories(tmp_path, {"vq": trajectory(4)})
    assert (tmp_path / "trajectories.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trajectories.json", "trajectories.parquet"]


def test_the_same_results_give_the_same_bytes(tmp_path):
    runs, maps = {"vq": trajectory(4)}, {"vq": code_map(3, 5)}
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_trajectories(folder, runs)
        write_code_maps(folder, maps)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert pq.read_metadata(tmp_path / "a" / "code_map.parquet").num_rows == 8
