"""The figures of tokenizers, against those computed by hand; and what is refused."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_tokenizer_model import tokenizer
from tiny_extractor import TinyExtractor, random_images

from fvq.data.image_table import to_model_range
from fvq.evaluate import segments
from fvq.evaluate.evaluation import Evaluation, Options
from fvq.evaluate.frechet import feature_statistics, frechet_distance
from fvq.evaluate.image_sets import TensorImages, open_image_set
from fvq.evaluate.pairs import MadePairs, Pairs, StoredPairs
from fvq.evaluate.protocols import PROTOCOLS
from fvq.evaluate.reconstruction import mse, psnr_rgb
from fvq.evaluate.record import check_record
from fvq.evaluate.tokenizer_metrics import evaluate_reconstructions
from fvq.evaluate.uncertainty import half_spread
from fvq.runtime.errors import UserError
from fvq.runtime.interruption import Interrupted
from fvq.tokenizer.inference import reconstruct

ADM, RELEASED = PROTOCOLS["adm"], PROTOCOLS["fvq-released"]
JPEG = RELEASED.preparation
PLAIN = replace(JPEG, jpeg_quality=None, keep_jpeg=False)
ANY = Options(allow_count=True, batch_size=4)
MEASURES = {"mse": mse, "psnr_rgb": psnr_rgb}
CODES = 40


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    monkeypatch.setattr(segments, "_SHORTEST", 10)


def inception(**changes: object) -> TinyExtractor:
    return TinyExtractor("inception-2015", **changes)


def coarsened(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens below 40 and coarse images."""
    return (images[:, :, ::2, ::2].flatten(1) % CODES).long(), images // 16 * 16 + 8


def made(images: torch.Tensor, **changes: object) -> MadePairs:
    chosen = {"reconstruct": coarsened, "name": "coarse", "tokenizer_sha256": "ef" * 32} | changes
    return MadePairs(plain_originals=TensorImages(images, "originals"), **chosen)


def evaluated(pairs: Pairs, **changes: object) -> Evaluation:
    """An evaluation whose record is checked."""
    chosen = {"extractor": inception(), "protocol": ADM, "measures": MEASURES, "options": ANY} | changes
    found = evaluate_reconstructions(pairs, **chosen)
    assert found is not None
    check_record(found.values, "evaluation")
    return found


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return frechet_distance(*(feature_statistics(inception()(images).features).gaussian for images in (first, second)))


# The figures


def test_figures_of_reconstructions_that_are_made():
    """34 images in 4 segments: every token counts, and errors keep the order of the images."""
    original = random_images(34, seed=1)
    indices, reconstruction = coarsened(original)
    found = evaluated(made(original), codebook_size=CODES, reference_words="validation")
    values = found.values
    assert values["rfid"] == pytest.approx(distance(original, reconstruction), rel=1e-5)
    assert list(found.errors) == ["mse", "psnr_rgb"]
    for name, measure in MEASURES.items():
        expected_n = measure(original, reconstruction)
        assert torch.equal(found.errors[name], expected_n) and len(expected_n.unique()) > 10
        assert values[name] == pytest.approx(expected_n.mean().item(), rel=1e-12)
    counts = np.bincount(indices.flatten(), minlength=CODES)
    shares = counts[counts > 0] / counts.sum()
    assert values["usage_codes"] == (counts > 0).sum() and values["codebook_size"] == CODES
    assert values["usage_tokens"] == indices.numel() == counts.sum()
    assert values["usage"] == (counts > 0).mean()
    assert values["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    facts = {
        "samples": 34,
        "samples_path": "coarse",
        "protocol": "adm",
        "protocol_preparation": "as reconstructed; reference: as stored",
        "protocol_reference": "validation",
        "protocol_reference_sha256": TensorImages(original, "").digest,
        "protocol_reference_images": "34",
        "protocol_images": "34",
        "protocol_score": "none",
        "protocol_neighbours": "none",
        "protocol_seed": "none",
    }
    assert {name: values[name] for name in facts} == facts and not found.notes


def test_stored_reconstructions_have_the_figures_of_those_that_were_made():
    original = random_images(25, seed=2)
    stored = StoredPairs(TensorImages(coarsened(original)[1], "stored"), TensorImages(original, "originals"))
    found, expected = evaluated(stored, codebook_size=None), evaluated(made(original))
    assert {"rfid", "mse", "psnr_rgb"} < set(found.values) and "usage" not in found.values
    for name in ("rfid", "mse", "psnr_rgb"):
        assert found.values[name] == expected.values[name]
    assert found.values["samples_path"] == "stored" and found.values["protocol_reference"] == "originals"
    same = evaluated(StoredPairs(TensorImages(original, "copy"), TensorImages(original, "originals")))
    assert same.values["rfid"] == pytest.approx(0, abs=1e-7) and same.values["mse"] == 0


def test_a_tokenizers_reconstructions_are_its_own():
    model, original = tokenizer().freeze(), random_images(23, seed=3, size=16)
    pairs = MadePairs(
        partial(reconstruct, model), TensorImages(original, "photos"), name="t", tokenizer_sha256="0" * 64
    )
    found = evaluated(pairs, codebook_size=64)
    indices = torch.cat([model.encode(to_model_range(part)) for part in original.split(4)])
    decoded = torch.cat([model.decode(part) for part in indices.split(4)])
    reconstruction = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte()
    assert found.values["usage_codes"] == len(indices.unique()) > 1
    assert found.values["usage_tokens"] == indices.numel()
    torch.testing.assert_close(found.errors["mse"], mse(original, reconstruction), rtol=1e-4, atol=0)
    assert found.values["rfid"] == pytest.approx(distance(original, reconstruction), rel=1e-3)
    whole_indices, whole = reconstruct(model, original)
    assert whole.dtype == torch.uint8 and torch.equal(whole_indices, indices)
    assert (whole.int() - reconstruction.int()).abs().max() <= 1


def test_another_networks_distance_bears_its_name():
    found = evaluated(made(random_images(20, seed=4)), extractor=TinyExtractor("photos"), options=Options())
    assert "rfd_photos" in found.values and "rfid" not in found.values


def test_the_uncertainty_is_that_of_the_pairs():
    original = random_images(60, seed=5)
    found = evaluated(made(original), options=replace(ANY, uncertainty=True, seed=2))
    features = [inception()(images).features for images in (coarsened(original)[1], original)]
    assert found.values["rfid_spread"] == pytest.approx(half_spread(*features, seed=2), rel=1e-3)
    assert found.values["protocol_seed"] == "halves 2"
    assert found.notes == (
        "no rfid_infinity: the extrapolation needs at least 320 images for 8 dimensions, and there are 60",
    )


def test_absent_measures_are_on_record():
    found = evaluated(made(random_images(20, seed=6)), absent={"lpips_alex": "absent: no alexnet.pth"}, measures={})
    assert found.values["protocol_lpips_alex"] == "absent: no alexnet.pth" and not found.errors


# JPEG


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve lossless pictures, larger than the crop."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((300, 270), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def plain_crops(folder: Path) -> torch.Tensor:
    images = [Image.open(folder / f"{number}.png").crop((22, 7, 22 + 256, 7 + 256)) for number in range(12)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def as_jpeg(images: torch.Tensor) -> torch.Tensor:
    compressed = []
    for image in images.permute(0, 2, 3, 1).contiguous().numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "jpeg")  # quality 75 is Pillow's own choice
        compressed.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(compressed)).permute(0, 3, 1, 2)


def test_the_released_rfid_is_that_of_two_sides_in_jpeg(photos):
    crops, seen = plain_crops(photos), []

    def coarsen_what_is_seen(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(images.clone())
        return coarsened(images)

    pairs = MadePairs(
        coarsen_what_is_seen,
        open_image_set(photos, PLAIN),
        name="coarse",
        tokenizer_sha256="ef" * 32,
        originals=open_image_set(photos, JPEG),
    )
    found = evaluated(pairs, protocol=RELEASED)
    assert torch.equal(torch.cat(seen), crops), "the tokenizer sees no JPEG"
    reconstruction = coarsened(crops)[1]
    assert found.values["rfid_jpeg75"] == pytest.approx(distance(as_jpeg(reconstruction), as_jpeg(crops)), rel=1e-4)
    assert "rfid" not in found.values
    assert abs(found.values["rfid_jpeg75"] / distance(reconstruction, crops) - 1) > 1e-3
    assert torch.equal(found.errors["mse"], mse(crops, reconstruction)), "errors are those of what was not compressed"
    assert found.values["protocol_preparation"] == (
        "as reconstructed, JPEG quality 75 4:2:0; reference: centre crop of 256 pixels without scaling, "
        "black around smaller images, JPEG quality 75 4:2:0 (files that are so already, as they are)"
    )


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_reconstructions_that_were_stored_as_jpeg_are_not_compressed_again(photos, tmp_path, form):
    """The released code's own files give the figure of lossless ones."""
    crops = plain_crops(photos)
    for number, image in enumerate(coarsened(crops)[1].permute(0, 2, 3, 1).contiguous().numpy()):
        Image.fromarray(image).save(tmp_path / f"{number}.{form}")
    pairs = StoredPairs(
        open_image_set(tmp_path),
        open_image_set(photos, PLAIN),
        compared=open_image_set(tmp_path, JPEG),
        originals=open_image_set(photos, JPEG),
    )
    found = evaluated(pairs, protocol=RELEASED)
    expected = distance(as_jpeg(coarsened(crops)[1]), as_jpeg(crops))
    assert found.values["rfid_jpeg75"] == pytest.approx(expected, rel=1e-4)
    assert found.values["protocol_preparation"] == JPEG.describe()


def test_stored_reconstructions_have_a_preparation_of_their_own(photos, tmp_path):
    for number, image in enumerate(plain_crops(photos).permute(0, 2, 3, 1).contiguous().numpy()):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    found = evaluated(StoredPairs(open_image_set(tmp_path), open_image_set(photos, PLAIN)))
    assert found.values["protocol_preparation"] == f"as stored; reference: {PLAIN.describe()}"
    assert found.values["mse"] == 0


# Refusals


@pytest.mark.parametrize(
    "option", [{"kernel_distance": True}, {"density_and_coverage": True}, {"distances": "float16"}], ids=str
)
def test_options_of_samples_are_refused(option):
    (name,) = option
    with pytest.raises(UserError, match=f"^{name} is for samples, not for reconstructions$"):
        evaluated(made(random_images(20, seed=6)), options=replace(ANY, **option))


def test_sets_that_do_not_pair_are_refused():
    images = TensorImages(random_images(9, seed=7), "originals")
    with pytest.raises(UserError, match="stored: 8 images do not pair with the 9 of originals"):
        StoredPairs(TensorImages(random_images(8, seed=7), "stored"), images)
    with pytest.raises(UserError, match="stored: images of 6x6 pixels do not pair with those of 4x4 of originals"):
        StoredPairs(TensorImages(random_images(9, seed=7, size=6), "stored"), images)
    with pytest.raises(UserError, match="originals: at least 2 images are needed, and there is 1"):
        evaluated(made(random_images(1, seed=7)))


def test_reconstructions_of_a_wrong_kind_are_refused():
    images = random_images(9, seed=8)
    for reconstruct_wrongly, told in (
        (lambda images: (coarsened(images)[0], images / 255), "must be uint8, not float32"),
        (lambda images: (coarsened(images)[0], images[:, :, :2]), "images have 2x4 pixels, and the originals 4x4"),
        (lambda images: (coarsened(images)[0], images[:1]), "reconstructions: 1 images, and the originals are 4"),
    ):
        with pytest.raises(UserError, match=told):
            evaluated(made(images, reconstruct=reconstruct_wrongly))
    with pytest.raises(ValueError, match="indices must lie in 0 to 9"):
        evaluated(made(images), codebook_size=10)


def test_a_published_rfid_stands_on_a_published_number_of_images():
    of_twenty = replace(ADM, pairs=(20, 10))
    pairs = made(random_images(19, seed=9))
    with pytest.raises(
        UserError, match=r"originals: 19 images, and a published .* adm stands on 20 or 10; --allow-count"
    ):
        evaluated(pairs, protocol=of_twenty, options=Options())
    evaluated(pairs, protocol=of_twenty)
    evaluated(made(random_images(20, seed=9)), protocol=of_twenty, options=Options())
    evaluated(pairs, protocol=of_twenty, extractor=TinyExtractor("photos"), options=Options())


# Stopped and shared


def test_stopped_by_a_signal_it_goes_on_where_it_was(tmp_path):
    original, done = random_images(34, seed=10), []

    def reconstruct_and_stop(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        done.append(len(images))
        if len(done) == 8:  # in the third of four segments
            os.kill(os.getpid(), signal.SIGTERM)
        return coarsened(images)

    expected = evaluated(made(original), codebook_size=CODES)
    stopping = made(original, reconstruct=reconstruct_and_stop)
    with pytest.raises(Interrupted, match="inception-2015 of coarse: SIGTERM received; 2 of 4 segments are kept"):
        evaluated(stopping, codebook_size=CODES, cache=tmp_path)
    done.clear()
    found = evaluated(stopping, codebook_size=CODES, cache=tmp_path)
    assert sum(done) == 14
    assert found.values == expected.values
    assert all(torch.equal(found.errors[name], expected.errors[name]) for name in MEASURES)
    assert not list(tmp_path.glob("pairs-*")), "the finished pass leaves the reference's summary alone"


def test_killed_while_it_computes_the_figures_it_goes_on_from_the_segments(tmp_path, monkeypatch):
    original, done = random_images(34, seed=10), []

    def counted(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        done.append(len(images))
        return coarsened(images)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = replace(ANY, uncertainty=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("fvq.evaluate.tokenizer_metrics.uncertainty_of", interrupt)
        evaluated(made(original, reconstruct=counted), cache=tmp_path, options=options)
    assert sum(done) == 34
    found = evaluated(made(original, reconstruct=counted), cache=tmp_path, options=options)
    assert sum(done) == 34 and found.values == evaluated(made(original), options=options).values
    assert not list(tmp_path.glob("pairs-*"))


@pytest.mark.parametrize("name", ["code_digest", "library_versions"])
def test_segments_of_other_code_or_libraries_are_left(tmp_path, monkeypatch, name):
    original, done = random_images(34, seed=10), []

    def interrupted(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        done.append(len(images))
        if len(done) == 8:
            raise KeyboardInterrupt
        return coarsened(images)

    with pytest.raises(KeyboardInterrupt):
        evaluated(made(original, reconstruct=interrupted), cache=tmp_path)
    monkeypatch.setattr(f"fvq.evaluate.summary_file.{name}", lambda: "another")
    done[:] = [0] * 8
    evaluated(made(original, reconstruct=interrupted), cache=tmp_path)
    assert sum(done) == 34


def test_segments_are_those_of_the_same_question(tmp_path):
    """What another codebook or other measures left behind is not taken over."""
    original = random_images(34, seed=11)

    def interrupted(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return coarsened(images)

    asked = [
        {"codebook_size": None},
        {"codebook_size": CODES},
        {"codebook_size": CODES + 9},
        {"codebook_size": CODES, "measures": {"mse": mse}},
        {"codebook_size": CODES, "options": replace(ANY, uncertainty=True)},
        {"codebook_size": CODES, "extractor": inception(weights_sha256="cd" * 32)},
    ]
    for question in asked:
        calls: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            evaluated(made(original, reconstruct=interrupted), cache=tmp_path, **question)
    assert len(list(tmp_path.glob("pairs-*"))) == len(asked)
    for question in asked:
        expected = evaluated(made(original), **question)
        found = evaluated(made(original), cache=tmp_path, **question)
        assert found.values == expected.values, question


TWO = f"""
    import json, os, sys
    from pathlib import Path
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import torch
    torch.set_num_threads(1)
    from test_evaluate_pairs import CODES, evaluation_of_two_sorts, segments
    from fvq.runtime.errors import one_line_errors
    from fvq.runtime.processes import process_group

    segments._SHORTEST = 10
    work = Path(sys.argv[1])
    with process_group(), one_line_errors():
        (work / f"{{os.environ['RANK']}}.json").write_text(json.dumps(evaluation_of_two_sorts(work / "cache")))
"""


def evaluation_of_two_sorts(cache: Path | None) -> list[object]:
    """Of a tokenizer and of a generator."""
    from fvq.evaluate.generator_metrics import evaluate_samples
    from fvq.evaluate.sides import Side

    images = random_images(64, seed=12)
    first = evaluate_reconstructions(made(images), inception(), ADM, MEASURES, ANY, codebook_size=CODES, cache=cache)
    sides = (Side(TensorImages(part, "noise")) for part in (images, images.flip(2)[:50]))
    second = evaluate_samples(*sides, inception(), ADM, replace(ANY, uncertainty=True), cache=cache)
    errors = [] if first is None else [error_n.tolist() for error_n in first.errors.values()]
    return [None if found is None else found.values for found in (first, second)] + errors


def test_two_processes_give_the_figures_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == evaluation_of_two_sorts(None)
    assert second == [None, None]
