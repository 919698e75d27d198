"""The chain on photographs that stay where they are: manifests, random crops, further evaluation sets, other tokens."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from projects import Project

from fvq.evaluate.record import read_record

STUDY = "results/ci-originals"
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
ROW = "{{label: {label}, code_dim: 16, codebook_size: 64, ratio: 4, epochs: null, steps: 6, annealing: linear, {more}}}"
RESIDUAL = ROW.format(label="RQ", more="quantizer: residual, bridge: null, options: {depth: 2}")
MULTISCALE = ROW.format(
    label="VAR",
    more="quantizer: multiscale, options: {inner: fvq, scales: [1, 3, 8]}, "
    "bridge: {patch: 4, width: 16, depth: 1, heads: 2, layout: grid, block: vit}",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Tokenizers of three kinds trained on a class folder, evaluated on it and on a plain folder."""
    project = Project.copy(tmp_path_factory.mktemp("originals") / "checkout")
    (project.path / "dvc.lock").unlink(missing_ok=True)
    random = np.random.default_rng(0)
    for folder, count in (("photos/cats", 30), ("photos/dogs", 30), ("elsewhere", 8)):
        (project.path / "data" / folder).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
            size = (int(random.integers(40, 90)), int(random.integers(40, 90)))
            coarse.resize(size, Image.Resampling.BICUBIC).save(project.path / "data" / folder / f"{number}.jpg")
    Image.new("L", (50, 60), 128).save(project.path / "data/photos/cats/grey.jpg")
    (project.path / "data/photos/dogs/none.jpg").write_text("no image")
    elsewhere = (
        "{images: data/elsewhere, protocol: adm, image_size: 32, center_crop: plain, turn_by_exif: false, "
        "unreadable: stop}"
    )
    project.run(
        *(sys.executable, "-m", "pipeline.compose", "scale=ci", "dataset=originals"),
        *("prepare_data.train=data/photos", "prepare_data.image_size=32", "train_tokenizer.crop=[0.8,1.0]"),
        *(f"+evaluation_sets.elsewhere={elsewhere}", "evaluated_elsewhere=[fvq,rq]"),
        *(f"+rows.rq={RESIDUAL}", f"+rows.var={MULTISCALE}", "train_extractor.batch_size=16"),
        *("repeats.seeds=[1]", "repeats.rows=[vq]"),
    )
    project.commit("Photographs of one's own")
    project.run("dvc", "repro")
    return project


def test_every_row_is_trained_frozen_and_evaluated(finished: Project) -> None:
    tokens = {"vq": 64, "fvq": 64, "rq": 128, "var": 1 + 9 + 64}
    for row, count in tokens.items():
        figures = read_record(finished.path / STUDY / "evaluate_tokenizer" / row / "metrics.json").values
        images = int(figures["protocol_images"])
        assert images == 12
        assert figures["usage_tokens"] == images * count
        assert (figures["samples"], figures["protocol"]) == (12, "adm")
        assert figures["protocol_reference"] == "originals validation"
        check = json.loads((finished.path / STUDY / "freeze_codebook" / row / "check.json").read_text())
        assert (check["changed_tokens"], check["largest_difference"]) == (0, 0.0)
    table = (finished.path / "reports/tables/table_1.md").read_text()
    assert "| RQ | 8×8×2 | 64 | 16 |" in table
    assert "| VAR | 74 | 64 | 16 |" in table


def test_further_evaluation_sets_have_their_own_figures(finished: Project) -> None:
    for row in ("fvq", "rq"):
        folder = finished.path / STUDY / "evaluate_elsewhere" / row / "metrics"
        assert [path.name for path in folder.iterdir()] == ["elsewhere.json"]
        record = read_record(folder / "elsewhere.json")
        assert (record.values["samples"], record.protocol["protocol_reference"]) == (8, "elsewhere")
        assert record.figures["psnr_rgb"] > 0
    assert not (finished.path / STUDY / "evaluate_elsewhere" / "vq").exists()


def test_a_repeated_row_has_its_own_seed_and_the_same_protocol(finished: Project) -> None:
    first = read_record(finished.path / STUDY / "evaluate_tokenizer" / "vq" / "metrics.json")
    again = read_record(finished.path / STUDY / "evaluate_repeat" / "vq-1" / "metrics.json")
    assert (first.values["seed"], again.values["seed"]) == (0, 1)
    assert again.protocol == first.protocol
    assert again.figures["mse"] != first.figures["mse"]
    recorded = json.loads((finished.path / STUDY / "repeat_tokenizer" / "vq-1" / "provenance.json").read_text())
    assert (recorded["seed"], recorded["parameters"]["rows.vq"]["quantizer"]) == (1, "vq")
    assert "± " in (finished.path / "reports/tables/table_1.md").read_text()


def test_another_seed_retrains_no_row(finished: Project) -> None:
    path = finished.path / "params.yaml"
    before = path.read_text()
    path.write_text(before.replace("  seeds:\n  - 1\n", "  seeds:\n  - 1\n  - 2\n"))
    try:
        lines = finished.run("dvc", "repro").stdout.splitlines()
        ran = [line.split("'")[1] for line in lines if line.startswith("Running stage")]
        assert ran == ["list_further", "repeat_tokenizer@vq-2", "evaluate_repeat@vq-2", "render"]
    finally:
        path.write_text(before)
        for stage in ("repeat_tokenizer", "evaluate_repeat"):
            shutil.rmtree(finished.path / STUDY / stage / "vq-2")
        finished.run("dvc", "repro")


def test_what_was_out_of_the_ordinary_was_told(finished: Project) -> None:
    (finished.path / STUDY / "prepare_data/train.parquet").unlink()
    told = finished.run(sys.executable, "-m", "pipeline.prepare_data").stdout
    assert "1 grey" in told
    assert "1 unreadable left out" in told
    finished.run("dvc", "checkout", "--force")
    assert finished.would_run() == []


def test_a_new_further_set_retrains_nothing(finished: Project) -> None:
    path = finished.path / "params.yaml"
    before = path.read_text()
    parameters = yaml.safe_load(before)
    parameters["evaluation_sets"]["elsewhere"]["center_crop"] = "adm"
    path.write_text(yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True))
    try:
        assert finished.would_run() == [
            "prepare_evaluation_set@elsewhere",
            "list_further",
            "evaluate_elsewhere@fvq",
            "evaluate_elsewhere@rq",
            "render",
        ]
    finally:
        path.write_text(before)


def test_two_processes_write_one_result(finished: Project) -> None:
    """Rounding differs from one process's result; everything that counts does not."""
    folder = finished.path / STUDY / "train_tokenizer" / "fvq"
    command = (sys.executable, "-m", "pipeline.train_tokenizer", "fvq")
    try:
        names = {path for path in Path(folder).rglob("*") if path.is_file()}
        assert finished.run(*command, FVQ_PROCESSES="2", **ON_CPU).stdout.count("FVQ: error") == 1
        assert {path for path in folder.rglob("*") if path.is_file()} == names
        failed = finished.run(*command, code=1, FVQ_PROCESSES="3", **ON_CPU)
        assert "train_tokenizer.batch_size: 32 images do not divide into 3 equal parts" in failed.stderr
        wrong = finished.run(*command, code=1, FVQ_PROCESSES="two")
        assert wrong.stderr.splitlines() == ["fvq: error: FVQ_PROCESSES: must be a number from 1, not two"]
        assert {path for path in folder.rglob("*") if path.is_file()} == names
    finally:
        finished.run("dvc", "checkout", "--force")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_to_two_processes_ends_with_its_status(finished: Project, number: int, status: int) -> None:
    """A scheduler's saves the state and asks for another run; a person's stops."""
    command = [sys.executable, "-m", "pipeline.train_tokenizer", "fvq"]
    environment = {**finished.environment, **ON_CPU, "FVQ_PROCESSES": "2", "FVQ_CHECKPOINT_EVERY": "1"}
    try:
        process = subprocess.Popen(command, cwd=finished.path, env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not list((finished.path / "runs").rglob("step-*.sha256")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        told = process.communicate(timeout=120)[1]
        assert process.returncode == status, told
        assert told.count("received; saved after step") == (1 if status == 75 else 0)
        assert finished.run(*command, FVQ_PROCESSES="2", **ON_CPU).stdout.count("FVQ: error") == 1
        assert not list((finished.path / "runs").rglob("step-*"))
    finally:
        finished.run("dvc", "checkout", "--force")
