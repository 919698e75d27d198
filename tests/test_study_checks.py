"""What a report refuses: missing outputs, figures changed by hand, records of other runs, other settings and chains."""

import json
import shutil

import pytest
from test_study_fabricated import (
    fabricate,
    fabricate_elsewhere,
    fabricate_repeats,
    parameters,
    record_outputs,
    write_json,
)

from fvq.runtime.errors import UserError
from fvq.study import render_study
from fvq.study.results import read_study

REPEATS = {"seeds": [1, 2], "rows": ["fvq"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = fabricate(tmp_path_factory.mktemp("finished") / "smoke-photos")
    fabricate_repeats(folder, ["fvq"], [1, 2])
    fabricate_elsewhere(folder, ["fvq"])
    record_outputs(folder)
    return folder


@pytest.fixture
def results(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "smoke-photos")


def everything(**changes):
    elsewhere = {"evaluation_sets": {"coco": {}}, "evaluated_elsewhere": ["fvq"]}
    return parameters(repeats=REPEATS, **elsewhere, **changes)


def refusal(results, **changes):
    with pytest.raises(UserError) as caught:
        read_study(results, everything(**changes))
    text = str(caught.value)
    assert "\n" not in text
    return text


def change(path, **entries):
    write_json(path, json.loads(path.read_text()) | entries)


def test_what_was_left_alone_is_read(results):
    study = read_study(results, everything())
    assert set(study.rows[3].repeats) == {1, 2}
    assert set(study.rows[3].elsewhere) == {"coco"}


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("evaluate_tokenizer/linear/metrics.json", "evaluate_tokenizer@linear"),
        ("evaluate_generator/fvq_l/metrics.json", "evaluate_generator@fvq_l"),
        ("evaluate_repeat/fvq-2/metrics.json", "evaluate_repeat@fvq-2"),
        ("evaluate_elsewhere/fvq/metrics/coco.json", "evaluate_elsewhere@fvq"),
    ],
)
def test_a_missing_figure_names_the_stage_to_run(results, missing, stage):
    (results / missing).unlink()
    assert refusal(results) == f"{results / missing}: no such file; run {stage} first"


@pytest.mark.parametrize(
    "path",
    ["evaluate_tokenizer/fvq", "evaluate_repeat/fvq-1"],
)
def test_figures_changed_by_hand_are_refused(results, path):
    change(results / path / "metrics.json", samples_path="mine")
    text = refusal(results)
    assert text.startswith(f"{results / path / 'metrics.json'}: is not what {path.replace('/', '@')} wrote")


@pytest.mark.parametrize(
    "path",
    [
        "train_tokenizer/mlp5/history.csv",
        "small_experiments/sizes.csv",
        "small_experiments/trajectories.parquet",
        "map_codes/code_map.parquet",
        "evaluate_tokenizer/vq/reconstructions.npz",
        "evaluate_elsewhere/fvq/metrics/coco.json",
    ],
)
def test_no_file_of_figures_escapes(results, path):
    with (results / path).open("ab") as file:
        file.write(b" ")
    assert refusal(results).startswith(f"{results / path}: is not what ")


def test_a_figure_put_beside_the_recorded_ones_is_refused(results):
    folder = results / "evaluate_elsewhere" / "fvq" / "metrics"
    shutil.copy(folder / "coco.json", folder / "other.json")
    assert "other.json: is not what evaluate_elsewhere@fvq wrote" in refusal(results)


def test_a_copied_run_is_no_run_of_its_own(results):
    shutil.rmtree(results / "evaluate_repeat" / "fvq-2")
    shutil.copytree(results / "evaluate_repeat" / "fvq-1", results / "evaluate_repeat" / "fvq-2")
    assert "is the record of evaluate_repeat fvq-1, not of evaluate_repeat fvq-2" in refusal(results)


def test_a_repeat_has_the_seed_of_its_name(results):
    change(results / "repeat_tokenizer" / "fvq-2" / "provenance.json", seed=1)
    assert "its seed is 1, not that of repeat_tokenizer@fvq-2" in refusal(results)


def test_a_stage_that_read_another_file_must_run_again(results):
    name = "results/smoke-photos/train_tokenizer/fvq/history.csv"
    change(results / "evaluate_tokenizer" / "fvq" / "provenance.json", inputs={name: "0" * 64})
    assert f"evaluate_tokenizer@fvq read another {name} than train_tokenizer@fvq wrote last" in refusal(results)


@pytest.mark.parametrize(
    ("stage", "block", "message"),
    [
        ("train_tokenizer/fvq", "rows.fvq", "train_tokenizer@fvq ran with rows.fvq.steps 7, the study has 1000"),
        ("repeat_tokenizer/fvq-1", "rows.fvq", "repeat_tokenizer@fvq-1 ran with rows.fvq.steps 7, the study has 1000"),
    ],
)
def test_what_ran_with_other_settings_does_not_bear_the_rows_name(results, stage, block, message):
    change(results / stage / "provenance.json", parameters={block: {"steps": 7, "label": "another label"}})
    assert message in refusal(results)


def test_a_new_label_asks_for_no_training(results):
    change(results / "train_tokenizer" / "fvq" / "provenance.json", parameters={"rows.fvq": {"label": "before"}})
    assert read_study(results, everything()).rows[3].label == "FVQ"


def test_a_repeat_under_another_protocol_does_not_mix(results):
    change(results / "evaluate_repeat" / "fvq-2" / "metrics.json", protocol="pytorch-fid")
    record_outputs(results)
    assert "figures of different protocols do not mix" in refusal(results)


def test_a_refused_report_leaves_the_former_one(results, tmp_path):
    render_study(results, tmp_path / "reports", everything())
    before = (tmp_path / "reports" / "index.html").read_bytes()
    change(results / "evaluate_tokenizer" / "fvq" / "metrics.json", samples_path="mine")
    with pytest.raises(UserError):
        render_study(results, tmp_path / "reports", everything())
    assert (tmp_path / "reports" / "index.html").read_bytes() == before
