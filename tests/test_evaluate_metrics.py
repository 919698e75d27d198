"""The flat figures of metrics.json, and what is refused."""

import json

import numpy as np
import pytest
import torch

from fvq.evaluate.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.extractor import extract
from fvq.evaluate.frechet import feature_statistics, frechet_distance
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.tokenizer_metrics import evaluate_reconstructions
from fvq.runtime.errors import UserError
from fvq.runtime.files import write_json

PROTOCOL = {
    "protocol_extractor",
    "protocol_extractor_sha256",
    "protocol_reference",
    "protocol_reference_images",
    "protocol_images",
    "protocol_resize",
    "protocol_seed",
}


def random_images(count: int, seed: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory) -> ImageClassifier:
    torch.manual_seed(0)
    classifier = ImageClassifier(ImageClassifierConfig(name="photos", image_size=16, classes=3, width=8)).eval()
    classifier.save(tmp_path_factory.mktemp("weights") / "extractor.safetensors")
    return classifier


def test_tokenizer_figures(extractor, tmp_path):
    original = random_images(20, seed=1)
    reconstruction = (original.float() * 0.9 + 5).byte()
    indices = torch.arange(20 * 16).view(20, 4, 4) % 48
    figures, columns = evaluate_reconstructions(
        original, reconstruction, indices, 64, extractor, reference="validation images", seed=7, batch_size=6
    )
    usage = {"usage", "usage_codes", "codebook_size", "usage_tokens", "usage_ceiling", "perplexity"}
    errors = {"mse", "psnr_rgb", "ssim_g11"}
    assert set(figures) == usage | errors | {"rfd_photos", "protocol_lpips_alex"} | PROTOCOL
    assert figures["usage"] == 0.75 and figures["usage_codes"] == 48 and figures["usage_tokens"] == 320
    assert figures["protocol_images"] == "20" and figures["protocol_seed"] == "7"
    assert figures["protocol_extractor"] == "photos" and len(figures["protocol_extractor_sha256"]) == 64
    assert figures["protocol_lpips_alex"] == "absent: no alexnet-owt-7be5be79.pth"
    expected = frechet_distance(
        *(feature_statistics(extract(extractor, [x], count=20).features) for x in (original, reconstruction))
    )
    assert figures["rfd_photos"] == pytest.approx(expected, rel=1e-3) and expected > 0
    assert set(columns) == {"image_id"} | errors
    for name in errors:
        assert columns[name].shape == (20,) and figures[name] == pytest.approx(np.mean(columns[name]))
    assert columns["image_id"].tolist() == list(range(20))
    write_json(tmp_path / "metrics.json", figures)
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures


def test_lpips_is_a_figure_where_its_network_is_given(extractor):
    original = random_images(4, seed=2)
    figures, columns = evaluate_reconstructions(
        original,
        original,
        torch.zeros(4, 2, 2, dtype=torch.int64),
        8,
        extractor,
        reference="validation images",
        seed=0,
        lpips_alex=lambda a, b: (a.float() - b.float()).abs().mean(dim=(1, 2, 3)) + 0.25,
    )
    assert figures["lpips_alex"] == 0.25 and columns["lpips_alex"].tolist() == [0.25] * 4
    assert "protocol_lpips_alex" not in figures
    assert figures["rfd_photos"] == pytest.approx(0, abs=1e-6) and figures["mse"] == 0


def test_generator_figures(extractor):
    samples, reference = random_images(30, seed=3), random_images(25, seed=4)
    figures = evaluate_samples(samples, reference, extractor, reference="training images", seed=1)
    assert set(figures) - PROTOCOL == {
        "fd_photos",
        "is_photos",
        "precision",
        "recall",
        "samples",
        "protocol_score_chunk",
        "protocol_neighbours",
    }
    assert set(figures) >= PROTOCOL
    assert figures["samples"] == 30 and figures["protocol_reference_images"] == "25"
    assert figures["fd_photos"] > 0 and 1 <= figures["is_photos"] <= 3
    same = evaluate_samples(reference, reference, extractor, reference="training images", seed=1)
    assert same["fd_photos"] == pytest.approx(0, abs=1e-9) and same["precision"] == same["recall"] == 1


def test_refusals(extractor):
    images = random_images(8, seed=5)
    arguments = {"reference": "validation images", "seed": 0}
    indices = torch.zeros(8, 2, 2, dtype=torch.int64)
    with pytest.raises(UserError, match="originals: at least 2 images are needed, and there are 1"):
        evaluate_reconstructions(images[:1], images[:1], indices, 4, extractor, **arguments)
    with pytest.raises(UserError, match="reconstructions: images must be uint8, not float32"):
        evaluate_reconstructions(images, images / 255, indices, 4, extractor, **arguments)
    with pytest.raises(UserError, match="have the shape"):
        evaluate_reconstructions(images, images[:7], indices, 4, extractor, **arguments)
    with pytest.raises(ValueError, match="indices must lie in 0 to 3, and 4 to 4 do not"):
        evaluate_reconstructions(images, images, indices + 4, 4, extractor, **arguments)
    with pytest.raises(UserError, match="samples: at least 2"):
        evaluate_samples(images[:1], images, extractor, **arguments)
    with pytest.raises(UserError, match="differ in size, 8x8 and 16x16 pixels"):
        evaluate_samples(random_images(8, seed=6, size=8), images, extractor, **arguments)
    with pytest.raises(UserError, match=r"shape \(N, 3, height, width\)"):
        evaluate_samples(images.permute(0, 2, 3, 1), images, extractor, **arguments)
