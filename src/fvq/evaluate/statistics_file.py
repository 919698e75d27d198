"""Means and covariances of features in a file: a reference then need not be at hand, and is extracted once."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fvq.evaluate.frechet import Gaussian
from fvq.runtime.errors import UserError
from fvq.runtime.files import sha256_file
from fvq.runtime.npz import ArrayStream, array_names, open_array, write_npz

_ROUNDING = 1e-6
"""Of a covariance's norm: what rounding to float32 may have left of asymmetry or negative eigenvalues."""


@dataclass(frozen=True)
class StoredStatistics:
    """Gaussians fitted to the features of one set of images, and what is known of how."""

    name: str
    """The path, as the user named it."""
    digest: str
    """SHA-256 of the file, hexadecimal."""
    features: Gaussian
    spatial: Gaussian | None = None
    """Of ADM's spatial features, which sFID compares."""
    protocol: dict[str, str] = field(default_factory=dict)
    """What our own files say of themselves: extractor, extractor_sha256, resize, preparation, images, the digest of the
    images, the version of fvq. Empty for files of others, which say nothing."""


def read_statistics(path: Path | str) -> StoredStatistics | None:
    """The statistics in an npz; None where it holds none, only images for instance.

    Known are our own files and those of others by the same names: ``mu`` and ``sigma`` (pytorch-fid, ADM, EDM), with
    ``mu_s`` and ``sigma_s`` of spatial features (ADM). Other arrays, such as ADM's images ``arr_0``, are not read.

    Raises:
        UserError: no such file, damaged, one of a pair missing, shapes that do not fit each other, values that are not
            finite real numbers, a ``sigma`` that is no covariance (not symmetric, a negative eigenvalue).
    """
    path = Path(path)
    names = array_names(path)
    if not {"mu", "sigma"}.intersection(names):
        return None
    protocol, count = _read_protocol(path, names)
    features = _read_gaussian(path, "mu", "sigma", count)
    has_spatial = bool({"mu_s", "sigma_s"}.intersection(names))
    spatial = _read_gaussian(path, "mu_s", "sigma_s", count) if has_spatial else None
    return StoredStatistics(str(path), sha256_file(path), features, spatial, protocol)


def write_statistics(path: Path | str, statistics: StoredStatistics) -> None:
    """Write an npz that ``read_statistics`` reads, and pytorch-fid too; ``name`` and ``digest`` follow from the file.

    Equal statistics give equal bytes. The file appears whole or not at all.
    """
    features, spatial = statistics.features, statistics.spatial
    arrays = {"mu": features.mean, "sigma": features.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    fields = {"count": features.count, "protocol": statistics.protocol}
    text = np.array([json.dumps(fields, sort_keys=True)])
    streams = [_stream(name, tensor.cpu().double().numpy()) for name, tensor in arrays.items()]
    write_npz(path, [*streams, _stream("fvq", text)])


def _stream(name: str, array: npt.NDArray[Any]) -> ArrayStream:
    return ArrayStream(name, array.dtype, array.shape, [array])


def _read_protocol(path: Path, names: list[str]) -> tuple[dict[str, str], int | None]:
    """The protocol and the number of images; of a file of others {} and None."""
    if "fvq" not in names:
        return {}, None
    array = _read_array(path, "fvq", "U", dimensions=1)
    try:
        fields = json.loads(str(array[0]))
        protocol, count = dict(fields["protocol"]), fields["count"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path}: fvq is damaged (not the fields that fvq writes)") from None
    is_count = count is None or (type(count) is int and count >= 2)
    if not is_count or not all(isinstance(text, str) for text in protocol.values()):
        raise UserError(f"{path}: fvq is damaged (not the fields that fvq writes)")
    return protocol, count


def _read_gaussian(path: Path, mean_name: str, covariance_name: str, count: int | None) -> Gaussian:
    mean_d = torch.from_numpy(_read_array(path, mean_name, "f", dimensions=1).astype(np.float64))
    covariance_dd = torch.from_numpy(_read_array(path, covariance_name, "f", dimensions=2).astype(np.float64))
    if covariance_dd.shape != (len(mean_d), len(mean_d)):
        shapes = f"{mean_name} {tuple(mean_d.shape)} and {covariance_name} {tuple(covariance_dd.shape)}"
        raise UserError(f"{path}: {shapes} do not fit each other; statistics are (D,) and (D, D)")
    for name, values in ((mean_name, mean_d), (covariance_name, covariance_dd)):
        if not values.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite")
    _check_covariance(path, covariance_name, covariance_dd)
    return Gaussian(mean_d, covariance_dd, count)


def _read_array(path: Path, name: str, kind: str, dimensions: int) -> npt.NDArray[Any]:
    """An array of NumPy's ``kind`` that is not empty and has so many dimensions."""
    reader = open_array(path, name)
    if reader.dtype.kind != kind or len(reader.shape) != dimensions or 0 in reader.shape:
        what = {"f": "floating-point numbers", "U": "text"}[kind]
        raise UserError(
            f"{path}: {name} must be {what} with {dimensions} dimensions, not {reader.dtype} {reader.shape}"
        )
    (array,) = reader.rows(0, reader.shape[0], reader.shape[0])
    return array


def _check_covariance(path: Path, name: str, covariance_dd: Tensor) -> None:
    """UserError unless it is one but for rounding."""
    allowed = _ROUNDING * covariance_dd.norm()
    if (covariance_dd - covariance_dd.T).norm() > allowed:
        raise UserError(f"{path}: {name} is no covariance: it is not symmetric")
    if (covariance_dd.diagonal() < -allowed).any():
        raise UserError(f"{path}: {name} is no covariance: it has a negative variance")
    # Positive definite, with so much more on the diagonal, unless an eigenvalue is below minus that.
    lifted_dd = covariance_dd + allowed * torch.eye(len(covariance_dd), dtype=torch.float64)
    if allowed > 0 and torch.linalg.cholesky_ex(lifted_dd).info > 0:
        raise UserError(f"{path}: {name} is no covariance: it has a negative eigenvalue")
