"""Inception features beside other libraries', and a pass for FID, sFID and Inception Score beside the bare network."""

import functools
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from cases import Case, Work, tokens
from evaluation_inputs import FLOOR, SIDE, one_product, process_folder, random_images
from torch import Tensor

from fvq.evaluate.image_sets import ImageSet, TensorImages, open_image_set
from fvq.evaluate.inception_score import adm_groups
from fvq.evaluate.networks.extractor import Extractor, Outputs
from fvq.evaluate.networks.inception import Inception2015
from fvq.evaluate.summary import BATCH, Pass, summarize

# Of an image at the network's 299 pixels; a multiply-add counts as two.
INCEPTION_GFLOP = 11.43
OURS = "Inception2015"
NETWORK = "the network alone, images in memory"


def network_cases() -> list[Case]:
    """Features, and passes."""
    return [_inception(), _pass(), _sums()]


class Features(NamedTuple):
    """float32 (N, D), and how far they may be from the first rival's, relative to the norm."""

    features_nd: Tensor
    tolerance: float


def _inception() -> Case:
    """Bound by the convolutions, whose multiply-adds the floor has in one product; the rest is resizing and pooling."""
    count = tokens(32)
    rivals: dict[str, Callable[[int], Work]] = {
        OURS: _extract,
        "torch-fidelity FeatureExtractorInceptionV3": _extract_as_torch_fidelity,
        "pytorch-fid InceptionV3([3])": _extract_as_pytorch_fid,
        FLOOR: lambda count: one_product(1e9 * INCEPTION_GFLOP * count / 2),
    }
    return Case(
        title=f"Inception features: a batch of {count} images of {SIDE} pixels, random weights",
        base=OURS,
        rivals={name: partial(prepare, count) for name, prepare in rivals.items()},
        agree=_same_features,
        rate=(INCEPTION_GFLOP * count, "GFLOP"),
    )


def _same_features(result: Features | None, expected: Features) -> None:
    """torch-fidelity's are the same to a millionth; pytorch-fid resizes and scales in a way of its own."""
    if result is not None:
        difference = (result.features_nd - expected.features_nd).norm() / expected.features_nd.norm()
        assert difference <= result.tolerance, f"features differ by {difference:.1e} of their norm"


@functools.cache
def _weights() -> Path:
    """A file of random weights that keep the size of the activations."""
    import torchvision

    network = torchvision.models.inception_v3(weights=None, aux_logits=False, num_classes=1008, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.8, 1.2, generator=generator)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.uniform_(tensor, -0.1, 0.1, generator=generator)
    path = process_folder() / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@functools.cache
def _warm(count: int, load: Callable[[], Callable[[Tensor], Any]]) -> Callable[[Tensor], Any]:
    """A network that has seen such a batch: oneDNN then has its plans and its weights laid out.

    It is new where its memory is measured, of which they are a part.
    """
    network = load()
    if multiprocessing.parent_process() is None:
        with torch.no_grad():
            network(torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8))
    return network


def _extract(count: int) -> Work:
    network, images = _warm(count, _load_ours), random_images(count)
    return lambda: Features(network(images).features, 0)


def _load_ours() -> Inception2015:
    return Inception2015(_weights())


def _extract_as_torch_fidelity(count: int) -> Work:
    network, images = _warm(count, _load_torch_fidelity), random_images(count)

    @torch.no_grad()
    def work() -> Features:
        return Features(network(images)[0], 1e-6)

    return work


def _load_torch_fidelity() -> Callable[[Tensor], Any]:
    from torch_fidelity.utils import create_feature_extractor

    return create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(_weights()),
    )


def _extract_as_pytorch_fid(count: int) -> Work:
    network = _warm(count, _load_pytorch_fid)
    # Its data set hands over floats, made by other processes.
    images = random_images(count).float() / 255

    @torch.no_grad()
    def work() -> Features:
        return Features(network(images)[0].squeeze(3).squeeze(2), 0.02)

    return work


def _load_pytorch_fid() -> Callable[[Tensor], Any]:
    from pytorch_fid import inception

    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(_weights())):
        network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    return lambda images: network(images.float())


def _pass() -> Case:
    """Bound by the network: what is more than its own time is all else that a pass does."""
    count = tokens(64)
    return Case(
        title=f"One pass: FID, sFID and Inception Score of {count} images of {SIDE} pixels, from an npz archive",
        base=NETWORK,
        rivals={
            "summarize": partial(_summarize_archive, count),
            NETWORK: partial(_run_network, count),
        },
        agree=_same_mean,
        turns=2,
        rate=(count, "images"),
    )


def _summarize_archive(count: int) -> Work:
    path = process_folder() / f"{count}.npz"
    np.savez(path, arr_0=random_images(count).permute(0, 2, 3, 1).numpy())
    network = _warm(min(count, BATCH), _load_ours)
    return lambda: _mean_of_pass(network, open_image_set(path))


def _mean_of_pass(extractor: Extractor, images: ImageSet) -> Tensor:
    wanted = Pass(extractor, spatial=True, groups=adm_groups(len(images)))
    return summarize(wanted, images).features.mean


def _run_network(count: int) -> Work:
    network, images = _warm(min(count, BATCH), _load_ours), random_images(count)
    return lambda: torch.cat([network(batch).features for batch in images.split(BATCH)]).double().mean(dim=0)


def _same_mean(result_d: Tensor, expected_d: Tensor) -> None:
    torch.testing.assert_close(result_d, expected_d, rtol=1e-6, atol=1e-6)


def _sums() -> Case:
    """Bound by the products of features with themselves in float64; twice as many images take no more memory."""
    counts = tokens(8_000), tokens(16_000)
    return Case(
        title="One pass without the time of a network: FID, sFID and Inception Score",
        base=f"{counts[0]:,} images",
        rivals={f"{count:,} images": partial(_summarize_nothing, count) for count in counts},
        agree=lambda result, expected: None,
        turns=2,
    )


class _Nothing:
    """Outputs of Inception's sizes, the same for every batch."""

    name, weights_sha256, resize = "nothing", "not saved", "none"
    feature_dimension, spatial_dimension, classes = 2048, 2023, 1008

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = (self.feature_dimension, self.classes, self.spatial_dimension)
        self._outputs = [torch.randn(BATCH, size, generator=generator) for size in sizes]

    def __call__(self, images: Tensor, *, spatial: bool = False) -> Outputs:
        features, logits, spatial_features = (outputs[: len(images)].clone() for outputs in self._outputs)
        return Outputs(features, logits, spatial_features if spatial else None)


def _summarize_nothing(count: int) -> Work:
    images = TensorImages(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), "images")
    return partial(_mean_of_pass, _Nothing(), images)
