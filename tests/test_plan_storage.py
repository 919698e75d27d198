"""What a study leaves on disk, against the files that its stages write."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_plan import IMAGES, MEASURES, QUICK, parameters
from tiny_extractor import TinyExtractor, random_images

from fvq.data.image_table import write_image_table
from fvq.data.records import ImageRecord
from fvq.evaluate import generator_metrics
from fvq.evaluate.evaluation import Options
from fvq.evaluate.image_sets import TensorImages
from fvq.evaluate.pairs import MadePairs
from fvq.evaluate.protocols import PROTOCOLS
from fvq.evaluate.sides import Side
from fvq.evaluate.tokenizer_metrics import evaluate_reconstructions
from fvq.plan.compute import build_step
from fvq.plan.features import kept_of_reconstructions, kept_of_samples
from fvq.plan.images import Images
from fvq.plan.plan import plan_study
from fvq.runtime.checkpoint import write_state
from fvq.tokenizer import Tokenizer


def test_storage_of_a_tokenizer_is_that_of_real_files(tmp_path):
    """A repeat leaves a frozen tokenizer alone."""
    study = parameters(repeats={"seeds": [1, 2], "rows": ["fvq"]}, **QUICK)
    once, repeated = plan_study(study, IMAGES, ["vq", "fvq"]).rows
    step = build_step(study.tokenizer_config("fvq"), study.train_tokenizer, torch.device("cpu"))
    step(0, torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), 1e-4, lambda indices: None)
    step.tokenizer.save(tmp_path / "trained.safetensors")
    step.tokenizer.freeze().save(tmp_path / "frozen.safetensors")
    trained, frozen = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("trained", "frozen"))
    assert repeated.storage.weights == pytest.approx(trained + 3 * frozen, rel=0.03)
    assert once.storage.weights == pytest.approx(2 * frozen, rel=0.03)  # without a bridge both are alike
    state = {name: part.state_dict() for name, part in step.state().items()}
    write_state(state, tmp_path / "state.pt")
    assert repeated.storage.state == pytest.approx(2 * (tmp_path / "state.pt").stat().st_size, rel=0.06)
    assert repeated.storage.images == once.storage.images
    assert repeated.storage.features == 0


@pytest.mark.parametrize("validation", [4, 16])
def test_images_of_a_tokenizer_are_those_that_are_shown(tmp_path, validation, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))  # the stages are run from there, and not installed
    from pipeline.evaluate_tokenizer import _write_shown

    study = parameters(**QUICK)
    assert study.evaluate_tokenizer.shown_images == 10
    images = tmp_path / "validation.parquet"
    records = (ImageRecord(np.zeros((32, 32, 3), np.uint8), 0, f"{number}") for number in range(validation))
    write_image_table(images, records, dataset="photos", classes=["ant"], image_size=32, split="validation")
    Tokenizer(study.tokenizer_config("vq")).save(tmp_path / "tokenizer.safetensors")
    run = SimpleNamespace(parameters=study, device=torch.device("cpu"), output=lambda name: tmp_path / name)
    _write_shown(run, tmp_path / "tokenizer.safetensors", images)
    row = plan_study(study, Images(16000, validation, 10), ["vq"]).rows[0]
    assert row.storage.images == pytest.approx((tmp_path / "reconstructions.npz").stat().st_size, rel=0.03)


def test_token_tables_and_samples():
    """1,024 codes at 8x8 places, both views of each image; samples of 32x32 pixels."""
    study = parameters(evaluate_tokenizer__measures=MEASURES)
    tokenizer, generator = plan_study(study, IMAGES, ["vq"]).rows
    assert tokenizer.storage.tokens == 16000 * len(study.cache_tokens.views) * 64 * 10 / 8
    assert generator.storage.images == study.sample.count * 32 * 32 * 3
    assert generator.storage.features == study.sample.count * 64 * 4


@pytest.mark.parametrize(
    ("name", "protocol", "kernel_distance", "uncertainty"),
    [
        ("inception-2015", "adm", False, True),
        ("inception-2015", "adm", False, False),
        ("inception-2015", "torch-fidelity", False, True),
        ("inception-2015", "torch-fidelity", True, False),
        ("inception-2015", "pytorch-fid", True, True),
        ("inception-2015", "pytorch-fid", False, True),
        ("inception-2015", "pytorch-fid", False, False),
        ("photos", "adm", False, True),
        ("photos", "adm", False, False),
        ("photos", "torch-fidelity", False, False),
        ("photos", "pytorch-fid", True, False),
    ],
)
def test_features_are_those_that_stay_in_the_cache(tmp_path, monkeypatch, name, protocol, kernel_distance, uncertainty):
    """Of two tokenizers and a generator, on a network of so many times fewer features."""
    monkeypatch.setattr(generator_metrics, "check_subset_size", lambda count, what: None)  # it wants a thousand images
    monkeypatch.setattr(generator_metrics, "kernel_distance", lambda samples, reference: (0.0, 0.0))
    published = {"train_extractor": {"name": name, "weights": None}} if name == "inception-2015" else {}
    study = parameters(
        **published,
        evaluate_tokenizer__uncertainty=uncertainty,
        evaluate_generator__protocol=protocol,
        evaluate_generator__uncertainty=uncertainty,
        evaluate_generator__kernel_distance=kernel_distance,
        evaluate_generator__allow_count=True,
    )
    dimension, times = 8, 256 if published else 8
    network = TinyExtractor(name, dimension=dimension, spatial=6 if published else 0)
    otherwise = TinyExtractor(name, dimension=dimension, spatial=network.spatial_dimension)
    if published and protocol == "pytorch-fid":
        otherwise.resize = "in another way"
    other = TinyExtractor("vgg16", dimension=4096 // times) if published and protocol == "torch-fidelity" else None
    originals, cache = random_images(50, seed=1), tmp_path / "cache"

    def reconstructed(images, shift):
        return torch.zeros(len(images), 1, dtype=torch.int64), images // 2 + shift

    for shift in (0, 9):
        pairs = MadePairs(
            lambda images, shift=shift: reconstructed(images, shift),
            TensorImages(originals, "originals"),
            name="tokenizer",
            tokenizer_sha256=f"{shift:064d}",
        )
        options = Options(uncertainty=uncertainty, allow_count=True)
        assert evaluate_reconstructions(pairs, network, PROTOCOLS["adm"], {}, options, cache=cache)
    assert generator_metrics.evaluate_samples(
        Side(TensorImages(random_images(60, seed=2), "samples")),
        Side(TensorImages(originals, "originals")),
        otherwise,
        PROTOCOLS[protocol],
        Options(uncertainty=uncertainty, kernel_distance=kernel_distance, allow_count=True),
        neighbour_extractor=other,
        cache=cache,
    )
    of_sample, kept = kept_of_samples(study)
    kept |= {
        reference: max(values, kept.get(reference, 0))
        for reference, values in kept_of_reconstructions(study, None, study.evaluate_tokenizer.protocol).items()
    }
    stored = [np.load(path).nbytes for path in cache.rglob("features.npy")]
    assert sum(stored) * times == 4 * (50 * sum(kept.values()) + 60 * of_sample)
