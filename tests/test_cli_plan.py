"""``fvq plan``: what it prints and writes, and bad input as one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fvq.cli.app import main
from fvq.data.image_table import write_image_table
from fvq.data.records import ImageRecord
from fvq.plan import measure
from fvq.runtime.text import significant

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with the default study's parameters, cut to one tokenizer and one small generator, without LPIPS."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["rows"] = {"fvq": content["rows"]["fvq"]}
    content["generators"] = {"fvq": {**content["generators"]["fvq"], "tokenizer": "fvq", "depth": 1}}
    content["swept_generators"], content["cached_rows"] = {"fvq": False}, ["fvq"]
    content["sample"]["cfg_scale_of"] = {"fvq": None}
    content["evaluate_tokenizer"]["measures"] = ["mse", "psnr_rgb", "ssim_g11"]
    content["repeats"]["rows"], content["mapped_rows"] = [], ["fvq"]
    content["small_experiments"]["sizes_row"] = "fvq"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *arguments])
    output = capsys.readouterr()
    return exit_.value.code or 0, output.out, output.err


def exponent(record):
    """Its multiply-adds as they are printed."""
    mantissa, power = f"{record['multiply_adds']:.2e}".split("e+")
    return f"{mantissa}e{int(power)}"


def test_tables_fit_a_terminal_and_json_holds_the_same(study, capsys):
    status, out, err = run(capsys, "--json", "plan.json", "--utilization", "0.00005")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for word in (
        "Training",
        "Memory of a GPU",
        "Storage",
        "All counted",
        "[generators]",
        "A100",
        "0.005 % of its peak",
    ):
        assert word in words
    plan = json.loads(Path("plan.json").read_text())
    assert plan["format"] == "fvq.plan"
    assert [(row["row"], row["kind"]) for row in plan["rows"]] == [("fvq", "tokenizer"), ("fvq", "generator")]
    assert all(isinstance(value, str | int | float) for row in plan["rows"] for value in row.values())
    row = plan["rows"][0]
    total = plan["totals"][-1]
    assert all(f"note: {note}" in words for note in plan["notes"]) and len(plan["notes"]) == 2
    # GPUs of the same peaks share a figure.
    a100, h100 = (significant(total[f"hours_{gpu}"]) for gpu in ("a100", "h100"))
    hours = f"{a100} A100 hours or {h100} H100/H200 hours at 0.005 % utilisation"
    storage = significant(plan["storage_total"] / 1e6)
    assert f"total: {exponent(total)} multiply-adds; {hours}; {storage} MB note:" in words
    assert f" {exponent(row)} " in words
    before = Path("plan.json").read_bytes()
    status, _, err = run(capsys, "--json", "plan.json")
    assert (status, err) == (1, "fvq: error: plan.json: exists already; --force overwrites it\n")
    assert Path("plan.json").read_bytes() == before


def test_json_alone_of_one_gpu(study, capsys):
    status, out, _ = run(capsys, "--json", "-", "--gpu", "h200", "--images", "640")
    plan = json.loads(out)
    assert status == 0
    assert plan["training_images"] == 640
    hours = {key for row in plan["rows"] for key in row if key.startswith(("hours", "largest"))}
    assert hours == {"hours_h200", "largest_batch_h200"}


def test_prepared_images_are_counted(study, capsys):
    """Before what the parameters say, and the validation part with them; --images goes before the training images."""
    prepared = Path("results", yaml.safe_load(Path("params.yaml").read_text())["study"], "prepare_data")
    image = np.zeros((32, 32, 3), np.uint8)
    for split, count in (("train", 40), ("validation", 3)):
        records = (ImageRecord(image, number % 2, f"{number}") for number in range(count))
        write_image_table(
            prepared / f"{split}.parquet",
            records,
            dataset="photos",
            classes=["ant", "bee"],
            image_size=32,
            split=split,
        )
    plan = json.loads(run(capsys, "--row", "fvq", "--json", "-", "--images", "64")[1])
    assert (plan["training_images"], plan["validation_images"]) == (64, 3)
    assert plan["rows"][0]["storage_images"] == 2 * 3 * 32 * 32 * 3  # the originals, too
    (prepared / "train.parquet").write_bytes(b"PAR1")
    status, _, err = run(capsys)
    assert status == 1
    assert "train.parquet" in err and err.count("\n") == 1


def test_measured_here(study, capsys, monkeypatch):
    """Real steps of few images; the plan's own steps tell the share of a matrix product's rate that they reach."""
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["train_tokenizer"]["batch_size"] = 2
    content["recipes"]["small"]["batch_size"] = content["generators"]["fvq"]["recipe"]["batch_size"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(measure, "_WARM_UP", 1)
    monkeypatch.setattr(measure, "_STEPS", (1, 2))
    status, out, err = run(capsys, "--measure", "--json", "-")
    assert (status, err) == (0, "timing steps of tokenizer fvq\ntiming steps of generator fvq\n")
    plan = json.loads(out)
    for measured, row in zip(plan["measurements"], plan["rows"], strict=True):
        assert (measured["row"], measured["kind"], measured["batch_size"]) == ("fvq", row["kind"], 2)
        work = 2 * row["step_multiply_adds_per_image"] + row["step_multiply_adds_constant"]
        assert measured["flops_per_second"] * measured["seconds_per_step"] == pytest.approx(2 * work)
        assert measured["hours"] * 3600 == pytest.approx(measured["seconds_per_step"] * row["steps"], rel=1e-6)
        assert measured["utilization"] > 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--row", "vqq"), "--row: there is no row vqq in the study smoke-photos; there are fvq"),
        (("--utilization", "0"), "--utilization: must be above 0 and at most 1, not 0"),
        (("--utilization", "1.5"), "--utilization: must be above 0 and at most 1, not 1.5"),
        (("other.yaml",), "other.yaml: no such file (commands of the pipeline run in the repository's root)"),
        (("--json", "plan.txt"), "plan.txt: the output must end in .json"),
        (("--images", "5"), "batch_size: 32 samples are asked for at once, and there are 5"),
    ],
)
def test_bad_input_is_one_line(study, capsys, arguments, line):
    assert run(capsys, *arguments) == (1, "", f"fvq: error: {line}\n")


@pytest.mark.parametrize("content", ["", "- 1\n", "study: x\n", "a: [", "\x00"])
def test_files_that_are_no_parameters(study, capsys, content):
    Path("bad.yaml").write_text(content)
    status, out, err = run(capsys, "bad.yaml")
    assert (status, out) == (1, "")
    assert err.startswith("fvq: error: bad.yaml: ") and err.count("\n") == 1


def test_unknown_gpus_and_data(study, capsys):
    status, _, err = run(capsys, "--gpu", "v100")
    assert status == 2
    assert "v100" in err and "h200" in err and err.count("\n") == 1
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["prepare_data"] = {"source": "folder", "folder": "photos", "image_size": 32, "validation_fraction": 0.2}
    content["dataset"] = "folder"
    Path("params.yaml").write_text(yaml.safe_dump(content))
    status, _, err = run(capsys)
    assert status == 1
    assert err.startswith("fvq: error: --images: give the number of training images") and err.count("\n") == 1


def test_help_comes_without_torch():
    code = """
import sys
from fvq.cli.app import main
try:
    main(["plan", "--help"])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.stdout.rstrip().endswith("False")
    assert "--utilization" in done.stdout
