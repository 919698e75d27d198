"""``fvq evaluate`` and ``fvq statistics``: figures of every form of input, what they are called, what is refused."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from test_cli import CLASSES, SIZE, random_images, small_tokenizer, write_table
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from fvq.cli.measuring import prepared_protocol
from fvq.data.image_table import write_image_table
from fvq.data.records import ImageRecord
from fvq.evaluate import segments
from fvq.evaluate.image_order import check_same_order
from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.networks.pretrained import PretrainedFile
from fvq.evaluate.preparation import Preparation
from fvq.evaluate.protocols import PROTOCOLS, ProtocolName
from fvq.evaluate.reconstruction import LPIPS_TRUNKS
from fvq.evaluate.record import check_record
from fvq.evaluate.summary import Collected
from fvq.runtime.errors import UserError
from fvq.tokenizer.inference import reconstruct

SAMPLES, REFERENCE = random_images(9, seed=1), random_images(12, seed=2) // 2


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """Caches and published weights are looked for in the test's own folder."""
    monkeypatch.setenv("FVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)


@pytest.fixture
def extractor(tmp_path):
    return save_classifier(tmp_path / "tiny.safetensors")


@pytest.fixture
def archives(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=SAMPLES, arr_1=np.zeros(9))
    np.savez(tmp_path / "reference.npz", arr_0=REFERENCE)


@pytest.fixture
def measured(fvq, extractor):
    """Runs a command that must succeed: the figures in its file, and what it printed."""

    def run(command, *arguments):
        network = [] if "--extractor" in arguments or "--weights" in arguments else ["--extractor", extractor]
        status, out, err = fvq(command, *arguments, *network, "--out", "m.json", "--force")
        assert status == 0 and err == "", err
        values = json.loads(Path("m.json").read_text())
        check_record(values, "m.json")
        return values, out

    return run


@pytest.fixture
def refused(fvq):
    """Runs a command that must fail, and returns its one line."""

    def run(*arguments, status=1):
        found, out, err = fvq(*arguments)
        assert found == status and out == "", (found, out, err)
        assert err.startswith("fvq: error: ") and err.count("\n") == 1 and err.endswith("\n")
        return err

    return run


def save_classifier(path, size=SIZE, name="tiny"):
    torch.manual_seed(0)
    ImageClassifier(ImageClassifierConfig(name=name, image_size=size, classes=3, width=8)).save(path)
    return path


def save_folder(path, images, suffix=".png"):
    path.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(path / f"{number}{suffix}")


@torch.no_grad()
def outputs(extractor, images):
    """Features and logits of the library, float64."""
    found = ImageClassifier.load(extractor)(torch.from_numpy(images).permute(0, 3, 1, 2))
    return found.features.double(), found.logits.double()


def frechet(x, y):
    """By another library, of features (N, D)."""
    moments = [{"mu": x_nd.numpy().mean(0), "sigma": np.cov(x_nd.numpy(), rowvar=False)} for x_nd in (x, y)]
    return fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]


# The figures


def test_every_form_gives_the_figures_of_other_libraries(measured, extractor, archives, tmp_path):
    (features, logits), (reference, _) = (outputs(extractor, images) for images in (SAMPLES, REFERENCE))
    precision, recall = calculate_precision_recall_full(features, reference)
    expected = {
        "fd_tiny": frechet(features, reference),
        "is_tiny": isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"],
        "precision": precision,
        "recall": recall,
    }
    save_folder(tmp_path / "samples", SAMPLES)
    write_table(tmp_path / "samples.parquet", SAMPLES)
    with tarfile.open(tmp_path / "samples.tar", "w") as tar:
        tar.add(tmp_path / "samples", "images")
    for name in ("samples.npz", "samples", "samples.parquet", "samples.tar"):
        values, out = measured("evaluate", name, "--reference", "reference.npz")
        for figure, value in expected.items():
            assert values[figure] == pytest.approx(value, rel=1e-3, abs=1e-9), (name, figure)
        assert values["samples"] == 9 and values["protocol_reference_images"] == "12"
        assert values["samples_path"] == name and values["protocol_reference"] == "reference.npz"
        assert values["protocol_extractor"] == "tiny" and "fid" not in (" ".join(values) + out).lower()
        record = json.loads((tmp_path / "m.json.provenance.json").read_text())
        assert {"reference.npz", str(extractor)} <= record["inputs"].keys() and "m.json" in record["outputs"]


def test_what_is_printed(measured, archives):
    values, out = measured("evaluate", "samples.npz", "--reference", "reference.npz")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line.strip()]
    assert names.index("fd_tiny") < names.index("recall") < names.index("protocol_extractor")
    assert re.search(rf"fd_tiny +{values['fd_tiny']:.4} +9 against 12 *$", out, re.MULTILINE)
    assert re.search(rf"precision +{values['precision']:.4f} *$", out, re.MULTILINE)
    assert f"{values['protocol_extractor_sha256'][:16]}…" in out
    for name, value in values.items():
        if name.startswith("protocol") and not name.endswith("_sha256"):
            assert re.search(rf"{name} +{re.escape(value)} *$", out, re.MULTILINE), name
    assert out.endswith("wrote m.json (these figures)\nwrote m.json.provenance.json (how they came about)\n")


def test_digits_are_those_that_the_spread_supports(measured, tmp_path):
    np.savez(tmp_path / "many.npz", arr_0=random_images(400, 3))
    np.savez(tmp_path / "others.npz", arr_0=random_images(400, 4) // 2)
    command = ["evaluate", "many.npz", "--reference", "others.npz", "--uncertainty"]
    values, out = measured(*command, "--seed", 5)
    assert values["protocol_seed"] == "halves 5"
    assert values["fd_tiny_spread"] != measured(*command, "--seed", 6)[0]["fd_tiny_spread"]
    shown = re.search(r"fd_tiny +([0-9.]+) ± ([0-9.]+) \(infinitely many: ([0-9.]+)\) +400 against 400", out)
    assert shown and "fd_tiny_" not in out
    decimals = {len(text.partition(".")[2]) for text in shown.groups()}
    assert len(decimals) == 1 and shown[2].lstrip("0.") in set("123456789")
    figures = [values[f"fd_tiny{ending}"] for ending in ("", "_spread", "_infinity")]
    for text, value in zip(shown.groups(), figures, strict=True):
        assert float(text) == pytest.approx(value, abs=0.51 * 10.0 ** -decimals.pop() if decimals else 1e-2)


def test_statistics_of_others_are_a_reference(measured, extractor, archives, tmp_path):
    features = outputs(extractor, REFERENCE)[0].numpy()
    np.savez(tmp_path / "stats.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    values, out = measured("evaluate", "samples.npz", "--reference", "stats.npz", "--uncertainty")
    assert values["fd_tiny"] == pytest.approx(frechet(*(outputs(extractor, x)[0] for x in (SAMPLES, REFERENCE))))
    assert "precision" not in values and values["protocol_reference_images"] == "not known"
    assert "9 against stored statistics" in out
    assert "\nno precision and recall: stats.npz holds statistics alone\n" in out
    assert "\nno fd_tiny_spread: the spread over halves needs at least 32 images, and there are 9\n" in out


def test_options_beside_the_protocol(measured, refused, archives, extractor):
    command = ["evaluate", "samples.npz", "--reference", "reference.npz"]
    values, _ = measured(*command, "--density-coverage", "--distances", "float16", "--batch-size", 2)
    assert {"density", "coverage", "precision_float16", "recall_float16"} < values.keys()
    assert "precision" not in values and values["protocol_distances"] == "float16"
    assert "subsets of 1,000 images" in refused(*command, "--extractor", extractor, "--kid")
    values, _ = measured(*command, "--protocol", "torch-fidelity")
    assert values["protocol_score"].startswith("10 splits") and values["protocol_seed"] == "shuffle 2020"
    values, _ = measured(*command, "--protocol", "pytorch-fid")
    assert "is_tiny" not in values and "precision" not in values and values["protocol"] == "pytorch-fid"


def test_size_scales_and_crops_what_is_measured(measured, refused, extractor, tmp_path):
    photos = [Image.fromarray(image).resize((40, 30)) for image in (data.astronaut(), data.chelsea(), data.coffee())]
    photos += [photo.rotate(angle) for photo in photos for angle in (90, 180)]
    save_folder(tmp_path / "photos", [np.asarray(photo) for photo in photos])
    save_folder(tmp_path / "cut", [np.asarray(photo)[7:23, 12:28] for photo in photos])
    np.savez(tmp_path / "samples.npz", arr_0=SAMPLES)
    command = ["evaluate", "samples.npz", "--reference", "photos"]
    assert "--size scales and crops both" in refused(*command, "--extractor", extractor)
    plain, _ = measured(*command, "--size", SIZE, "--crop", "plain")
    cut, _ = measured("evaluate", "samples.npz", "--reference", "cut")
    assert plain["fd_tiny"] == cut["fd_tiny"]
    assert plain["protocol_preparation"] == "centre crop of 16 pixels without scaling, black around smaller images"
    scaled, _ = measured(*command, "--size", SIZE)
    assert scaled["fd_tiny"] != cut["fd_tiny"]
    assert scaled["protocol_preparation"] == "centre square at 16 pixels (ADM)"


# Reconstructions


def noisy(images, seed=9):
    noise = np.random.default_rng(seed).integers(-8, 9, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def psnr(x, y):
    return (10 * np.log10(255**2 / np.square(x.astype(float) - y).mean((1, 2, 3)))).mean()


def test_pairs(measured, refused, extractor, tmp_path):
    originals = random_images(12, 7)
    save_folder(tmp_path / "originals", originals, ".bmp")
    save_folder(tmp_path / "made", noisy(originals))
    values, out = measured("evaluate", "made", "--reference", "originals", "--pairs")
    features = [outputs(extractor, images)[0] for images in (noisy(originals), originals)]
    assert values["rfd_tiny"] == pytest.approx(frechet(*features), rel=1e-3)
    assert values["psnr_rgb"] == pytest.approx(psnr(noisy(originals), originals))
    assert f"{values['psnr_rgb']:.2f} dB" in out and re.search(r"rfd_tiny .* 12 pairs *$", out, re.MULTILINE)
    assert {"mse", "psnr_y", "ssim_g11", "ssim_g11_dr2", "ssim_u7", "ssim_u7_dr2"} < values.keys()
    assert values["protocol_lpips_alex"].startswith("absent") and "lpips_vgg" not in " ".join(values)
    assert "\nno lpips_alex: alexnet-owt-7be5be79.pth is missing" in out
    assert "fd_tiny" not in values and "precision" not in values

    chosen, _ = measured("evaluate", "made", "--reference", "originals", "--pairs", "--measure", "psnr_rgb")
    assert chosen["psnr_rgb"] == values["psnr_rgb"] and not {"mse", "protocol_lpips_alex"} & chosen.keys()
    command = ["evaluate", "made", "--reference", "originals", "--pairs", "--extractor", extractor]
    assert "--measure lpips_vgg: vgg16-397923af.pth" in refused(*command, "--measure", "lpips_vgg")
    assert "ssim: no such measure; there are mse" in refused(*command, "--measure", "ssim")

    (tmp_path / "made/11.png").unlink()
    assert "11 images do not pair with the 12 of originals" in refused(*command)
    (tmp_path / "made/4.png").rename(tmp_path / "made/4b.png")
    line = refused(*command)
    assert "made and originals" in line and "image 4 is 4b in the one and 4 in the other" in line


def test_pairs_belong_together_by_their_names(measured, refused, extractor, tmp_path):
    """Originals in folders of classes, which a flat tar of reconstructions does not follow in its order."""
    originals = random_images(4, 7)
    numbers = {"cats/2.png": 0, "cats/4.png": 1, "dogs/1.png": 2, "dogs/3.png": 3}
    for name, number in numbers.items():
        (tmp_path / "originals" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(originals[number]).save(tmp_path / "originals" / name)
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(originals[number]).save(tmp_path / "flat" / Path(name).name)

    def tarred(folder):
        with tarfile.open(tmp_path / f"{folder}.tar", "w") as tar:
            tar.add(tmp_path / folder, "images")

    tarred("flat"), tarred("originals")
    records = [ImageRecord(originals[number], 0, name) for name, number in numbers.items()]
    table = {"dataset": "tiny", "classes": CLASSES, "image_size": SIZE, "split": "validation"}
    write_image_table(tmp_path / "table.parquet", records, **table)
    write_image_table(tmp_path / "turned.parquet", records[::-1], **table)
    np.savez(tmp_path / "archive.npz", arr_0=originals)

    options = ["--pairs", "--measure", "mse"]
    for reconstructions, reference in (
        ("originals.tar", "originals"),
        ("originals", "table.parquet"),
        ("flat", "flat.tar"),
    ):
        values, out = measured("evaluate", reconstructions, "--reference", reference, *options)
        assert values["mse"] == 0 and "by their position" not in out
    for reconstructions, reference in (
        ("flat.tar", "originals"),
        ("originals", "flat.tar"),
        ("turned.parquet", "table.parquet"),
    ):
        line = refused("evaluate", reconstructions, "--reference", reference, *options, "--extractor", extractor)
        assert f"{reconstructions} and {reference}: pairs need the same names without suffix, and image 0 is " in line
    for reconstructions, reference in (("archive.npz", "originals"), ("flat", "archive.npz")):
        _, out = measured("evaluate", reconstructions, "--reference", reference, *options)
        note = "archive.npz does not name its images (a folder's come with 9 before 10)"
        assert f"\npairs are taken by their position: {note}\n" in out


@pytest.mark.parametrize(
    ("names", "others", "fit"),
    [
        (["0.png", "a/1.JPEG"], ["b/0.jpg", "1"], True),
        (["img.0.png", "img.1.png"], ["img.0", "img.1"], True),
        (["img.0.png", "img.1.png"], ["img.1.png", "img.0.png"], False),
        (["a/0.png", "b/0.png"], ["a/0.jpg", "b/0.jpg"], True),
        (["a/0.png", "b/0.png"], ["b/0.png", "a/0.png"], False),
        (["a/0.png", "b/0.png"], ["0.png", "1.png"], False),
        (["0.png", "0.jpg"], ["0.png", "0.bmp"], True),
    ],
)
def test_names_that_belong_together(names, others, fit):
    if fit:
        check_same_order(names, others, "made", "originals")
    else:
        with pytest.raises(UserError, match=r"^made and originals: pairs need the same names"):
            check_same_order(names, others, "made", "originals")


def test_a_folder_of_weights_serves_the_errors_too(measured, refused, extractor, tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = torchvision.models.alexnet(weights=None).features.state_dict()
    path = tmp_path / "folder/alexnet.pth"
    path.parent.mkdir()
    torch.save({f"features.{name}": tensor for name, tensor in state.items()}, path)
    file = PretrainedFile(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    monkeypatch.setitem(LPIPS_TRUNKS, "lpips_alex", ("alex", file))
    images = random_images(4, 7).repeat(2, 1).repeat(2, 2)
    network = save_classifier(tmp_path / "wide.safetensors", 2 * SIZE)
    np.savez(tmp_path / "originals.npz", arr_0=images)
    np.savez(tmp_path / "made.npz", arr_0=noisy(images))
    command = ["evaluate", "made.npz", "--reference", "originals.npz", "--pairs", "--extractor", network]
    assert measured(*command)[0]["protocol_lpips_alex"].startswith("absent")
    assert measured(*command, "--weights", "folder")[0]["lpips_alex"] > 0
    line = refused(*command, "--weights", "folder", "--measure", "lpips_vgg")
    assert "--measure lpips_vgg: vgg16-397923af.pth" in line, "the folder does not hold it"


def test_a_tokenizer_stands_for_its_reconstructions(measured, refused, extractor, archives, tmp_path):
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    tokens, made = reconstruct(tokenizer, torch.from_numpy(REFERENCE).permute(0, 3, 1, 2))
    np.savez(tmp_path / "made.npz", arr_0=made.permute(0, 2, 3, 1).numpy())
    values, _ = measured("evaluate", "tokenizer.safetensors", "--reference", "reference.npz")
    stored, _ = measured("evaluate", "made.npz", "--reference", "reference.npz", "--pairs")
    for figure in ("rfd_tiny", "psnr_rgb", "ssim_g11"):
        assert values[figure] == pytest.approx(stored[figure], rel=1e-6)
    assert values["usage_codes"] == len(tokens.unique()) and values["codebook_size"] == 32
    assert values["usage_tokens"] == tokens.numel() and values["perplexity"] > 1 and "usage" not in stored

    np.savez(tmp_path / "large.npz", arr_0=np.zeros((3, 32, 32, 3), np.uint8))
    command = ["evaluate", "tokenizer.safetensors", "--extractor", extractor, "--reference"]
    line = refused(*command, "large.npz")
    assert "32x32 pixels, and tokenizer.safetensors is for 16x16; --size 16" in line
    assert "holds an extractor, not a tokenizer" in refused(
        "evaluate", extractor, "--reference", "reference.npz", "--extractor", extractor
    )


def test_the_released_protocol_is_of_pairs(measured, tmp_path):
    network = save_classifier(tmp_path / "large.safetensors", 256, "large")
    photo = np.asarray(Image.fromarray(data.astronaut()).resize((300, 280)))
    originals = np.stack([np.roll(photo, 50 * number, axis=1) for number in range(5)])
    cut = originals[:, 12:268, 22:278]
    np.savez(tmp_path / "originals.npz", arr_0=originals)
    np.savez(tmp_path / "made.npz", arr_0=noisy(cut))
    values, _ = measured(
        "evaluate", "made.npz", "--reference", "originals.npz", "--protocol", "fvq-released", "--extractor", network
    )

    def stored_as_jpeg(images):
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "jpeg")
            yield np.asarray(Image.open(buffer))

    features = [outputs(network, np.stack(list(stored_as_jpeg(images))))[0] for images in (noisy(cut), cut)]
    assert values["rfd_large_jpeg75"] == pytest.approx(frechet(*features), rel=1e-3)
    assert values["psnr_rgb"] == pytest.approx(psnr(noisy(cut), cut))
    assert "JPEG quality 75" in values["protocol_preparation"] and "rfd_large" not in values


# statistics


def test_statistics_are_a_reference(fvq, measured, extractor, archives, tmp_path):
    status, out, err = fvq("statistics", "reference.npz", "--extractor", extractor, "--out", "stats.npz")
    assert status == 0 and err == "" and "wrote stats.npz (12 images, 32 features of tiny)" in out
    features = outputs(extractor, REFERENCE)[0].numpy()
    with np.load("stats.npz") as archive:
        assert sorted(archive) == ["fvq", "mu", "sigma"]
        np.testing.assert_allclose(archive["mu"], features.mean(0), rtol=1e-6)
        np.testing.assert_allclose(archive["sigma"], np.cov(features, rowvar=False), rtol=1e-3, atol=1e-9)
        facts = json.loads(str(archive["fvq"][0]))
    assert facts["count"] == 12 and facts["protocol"]["extractor"] == "tiny"
    assert facts["protocol"]["images"] == "reference.npz" and facts["protocol"]["preparation"] == "as stored"
    images, _ = measured("evaluate", "samples.npz", "--reference", "reference.npz")
    assert facts["protocol"]["digest"] == images["protocol_reference_sha256"]
    values, out = measured("evaluate", "samples.npz", "--reference", "stats.npz")
    assert values["fd_tiny"] == images["fd_tiny"] and "9 against 12" in out
    assert "reference.npz" in json.loads((tmp_path / "stats.npz.provenance.json").read_text())["inputs"]


def test_statistics_refuse(fvq, refused, extractor, archives, tmp_path):
    command = ["statistics", "reference.npz", "--extractor", extractor, "--out", "stats.npz"]
    fvq(*command)
    before = (tmp_path / "stats.npz").read_bytes()
    assert "stats.npz: exists already; --force" in refused(*command)
    assert fvq(*command, "--force")[0] == 0 and (tmp_path / "stats.npz").read_bytes() == before
    assert "must end in .npz" in refused(*command[:-1], "stats.json")
    assert "fvq-released" in refused(*command, "--protocol", "fvq-released", status=2)
    np.savez(tmp_path / "one.npz", arr_0=REFERENCE[:1])
    assert "one.npz: at least 2 images are needed" in refused("statistics", "one.npz", *command[2:], "--force")
    assert "stats.npz: holds statistics" in refused("statistics", "stats.npz", *command[2:-1], "more.npz")
    others = save_classifier(tmp_path / "others.safetensors", name="others")
    evaluate = ["evaluate", "samples.npz", "--reference", "stats.npz", "--extractor"]
    assert "extractor is 'tiny', and 'others' here" in refused(*evaluate, others)
    tensors = {name: tensor + 1 for name, tensor in load_file(extractor).items()}
    save_like(extractor, tensors)
    assert "extractor_sha256 is" in refused(*evaluate, extractor)


def save_like(path, tensors):
    """Other weights of the classifier in a file."""
    classifier = ImageClassifier.load(path)
    classifier.load_state_dict(tensors)
    classifier.save(path)


# The cache, interruptions


def test_features_are_kept(measured, archives, monkeypatch, tmp_path):
    command = ["evaluate", "samples.npz", "--reference", "reference.npz"]
    values, _ = measured(*command, "--no-cache")
    assert not (tmp_path / "cache").exists()
    assert measured(*command)[0] == values and (tmp_path / "cache/features").is_dir()
    assert measured(*command, "--cache", "elsewhere")[0] == values and (tmp_path / "elsewhere/features").is_dir()
    monkeypatch.delenv("FVQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert measured(*command)[0] == values and (tmp_path / "xdg/fvq/features").is_dir()

    def add(self, images):
        raise AssertionError("computed again")

    monkeypatch.setattr(Collected, "add", add)
    assert measured(*command)[0] == values


def test_an_interrupted_evaluation_goes_on(fvq, measured, extractor, archives, monkeypatch, tmp_path):
    monkeypatch.setattr(segments, "_SHORTEST", 2)
    command = ["evaluate", "samples.npz", "--reference", "reference.npz", "--batch-size", 1]
    expected, _ = measured(*command, "--no-cache")
    add, seen = Collected.add, []

    def stopped_by(stop):
        seen.clear()

        def counted(self, images):
            seen.append(1)
            if len(seen) == 5:
                stop()
            add(self, images)

        monkeypatch.setattr(Collected, "add", counted)

    stopped_by(lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, out, err = fvq(*command, "--extractor", extractor, "--out", "later.json")
    assert status == 75 and out == "" and not (tmp_path / "later.json").exists()
    assert err == (
        "fvq: tiny of samples.npz: SIGTERM received; 2 of 5 segments are kept, the same command goes on from there\n"
    )

    def interrupt():
        raise KeyboardInterrupt

    stopped_by(interrupt)
    status, out, err = fvq(*command, "--extractor", extractor, "--out", "later.json")
    assert status == 130 and err == "fvq: interrupted\n" and len(seen) == 5
    stopped_by(lambda: None)
    assert measured(*command)[0] == expected and len(seen) == 9 + 12 - 4 - 4


# Comparison


def test_compare(fvq, measured, refused, archives, tmp_path):
    def figures(name, *options):
        measured("evaluate", "samples.npz", *options, "--reference", "reference.npz")
        (tmp_path / "m.json").rename(tmp_path / name)

    figures("a.json")
    figures("b.json", "--protocol", "torch-fidelity")
    np.savez(tmp_path / "samples.npz", arr_0=SAMPLES // 2)
    figures("c.json")
    status, out, err = fvq("evaluate", "--compare", "a.json", "c.json")
    assert status == 0 and err == "" and re.search(r"^ fd_tiny +\S+ +\S+ +[+-]\S+", out, re.MULTILINE)
    line = refused("evaluate", "--compare", "a.json", "b.json")
    assert "different protocols: protocol is 'adm' in a.json and 'torch-fidelity' in b.json" in line
    assert "gone.json: no such file" in refused("evaluate", "--compare", "a.json", "gone.json")
    assert "SAMPLES" in refused("evaluate", "samples.npz", "--compare", "a.json", "c.json", status=2)
    assert "--seed" in refused("evaluate", "--compare", "a.json", "c.json", "--seed", "0", status=2)
    assert "--compare" in refused("evaluate", "--compare", "a.json", status=2)


# What is refused


def test_help_has_an_example_and_describes_the_protocols(fvq):
    for command in ("evaluate", "statistics"):
        status, out, _ = fvq(command, "--help")
        assert status == 0 and f"fvq {command}" in out.split("Example:")[1]
        assert max(map(len, out.splitlines())) <= 80
    out = fvq("evaluate", "--help")[1]
    for name in get_args(ProtocolName):
        assert re.search(rf"^ {name}: ", out, re.MULTILINE)


def test_wrong_arguments(refused):
    def line(*arguments):
        return refused("evaluate", *arguments, status=2)

    both = ["s", "--reference", "r"]
    assert "SAMPLES" in line() and "--reference" in line("s")
    assert all(name in line(*both, "--protocol", "fid") for name in get_args(ProtocolName))
    assert "--distances" in line(*both, "--distances", "float32")
    assert "--crop: needs the --size" in line(*both, "--crop", "plain")
    for option in (["--size", 256], ["--size", 256, "--crop", "plain"]):
        assert "--size: is fixed by the protocol fvq-released" in line(*both, "--protocol", "fvq-released", *option)
    assert "--measure: is for reconstructions; --pairs" in line(*both, "--measure", "mse")
    for option in (["--kid"], ["--density-coverage"], ["--distances", "exact"]):
        assert f"{option[0]}: is for samples" in line(*both, "--pairs", *option)
        assert f"{option[0]}: is for samples" in line(*both, "--protocol", "fvq-released", *option)
        assert f"{option[0]}: is for samples" in line("t.safetensors", "--reference", "r", *option)
    for option in (["--density-coverage"], ["--distances", "float16"]):
        assert f"{option[0]}: is not in the protocol" in line(*both, "--protocol", "pytorch-fid", *option)


def test_bad_input_is_one_line(refused, extractor, archives, tmp_path):
    for name in ("empty", "mixed", "wide"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    for number, side in enumerate((SIZE, SIZE + 1, SIZE, SIZE)):
        Image.new("RGB", (side, side)).save(tmp_path / f"mixed/{number}.png")
    np.savez(tmp_path / "other_key.npz", images=SAMPLES)
    np.savez(tmp_path / "float.npz", arr_0=SAMPLES / 255.0)
    np.savez(tmp_path / "nchw.npz", arr_0=SAMPLES.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "single.npz", arr_0=SAMPLES[:1])
    np.savez(tmp_path / "large.npz", arr_0=SAMPLES.repeat(2, 1).repeat(2, 2))
    np.savez(tmp_path / "mu.npz", mu=np.zeros(32))
    np.savez(tmp_path / "adm.npz", arr_0=REFERENCE, mu=np.zeros(32), sigma=np.eye(32))
    np.savez(tmp_path / "pool3.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    write_table(tmp_path / "table.parquet", SAMPLES)
    for name in ("samples.npz", "table.parquet"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut.{name.split('.')[1]}").write_bytes(whole[: len(whole) // 2])
    whole = bytearray((tmp_path / "samples.npz").read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(whole)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "labels.parquet")

    def line(samples, reference="reference.npz", *options, network=extractor):
        command = ["evaluate", samples, "--reference", reference, "--extractor", network, "--out", "m.json"]
        return refused(*command, *options)

    assert "gone.npz: no such file" in line("gone.npz") and "gone: no such file" in line("samples.npz", "gone")
    assert "notes.txt: should be an npz archive" in line("notes.txt")
    assert "empty: holds no images" in line("empty") and "empty.tar: holds no images" in line("empty.tar")
    assert "labels.parquet: lacks the column image" in line("labels.parquet")
    assert "other_key.npz: lacks the array arr_0; its arrays: images" in line("other_key.npz")
    assert "float.npz: arr_0 is float64, and images must be uint8" in line("float.npz")
    assert "nchw.npz: arr_0 has the channels first" in line("samples.npz", "nchw.npz")
    assert "single.npz: at least 2 images are needed, and there is 1" in line("single.npz")
    assert "single.npz: at least 2 images" in line("single.npz", "single.npz", "--pairs")
    assert "large.npz and reference.npz: images differ in size, 32x32 and 16x16" in line("large.npz")
    assert "extractor tiny: made for images of 16x16" in line("large.npz", "large.npz")
    assert "mixed/1.png: has 17x17 pixels, and mixed/0.png has 16x16; --size" in line("mixed")
    for damaged in ("cut.npz", "cut.parquet", "flipped.npz"):
        assert damaged in line(damaged) and damaged in line("samples.npz", damaged)
        assert damaged in line(damaged, damaged, "--pairs")
    assert "mu.npz" in line("samples.npz", "mu.npz")
    assert "pool3.npz: statistics of 2048 features, and those of tiny are 32" in line("samples.npz", "pool3.npz")
    assert "adm.npz" in (text := line("adm.npz")) and "are SAMPLES and --reference swapped?" in text
    assert "9 images do not pair with the 12 of reference.npz" in line("samples.npz", "reference.npz", "--pairs")
    assert "pool3.npz: holds statistics (mu, sigma) and no images" in line("pool3.npz", "adm.npz", "--pairs")
    assert "vgg15: no such file, and no extractor of that name (known: inception-2015" in line(
        "samples.npz", network="vgg15"
    )
    assert "dinov2_vitl14_pretrain.pth" in line("samples.npz", network="dinov2-vit-l14")
    small_tokenizer().save(tmp_path / "tokenizer.safetensors")
    assert "holds a tokenizer, not an extractor" in line("samples.npz", network="tokenizer.safetensors")
    tensors = load_file(extractor)
    tensors["stages.0.0.weight"].fill_(torch.nan)
    save_like(extractor, tensors)
    assert "samples.npz: the extractor tiny gives values that are not finite" in line("samples.npz")
    assert not list(tmp_path.glob("m.json*"))


def test_a_protocol_keeps_its_preparation():
    with pytest.raises(UserError, match="--size: is fixed by the protocol fvq-released: centre crop of 256 pixels"):
        prepared_protocol("fvq-released", 128, None)
    assert prepared_protocol("fvq-released", None, None) is PROTOCOLS["fvq-released"]
    assert prepared_protocol("adm", 128, "plain").preparation == Preparation(128, "plain")


@pytest.mark.parametrize("command", [["--compare", "a.json", "b.json"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(measured, archives, tmp_path, command):
    if "--help" not in command:
        for name in command[1:]:
            measured("evaluate", "samples.npz", "--reference", "reference.npz")
            (tmp_path / "m.json").rename(tmp_path / name)
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "fvq.cli", "evaluate", *command], stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path
    )
    os.close(writing)
    assert ended.returncode == 1 and ended.stderr == b""


def test_what_is_there_stays_unless_forced(fvq, refused, extractor, archives, tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    command = ["evaluate", "samples.npz", "--reference", "reference.npz", "--extractor", extractor, "--out"]
    assert "mine.json: exists already; --force overwrites it" in refused(*command, "mine.json")
    assert "figures.csv: the output must end in .json" in refused(*command, "figures.csv")
    assert (tmp_path / "mine.json").read_text() == "mine"
    assert fvq(*command, "mine.json", "--force")[0] == 0
    assert json.loads((tmp_path / "mine.json").read_text())["samples"] == 9
