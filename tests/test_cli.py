"""The command line: what it writes and prints, against the library; bad input as one line; what was there stays."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fvq.data.crops import center_crop_adm
from fvq.data.image_table import to_model_range, to_uint8, write_image_table
from fvq.data.records import ImageRecord
from fvq.generate import LlamaGen, LlamaGenConfig, class_labels, parts
from fvq.tokenizer import Architecture, Tokenizer, TokenizerConfig

SIZE, CLASSES = 16, ["ant", "bee", "cat"]
GRID = (4, 4)
TILE, GAP = 128, 4  # of the pictures: images of 16 pixels are enlarged eightfold


def random_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def small_tokenizer(codebook_size: int = 32) -> Tokenizer:
    architecture = Architecture(
        channels=8, multipliers=(1, 1, 1), residual_blocks=1, attention=False, latent_channels=8, pixel_shuffle=1
    )
    config = TokenizerConfig(
        image_size=SIZE,
        architecture=architecture,
        quantizer="vq",
        codebook_size=codebook_size,
        code_dim=4,
        commitment_weight=0.25,
        bridge=None,
        frozen=True,
    )
    tokenizer = Tokenizer(config).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook)  # the initial codes lie too close to tell images apart
    return tokenizer


def small_generator(**changes) -> LlamaGen:
    dropouts = {"class_dropout": 0.1, "token_dropout": 0.0, "residual_dropout": 0.0, "feedforward_dropout": 0.0}
    shape = {"vocabulary_size": 32, "classes": 3, "grid": GRID, "width": 16, "depth": 1, "heads": 2}
    model = LlamaGen(LlamaGenConfig(**{**shape, **dropouts, "feedforward_multiple_of": 16, **changes})).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model


def write_table(path, images, classes=CLASSES) -> None:
    records = [ImageRecord(image, index % len(classes), str(index)) for index, image in enumerate(images)]
    write_image_table(path, records, dataset="tiny", classes=classes, image_size=SIZE, split="validation")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a tokenizer and a generator."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    small_tokenizer().save(folder / "tokenizer.safetensors")
    small_generator().save(folder / "generator.safetensors")
    return folder


@pytest.fixture
def refused(fvq):
    """Runs a command that must fail, and returns its one line."""

    def run(*arguments, status=1):
        found, out, err = fvq(*arguments)
        assert found == status and out == "", (found, out, err)
        assert err.startswith("fvq: error: ") and err.count("\n") == 1 and err.endswith("\n")
        return err

    return run


def tiles(path, rows: int, columns: int) -> np.ndarray:
    """The images of a picture in their own size, uint8 (rows, columns, 16, 16, 3)."""
    picture = np.asarray(Image.open(path))
    left, top = (
        side - GAP - count * (TILE + GAP) for side, count in zip(picture.shape[1::-1], (columns, rows), strict=True)
    )
    step = TILE // SIZE
    return np.array(
        [
            [
                picture[top + GAP + row * (TILE + GAP) :, left + GAP + column * (TILE + GAP) :][:TILE:step, :TILE:step]
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


# The commands themselves


def test_help_is_quick_and_fits_a_terminal():
    code = "import sys, fvq.cli\ntry: fvq.cli.main([])\nfinally: assert not {'torch', 'numpy'} & set(sys.modules)"
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    for command in ("reconstruct", "sample", "evaluate", "import-checkpoint", "export-checkpoint", "doctor"):
        assert re.search(rf"^\W*{command} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "command", ["reconstruct", "sample", "evaluate", "import-checkpoint", "export-checkpoint", "doctor"]
)
def test_every_command_has_help_with_an_example(fvq, command):
    status, out, _ = fvq(command, "--help")
    assert status == 0 and f"fvq {command}" in out.split("Example:")[1]


def test_wrong_arguments_are_one_line_without_a_traceback():
    command = [sys.executable, "-m", "fvq.cli", "sample", "x", "--out", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fvq: error: ") and done.stderr.count("\n") == 1
    assert "TOKENIZER" in done.stderr and "fvq sample --help" in done.stderr


def test_other_wrong_arguments(refused):
    assert "'upscale'" in refused("upscale", status=2)
    assert "--sharp" in refused("doctor", "--sharp", status=2)
    assert "--count" in refused("sample", "g", "t", "--out", "x.png", "--count", "0", status=2)
    assert "--count" in refused("sample", "g", "t", "--out", "x.png", "--count", "many", status=2)
    assert "--out" in refused("sample", "g", "t", status=2)
    assert "--row" in refused("sample", "g", "t", "--row", "fvq", "--out", "x.png", status=2)
    assert "--labels" in refused("sample", "--class", "1", "--labels", "uniform", "--out", "x.png", status=2)
    assert "'balanced', 'uniform'" in refused("sample", "--labels", "all", "--out", "x.png", status=2)
    assert "--precision" in refused("sample", "--precision", "float16", "--out", "x.png", status=2)


# reconstruct


@pytest.fixture
def photos(tmp_path):
    """Five images of different sizes, some in subfolders, beside other files."""
    rng = np.random.default_rng(5)
    for number, (name, (width, height)) in enumerate(
        {"a.png": (16, 16), "b.jpg": (50, 33), "sub/c.PNG": (20, 70), "sub/d.webp": (16, 40), "e.bmp": (64, 64)}.items()
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (4 + number, 4 + number, 3), np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@torch.no_grad()
def test_reconstruct(fvq, weights, photos):
    tokenizer = Tokenizer.load(weights / "tokenizer.safetensors")
    status, out, err = fvq("reconstruct", weights / "tokenizer.safetensors", photos, "--out", "out/grid.png")
    assert status == 0 and err == ""
    names = ["a.png", "b.jpg", "e.bmp", "sub/c.PNG", "sub/d.webp"]
    original = np.stack([center_crop_adm(Image.open(photos / name).convert("RGB"), SIZE) for name in names])
    indices = tokenizer.encode(to_model_range(torch.from_numpy(original).permute(0, 3, 1, 2)))
    reconstruction = to_uint8(tokenizer.decode(indices)).permute(0, 2, 3, 1).numpy()
    difference = original.astype(float) - reconstruction
    psnr = 10 * np.log10(255**2 / np.square(difference).mean((1, 2, 3)))
    assert f"PSNR {psnr.mean():.2f} dB" in out and f"{psnr.min():.2f} to {psnr.max():.2f}" in out
    assert f"{len(indices.unique())} of 32 codes" in out and "80 tokens" in out
    assert "wrote out/grid.png (5 images)" in out
    found = tiles("out/grid.png", 3, 5)
    assert np.array_equal(found[0], original) and np.array_equal(found[1], reconstruction)
    assert np.array_equal(found[2], np.minimum(4 * np.abs(difference), 255))


def test_reconstruct_shows_a_few_of_many(fvq, weights, photos, tmp_path):
    for value in range(20):
        Image.new("RGB", (SIZE, SIZE), (10 * value, 0, 0)).save(photos / f"z{value:02d}.png")
    folder = [weights / "tokenizer.safetensors", *sorted(photos.glob("z*"))]
    _, out, _ = fvq("reconstruct", *folder, "--out", "grid.png", "--shown", 11)
    assert "20 images" in out and "320 tokens" in out and "11 of the 20 images" in out
    found = tiles("grid.png", 6, 8)
    red = [*found[0, :, 0, 0, 0], *found[3, :3, 0, 0, 0]]
    assert red[0] == 0 and red[-1] == 190 and red == sorted(set(red))
    assert (found[3:, 3:] == 255).all()


def test_reconstruct_refuses(refused, weights, photos, tmp_path):
    tokenizer = weights / "tokenizer.safetensors"
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes((photos / "e.bmp").read_bytes()[:1000])
    assert "nothing.safetensors" in refused("reconstruct", "nothing.safetensors", photos, "--out", "x.png")
    assert "holds a generator" in refused("reconstruct", weights / "generator.safetensors", photos, "--out", "x.png")
    assert "notes.txt" in refused("reconstruct", photos / "notes.txt", photos, "--out", "x.png")
    assert "gone.png" in refused("reconstruct", tokenizer, photos / "a.png", "gone.png", "--out", "x.png")
    assert "holds no images" in refused("reconstruct", tokenizer, "empty", "--out", "x.png")
    assert "cut.png" in refused("reconstruct", tokenizer, "cut.png", "--out", "x.png")
    assert "notes.txt" in refused("reconstruct", tokenizer, photos / "notes.txt", "--out", "x.png")
    assert "x.tiff" in refused("reconstruct", tokenizer, photos, "--out", "x.tiff")
    assert "cut.png" in refused("reconstruct", tokenizer, photos, "--out", "cut.png/x.png")
    assert not (tmp_path / "x.png").exists()


# sample


def library_samples(weights, labels, **changes):
    """The same images through the library."""
    model = LlamaGen.load(weights / "generator.safetensors")
    settings = {"cfg_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    tokens = model.sample(torch.as_tensor(labels), **{**settings, **changes})
    images = Tokenizer.load(weights / "tokenizer.safetensors").decode(tokens)
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


@pytest.fixture
def sampled(fvq, weights):
    """Runs ``fvq sample`` into an archive: its images and labels."""

    def run(*arguments):
        files = weights / "generator.safetensors", weights / "tokenizer.safetensors"
        status, _, err = fvq("sample", *files, "--out", "s.npz", "--force", *arguments)
        assert status == 0 and err == ""
        with np.load("s.npz") as archive:
            assert sorted(archive) == ["arr_0", "arr_1"] and archive["arr_1"].dtype == np.int64
            return archive["arr_0"], archive["arr_1"]

    return run


def test_sample_archive(sampled, weights, tmp_path):
    images, labels = sampled("--count", 7, "--batch-size", 3)
    assert images.dtype == np.uint8 and labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert np.array_equal(images, library_samples(weights, labels))
    settings = {"cfg_scale": 2.5, "cfg_start": 3, "temperature": 0.7, "top_k": 9, "top_p": 0.8, "seed": 4}
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    guided, labels = sampled("--class", 2, "--count", 4, *options)
    assert labels.tolist() == [2] * 4
    assert np.array_equal(guided, library_samples(weights, labels, **settings))
    assert not np.array_equal(guided, library_samples(weights, labels))
    record = json.loads((tmp_path / "s.npz.provenance.json").read_text())
    assert record["seed"] == 4 and record["parameters"]["top_k"] == 9 and len(record["inputs"]) == 2
    assert record["parameters"]["cfg_start"] == 3 and record["parameters"]["class"] == "class 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz", "s.npz.provenance.json"]


def test_sample_archive_of_drawn_classes(sampled, weights, tmp_path):
    images, labels = sampled("--count", 20, "--labels", "uniform", "--seed", 3)
    assert np.array_equal(labels, class_labels(20, 3, "uniform", 3)) and labels.tolist() != [0, 1, 2] * 6 + [0, 1]
    assert np.array_equal(images, library_samples(weights, labels, seed=3))
    record = json.loads((tmp_path / "s.npz.provenance.json").read_text())["parameters"]
    assert record["labels"] == "uniform" and record["precision"] == "float32"


def test_sample_in_bfloat16(sampled, weights, tmp_path):
    images, labels = sampled("--count", 64, "--precision", "bfloat16")
    model = LlamaGen.load(weights / "generator.safetensors").to(torch.bfloat16)
    tokens = model.sample(torch.from_numpy(labels), cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, seed=0)
    decoded = to_uint8(Tokenizer.load(weights / "tokenizer.safetensors").decode(tokens)).permute(0, 2, 3, 1)
    assert np.array_equal(images, decoded.numpy())
    assert not np.array_equal(images, library_samples(weights, labels))
    assert json.loads((tmp_path / "s.npz.provenance.json").read_text())["parameters"]["precision"] == "bfloat16"


def test_sample_picture(fvq, weights):
    files = weights / "generator.safetensors", weights / "tokenizer.safetensors"
    status, out, _ = fvq("sample", *files, "--count", 6, "--out", "turn.png")
    assert status == 0 and "wrote turn.png (6 images, all 3 classes in turn)" in out
    expected = library_samples(weights, [0, 1, 2] * 2).reshape(2, 3, SIZE, SIZE, 3)
    assert np.array_equal(tiles("turn.png", 2, 3), expected)
    fvq("sample", *files, "--count", 4, "--class", "1", "--out", "one.png")
    assert np.array_equal(tiles("one.png", 2, 2), library_samples(weights, [1] * 4).reshape(2, 2, SIZE, SIZE, 3))
    status, out, _ = fvq("sample", *files, "--count", 4, "--labels", "uniform", "--out", "drawn.png")
    assert status == 0 and "wrote drawn.png (4 images, any of 3 classes)" in out
    expected = library_samples(weights, class_labels(4, 3, "uniform", 0)).reshape(2, 2, SIZE, SIZE, 3)
    assert np.array_equal(tiles("drawn.png", 2, 2), expected)


@pytest.fixture
def study(weights, tmp_path):
    """The default study in the command's folder; trains its generators by name."""
    params = tmp_path / "params.yaml"
    params.write_bytes((Path(__file__).parents[1] / "params.yaml").read_bytes())
    results = tmp_path / "results" / yaml.safe_load(params.read_text())["study"]

    def train(name, seed):
        torch.manual_seed(seed)
        small_generator().save(results / "train_generator" / name / "generator.safetensors")
        small_tokenizer().save(results / "freeze_codebook" / name / "tokenizer.safetensors")
        return results / "train_generator" / name, results / "freeze_codebook" / name

    return train


def test_sample_takes_the_last_generator_of_the_study(fvq, study):
    study("vq", 1)
    for name, others in (("vq", "\n"), ("fvq", "; --row takes another: vq\n")):
        folders = study(name, 2)
        files = folders[0] / "generator.safetensors", folders[1] / "tokenizer.safetensors"
        status, out, err = fvq("sample", "--class", 2, "--count", 16, "--out", f"{name}.png")
        assert status == 0 and err == "" and f"generator {name} of the study smoke-photos{others}" in out
        fvq("sample", *files, "--class", 2, "--count", 16, "--out", "named.png", "--force")
        assert Path(f"{name}.png").read_bytes() == Path("named.png").read_bytes()
    status, out, _ = fvq("sample", "--row", "vq", "--count", 3, "--out", "vq.npz")
    assert status == 0 and "generator vq of the study smoke-photos; --row takes another: fvq\n" in out
    record = json.loads(Path("vq.npz.provenance.json").read_text())
    assert record["row"] == "vq" and all("/vq/" in name for name in record["inputs"])


def test_sample_without_a_trained_study(refused, study, tmp_path):
    out = ["--count", "2", "--out", "x.png"]
    assert "results/smoke-photos: no generator is trained yet (in the study: vq, fvq)" in refused("sample", *out)
    study("vq", 1)
    assert "--row: fvq is not trained yet in results/smoke-photos; there are vq" in refused(
        "sample", "--row", "fvq", *out
    )
    assert "has no generator linear; there are vq, fvq" in refused("sample", "--row", "linear", *out)
    assert "class 207; the generator has 0 to 2" in refused("sample", "--class", "207", *out)
    (tmp_path / "params.yaml").write_text("study: [")
    assert "params.yaml: not valid YAML" in refused("sample", *out)
    (tmp_path / "params.yaml").unlink()
    assert "params.yaml: no such file" in refused("sample", *out) and not (tmp_path / "x.png").exists()


def test_sample_knows_classes_by_name(fvq, weights, tmp_path):
    write_table(tmp_path / "table.parquet", random_images(3, 0))
    study = tmp_path / "study/results/train_generator/fvq"
    study.mkdir(parents=True)
    generator = study / "generator.safetensors"
    generator.write_bytes((weights / "generator.safetensors").read_bytes())
    (tmp_path / "table.parquet").rename(tmp_path / "study/results/tokens.parquet")
    # Paths in a record start in the folder that the pipeline ran in, not in the one that the command runs in.
    record = {
        "inputs": {"params.yaml": "…", "results/tokens.parquet": "…"},
        "outputs": {"results/train_generator/fvq/generator.safetensors": "…"},
    }
    (study / "provenance.json").write_text(json.dumps(record))
    for chosen in (
        [generator],
        ["study/results/../results/train_generator/fvq/generator.safetensors"],
        [weights / "generator.safetensors", "--names", "study/results/tokens.parquet"],
        [weights / "generator.safetensors", "--names", "study/results"],
    ):
        status, out, _ = fvq(
            "sample", chosen[0], weights / "tokenizer.safetensors", *chosen[1:], "--class", "cat", "--out", "s.npz",
            "--force", "--count", 2,
        )  # fmt: skip
        assert status == 0 and "class 2, cat" in out
        assert np.load("s.npz")["arr_1"].tolist() == [2, 2]


def test_sample_refuses(refused, weights, tmp_path):
    files = weights / "generator.safetensors", weights / "tokenizer.safetensors"
    write_table(tmp_path / "two.parquet", random_images(2, 0), classes=["ant", "bee"])
    write_table(tmp_path / "three.parquet", random_images(2, 0))
    (tmp_path / "empty").mkdir()
    small_tokenizer(64).save(tmp_path / "other.safetensors")
    small_generator(class_dropout=0.0).save(tmp_path / "unguided.safetensors")
    small_tokenizer().save(tmp_path / "unfrozen.safetensors")
    sha256 = hashlib.sha256(files[1].read_bytes()).hexdigest()
    small_generator(tokenizer_sha256=sha256).save(tmp_path / "paired.safetensors")
    out = ["--out", "x.png"]
    assert "gone.safetensors" in refused("sample", "gone.safetensors", files[1], *out)
    assert "holds a tokenizer" in refused("sample", files[1], files[1], *out)
    assert "4×4 tokens of 32 codes, and other.safetensors has 4×4 of 64" in refused(
        "sample", files[0], "other.safetensors", *out
    )
    assert "freeze_codebook" in refused("sample", "paired.safetensors", "unfrozen.safetensors", *out)
    assert "0 to 2" in refused("sample", *files, "--class", "3", *out)
    assert "--names" in refused("sample", *files, "--class", "cat", *out)
    assert "-1" in refused("sample", *files, "--class", "-1", *out)
    assert "ant, bee, cat" in refused("sample", *files, "--class", "cow", "--names", "three.parquet", *out)
    assert "names 2 classes" in refused("sample", *files, "--class", "ant", "--names", "two.parquet", *out)
    assert "empty" in refused("sample", *files, "--class", "ant", "--names", "empty", *out)
    assert "gone.parquet" in refused("sample", *files, "--class", "ant", "--names", "gone.parquet", *out)
    assert "other.safetensors" in refused("sample", *files, "--class", "ant", "--names", "other.safetensors", *out)
    for outside in ("1.5", "0", "-0.1", "nan"):
        assert "fvq sample: top_p: should be" in refused("sample", *files, "--top-p", outside, *out)
    assert "cfg_start" in refused("sample", *files, "--cfg-start", "-1", *out)
    assert "cfg_scale" in refused("sample", *files, "--cfg-scale", "0.5", *out)
    assert "class_dropout" in refused("sample", "unguided.safetensors", files[1], "--cfg-scale", "2", *out)
    assert "x.jpg" in refused("sample", *files, "--out", "x.jpg")
    assert ".npz" in refused("sample", *files, "--count", "5000", *out)
    assert not list(tmp_path.glob("x*"))


def test_what_is_there_stays_unless_forced(fvq, refused, weights, photos, tmp_path):
    files = weights / "generator.safetensors", weights / "tokenizer.safetensors"
    for name in ("mine.npz", "mine.png"):
        (tmp_path / name).write_text("mine")
    for command in (
        ("sample", *files, "--out", "mine.npz"),
        ("sample", *files, "--out", "mine.png"),
        ("reconstruct", files[1], photos, "--out", "mine.png"),
    ):
        assert "--force" in refused(*command)
        written = tmp_path / command[-1]
        assert written.read_text() == "mine"
        assert fvq(*command, "--force")[0] == 0
        assert written.read_bytes() != b"mine"
        written.write_text("mine")


def test_interrupted_sampling_goes_on(fvq, sampled, monkeypatch, tmp_path, weights):
    expected, _ = sampled("--count", 6)
    draw, drawn = parts.Decoder.sample, []
    monkeypatch.setattr(parts, "_PART", 2)

    def stopped_by(stop):
        def sample(self, labels, seed, numbers, *more):
            if len(drawn) == 2:
                stop()
            drawn.append(numbers.tolist())
            return draw(self, labels, seed, numbers, *more)

        monkeypatch.setattr(parts.Decoder, "sample", sample)

    def interrupt():
        raise KeyboardInterrupt

    def signalled():
        os.kill(os.getpid(), signal.SIGTERM)

    command = ["sample", weights / "generator.safetensors", weights / "tokenizer.safetensors", "--count", 6]
    command += ["--out", "later.npz"]
    stopped_by(interrupt)
    status, _, err = fvq(*command, "--batch-size", 2)
    assert status == 130 and err == "fvq: interrupted\n" and drawn == [[0, 1], [2, 3]]
    assert not (tmp_path / "later.npz").exists() and len(list(tmp_path.glob("later.npz.*.parts/*"))) == 2

    drawn.clear()
    stopped_by(signalled)
    # Another seed does not go on from these.
    status, _, err = fvq(*command, "--batch-size", 2, "--seed", 1)
    assert status == 75 and drawn == [[0, 1], [2, 3], [4, 5]]
    assert err.startswith("fvq: sampling: SIGTERM received; 6 of 6 images are drawn") and err.count("\n") == 1
    assert fvq(*command, "--seed", 1)[0] == 0 and len(drawn) == 3
    assert fvq(*command, "--force", "--batch-size", 7)[0] == 0 and drawn[3:] == [[4, 5]]
    assert np.array_equal(np.load("later.npz")["arr_0"], expected)
    assert not list(tmp_path.glob("*.parts"))


# doctor


def test_doctor(fvq, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("FVQ_WEIGHTS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    status, out, err = fvq("doctor")
    lines = {line[8:24].strip(): line for line in out.splitlines()}
    assert status == 0 and err == ""
    assert lines["torch"].startswith("ok") and torch.__version__ in lines["torch"]
    for name in ("git", "dvc", "snakemake"):
        assert lines[name].startswith("note") and "not found" in lines[name]
    for name, file in (("inception-2015", "weights-inception-2015"), ("vgg16", "vgg16-"), ("alexnet", "alexnet-owt")):
        assert lines[name].startswith("note") and file in lines[name]
        assert str(tmp_path / "torch/hub/checkpoints") in lines[name]
    assert lines["params.yaml"].startswith("note")

    # What would stop a run is broken: a wrong file of weights, parameters that do not parse.
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"other weights")
    (tmp_path / "params.yaml").write_text("codebook_sise: 3")
    for name in ("git", "dvc"):
        (tmp_path / name).write_text("#!/bin/sh")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("FVQ_WEIGHTS", str(tmp_path))
    status, out, _ = fvq("doctor")
    lines = {line[8:24].strip(): line for line in out.splitlines()}
    assert status == 1 and out.splitlines()[-1] == "broken: alexnet, params.yaml"
    assert lines["alexnet"].startswith("broken") and "SHA-256" in lines["alexnet"]
    assert lines["git"].startswith("ok") and lines["dvc"].startswith("ok") and lines["snakemake"].startswith("note")


def test_doctor_survives_without_torch(fvq, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, _ = fvq("doctor")
    assert status == 1 and re.search(r"^broken +torch ", out, re.MULTILINE)
    assert out.splitlines()[-1] == "broken: torch"
