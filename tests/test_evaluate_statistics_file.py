"""Files of statistics: ours and those of others, what pytorch-fid reads of ours, and damaged ones."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import compute_statistics_of_path

from fvq.evaluate.frechet import Gaussian, feature_statistics, frechet_distance
from fvq.evaluate.statistics_file import StoredStatistics, read_statistics, write_statistics
from fvq.runtime.errors import UserError

PROTOCOL = {"extractor": "inception-2015", "extractor_sha256": "6726", "resize": "to 299 × 299", "images": "20"}


def gaussian(dimension: int = 6, count: int = 20, seed: int = 0) -> Gaussian:
    features = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return feature_statistics(features).gaussian


def stored(spatial: bool = True, protocol: dict[str, str] = PROTOCOL) -> StoredStatistics:
    return StoredStatistics("", "", gaussian(), gaussian(9, seed=1) if spatial else None, protocol)


def good_arrays() -> dict[str, np.ndarray]:
    one = gaussian()
    return {"mu": one.mean.numpy(), "sigma": one.covariance.numpy()}


def save(path: Path, **changes: np.ndarray | None) -> Path:
    arrays = good_arrays() | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("spatial", [False, True])
def test_round_trip(tmp_path: Path, spatial: bool):
    path, written = tmp_path / "reference.npz", stored(spatial)
    write_statistics(path, written)
    read = read_statistics(path)
    assert read is not None
    assert read.name == str(path) and read.protocol == PROTOCOL
    assert read.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    pairs = [(read.features, written.features)]
    assert (read.spatial is not None) == spatial
    if read.spatial is not None and written.spatial is not None:
        pairs.append((read.spatial, written.spatial))
    for ours, theirs in pairs:
        assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.covariance, theirs.covariance)
        assert ours.count == theirs.count == 20


def test_equal_statistics_give_equal_bytes(tmp_path: Path):
    write_statistics(tmp_path / "a.npz", stored())
    write_statistics(tmp_path / "b.npz", stored(protocol=dict(reversed(PROTOCOL.items()))))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_pytorch_fid_reads_ours(tmp_path: Path):
    path, written = tmp_path / "reference.npz", stored()
    write_statistics(path, written)
    mean, covariance = compute_statistics_of_path(str(path), None, 1, 6, "cpu")
    np.testing.assert_array_equal(mean, written.features.mean)
    np.testing.assert_array_equal(covariance, written.features.covariance)


def test_files_of_others(tmp_path: Path):
    """ADM's archive of images and statistics, and compressed float32 ones, as JAX gives them."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    spatial = gaussian(9, seed=1)
    path = save(tmp_path / "adm.npz", arr_0=images, mu_s=spatial.mean.numpy(), sigma_s=spatial.covariance.numpy())
    read = read_statistics(path)
    assert read is not None and read.spatial is not None
    assert read.protocol == {} and read.features.count is None
    assert frechet_distance(read.features, gaussian()) < 1e-12
    assert torch.equal(read.spatial.covariance, spatial.covariance)

    np.savez_compressed(tmp_path / "small.npz", **{name: a.astype(np.float32) for name, a in good_arrays().items()})
    read = read_statistics(tmp_path / "small.npz")
    assert read is not None and read.spatial is None and read.features.covariance.dtype == torch.float64
    assert frechet_distance(read.features, gaussian()) < 1e-12


def test_few_images_in_float32_have_negative_eigenvalues_by_rounding(tmp_path: Path):
    few = gaussian(200, 20, seed=3)
    covariance = few.covariance.numpy().astype(np.float32)
    assert np.linalg.eigvalsh(covariance.astype(float))[0] < -1e-9
    read = read_statistics(save(tmp_path / "few.npz", mu=few.mean.numpy(), sigma=covariance))
    assert read is not None
    scale = 2 * few.covariance.trace().item()
    assert frechet_distance(read.features, gaussian(200, 500)) == pytest.approx(
        frechet_distance(few, gaussian(200, 500)), abs=1e-4 * scale
    )


def test_images_alone_are_no_statistics(tmp_path: Path):
    np.savez(tmp_path / "samples.npz", np.zeros((4, 8, 8, 3), np.uint8))
    assert read_statistics(tmp_path / "samples.npz") is None


def test_the_images_beside_the_statistics_are_not_read(tmp_path: Path):
    path = save(tmp_path / "adm.npz", arr_0=np.full((64, 64, 64, 3), 77, np.uint8))
    content = bytearray(path.read_bytes())
    content[content.index(b"\x4d" * 1000) + 500] = 0
    path.write_bytes(content)
    assert read_statistics(path) is not None
    with pytest.raises(Exception, match="CRC"), np.load(path) as archive:
        archive["arr_0"]


def skewed(array: np.ndarray) -> np.ndarray:
    return array + np.triu(np.full_like(array, 0.01), 1)


def with_value(name: str, place: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    array = good_arrays()[name].copy()
    array[place] = value
    return {name: array}


def with_negative_eigenvalue() -> dict[str, np.ndarray]:
    covariance = good_arrays()["sigma"]
    values, vectors = np.linalg.eigh(covariance)
    return {"sigma": covariance - 1.001 * values[0] * np.outer(vectors[:, 0], vectors[:, 0])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, "lacks the array sigma"),
        ({"mu": None}, "lacks the array mu"),
        ({"mu_s": np.zeros(3)}, "lacks the array sigma_s"),
        ({"mu": np.zeros(5)}, r"mu \(5,\) and sigma \(6, 6\) do not fit"),
        ({"sigma": np.eye(6)[:4]}, r"sigma \(4, 6\) do not fit"),
        ({"mu": np.zeros((1, 6))}, "mu must be floating-point numbers with 1 dimensions"),
        ({"mu": np.zeros(6, complex)}, "mu must be floating-point"),
        ({"sigma": np.zeros((6, 6), np.uint8)}, "sigma must be floating-point"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "mu must be"),
        ({"mu": np.array([None] * 6)}, "Python objects"),
        (with_value("mu", (2,), math.nan), "mu has values that are not finite"),
        (with_value("sigma", (2, 3), math.inf), "sigma has values that are not finite"),
        ({"sigma": skewed(good_arrays()["sigma"])}, "not symmetric"),
        (with_value("sigma", (1, 1), -1e-3), "negative variance"),
        (with_negative_eigenvalue(), "negative eigenvalue"),
        ({"sigma": -good_arrays()["sigma"]}, "negative variance"),
        ({"fvq": np.array(["{"])}, "fvq is damaged"),
        ({"fvq": np.array(["[]"])}, "fvq is damaged"),
        ({"fvq": np.array([json.dumps({"count": 1, "protocol": {}})])}, "fvq is damaged"),
        ({"fvq": np.array([json.dumps({"count": True, "protocol": {}})])}, "fvq is damaged"),
        ({"fvq": np.array([json.dumps({"count": None, "protocol": {"images": 3}})])}, "fvq is damaged"),
    ],
)
def test_bad_files_give_one_line_that_names_the_file(tmp_path: Path, changes, message: str):
    path = save(tmp_path / "bad.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_statistics(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_missing_and_truncated_files_never_give_statistics(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_statistics(tmp_path / "none.npz")
    path = tmp_path / "cut.npz"
    write_statistics(path, stored())
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.npz"):
            read_statistics(path)


def test_a_changed_value_is_noticed(tmp_path: Path):
    path = tmp_path / "changed.npz"
    write_statistics(path, stored())
    content = bytearray(path.read_bytes())
    content[content.index(stored().features.covariance.numpy().tobytes()) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="sigma is damaged"):
        read_statistics(path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "reference.npz"
    write_statistics(path, stored())
    before = path.read_bytes()
    unwritable = dataclasses.replace(stored(), protocol={"images": {1, 2}})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        write_statistics(path, unwritable)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
