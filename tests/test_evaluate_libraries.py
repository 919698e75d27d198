"""Whole evaluations against torch-fidelity's and pytorch-fid's own calls and ADM's formulas, on a random Inception."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_fid.fid_score
import pytorch_fid.inception
import scipy.linalg
import torch
import torch_fidelity
from numpy.typing import NDArray
from PIL import Image
from random_inception import photo_crops, write_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fvq.evaluate.evaluation import Options
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.kid import kernel_distance
from fvq.evaluate.neighbours import neighbour_figures
from fvq.evaluate.networks.inception import Inception2015
from fvq.evaluate.protocols import PROTOCOLS, ProtocolName
from fvq.evaluate.record import check_record
from fvq.evaluate.sides import open_side

Array = NDArray[np.float64]
COUNTS = {"samples": 14, "reference": 11}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """PNG files whose names sort alike for all: torch-fidelity takes them in the order of the text."""
    parent = tmp_path_factory.mktemp("images")
    folders = {name: parent / name for name in COUNTS}
    for seed, (name, folder) in enumerate(folders.items()):
        folder.mkdir()
        for number, image in enumerate(photo_crops(COUNTS[name], 64, 48, seed).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(folder / f"{number:03}.png")
    return folders


def evaluated(folders: dict[str, Path], weights: Path, name: ProtocolName) -> dict[str, float | int | str]:
    protocol = PROTOCOLS[name]
    sides = (open_side(folders[side]) for side in ("samples", "reference"))
    extractor = Inception2015(weights, protocol.resize)
    found = evaluate_samples(*sides, extractor, protocol, Options(allow_count=True, batch_size=5))
    check_record(found.values, "evaluation")
    return found.values


def features_of(folder: Path, weights: Path) -> torch.Tensor:
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    return Inception2015(weights, "tensorflow")(torch.from_numpy(images).permute(0, 3, 1, 2)).features


def test_the_protocol_torch_fidelity_is_that_librarys(folders, weights):
    found = evaluated(folders, weights, "torch-fidelity")
    expected = torch_fidelity.calculate_metrics(
        input1=str(folders["samples"]),
        input2=str(folders["reference"]),
        isc=True,
        fid=True,
        kid=True,
        kid_subset_size=7,
        prc=True,
        prc_neighborhood=1,
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
        feature_extractor_weights_path=str(weights),
        batch_size=5,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    # Of so few images its eigenvalues are right to some 1e-4.
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert found["inception_score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4)
    assert found["fid"] > 0 and found["inception_score"] > 1.02
    features = [features_of(folders[name], weights) for name in ("samples", "reference")]
    mean, deviation = kernel_distance(*features, subset_size=7)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4) and mean != 0
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-4)
    figures = neighbour_figures(*features, neighbours=1)
    assert figures.precision == pytest.approx(expected["precision"], rel=1e-6)
    assert figures.recall == pytest.approx(expected["recall"], rel=1e-6)
    assert figures.precision < figures.recall


def low_rank_root(matrix: Array, disp: bool = True) -> tuple[Array, float]:
    """scipy's square root, of what is left of a matrix of the rank of so few images: of 2,048 rows it takes 20 s.

    With A = U B, U a basis of its range, U (B U)^(-1/2) B has the square U B.
    """
    random = np.random.default_rng(0).standard_normal((len(matrix), min(COUNTS.values()) - 1))
    basis, _ = np.linalg.qr(matrix @ random)
    rest = basis.T @ matrix
    root = basis @ np.linalg.inv(scipy.linalg.sqrtm(rest @ basis)) @ rest
    assert np.linalg.norm(root @ root - matrix) < 1e-8 * np.linalg.norm(matrix)
    return root, 0.0


def test_the_protocol_pytorch_fid_is_that_librarys(folders, weights, monkeypatch):
    found = evaluated(folders, weights, "pytorch-fid")
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state)
    monkeypatch.setattr(pytorch_fid.fid_score, "linalg", SimpleNamespace(sqrtm=low_rank_root))
    paths = [str(folders[name]) for name in ("samples", "reference")]
    expected = pytorch_fid.fid_score.calculate_fid_given_paths(paths, 5, "cpu", 2048, num_workers=0)
    assert found["fid"] == pytest.approx(expected, rel=1e-5)


def test_the_protocol_adm_is_the_published_formulas(folders, weights):
    found = evaluated(folders, weights, "adm")
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    spatial: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, map_bchw: spatial.append(map_bchw.movedim(1, -1)[..., :7].flatten(1))
    )
    outputs = {}
    for name, folder in folders.items():
        images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
        outputs[name] = [*network(torch.from_numpy(images).permute(0, 3, 1, 2)), spatial.pop()]
    features, logits, places = (part.double().numpy() for part in outputs["samples"])
    others, _, other_places = (part.double().numpy() for part in outputs["reference"])
    assert places.shape == (14, 2023)
    assert found["fid"] == pytest.approx(frechet(features, others), rel=1e-5)
    assert found["sfid"] == pytest.approx(frechet(places, other_places), rel=1e-5)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    divergence_n = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
    assert found["inception_score"] == pytest.approx(np.exp(divergence_n.mean()), rel=1e-5)
    for name, points, centres in (("precision", features, others), ("recall", others, features)):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)[:, 3]
        inside = np.linalg.norm(points[:, None] - centres, axis=2) <= radii
        assert found[name] == inside.any(axis=1).mean()


def frechet(first: Array, second: Array) -> float:
    """Of fewer images than dimensions: the last trace is the sum of the singular values of X Y^T, X and Y centred."""
    centred = [(part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (first, second)]
    shift = first.mean(axis=0) - second.mean(axis=0)
    squares = sum((part**2).sum() for part in centred)
    return float(shift @ shift + squares - 2 * np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum())
