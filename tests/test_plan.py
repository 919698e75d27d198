"""The plan of a study: what its rows add up to, from its parameters."""

import copy
from pathlib import Path

import pytest
import yaml
from torch._subclasses.fake_tensor import DataDependentOutputException

from fvq.config import Parameters
from fvq.plan import compute
from fvq.plan.images import Images
from fvq.plan.plan import plan_study
from fvq.plan.records import as_records
from fvq.plan.tracing import Cost
from fvq.tokenizer import Tokenizer

CONTENT = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
ALONE = {"generators": {}, "swept_generators": {}, "sample__cfg_scale_of": {}, "cached_rows": []}
MEASURES = ["mse", "psnr_rgb", "ssim_g11"]
QUICK = {**ALONE, "evaluate_tokenizer__measures": MEASURES}
"""Without what takes long to trace."""
IMAGES = Images(train=16000, validation=4000, classes=10)


def parameters(**changes) -> Parameters:
    """The default study's, with generators of one block, and other values under dotted keys."""
    content = copy.deepcopy(CONTENT)
    for generator in content["generators"].values():
        generator["depth"] = 1
    for key, value in changes.items():
        *path, last = key.split("__")
        part = content
        for name in path:
            part = part[name]
        part[last] = value
    return Parameters.model_validate(content)


def work(records, kind, row):
    """Multiply-adds of one record."""
    (found,) = (record for record in records["work"] if (record["kind"], record["row"]) == (kind, row))
    return found["multiply_adds"]


def test_a_study_adds_up():
    study = parameters()
    plan = plan_study(study, IMAGES)
    records = as_records(plan, ["a100"], 0.4)
    assert [row["row"] for row in records["rows"]] == [*study.rows, *study.generators]
    totals = {record["kind"]: record for record in records["totals"]}
    assert totals["tokenizers"]["multiply_adds"] == sum(
        row["multiply_adds"] for row in records["rows"] if row["kind"] == "tokenizer"
    )
    parts = [record for kind, record in totals.items() if kind != "all"]
    assert totals["all"]["hours_a100"] == pytest.approx(sum(record["hours_a100"] for record in parts))
    assert records["storage_total"] == records["storage_references"] + sum(
        row["storage_total"] for row in records["rows"]
    )
    assert work(records, "sampling", "fvq") > work(records, "sampling", "vq") > 0  # one of them is swept
    # Samples, those of the sweep, and its own pass over the reference; the pass that all rows share is apart.
    network = work(records, "evaluation", "") / 4000
    sweep = study.sweep_guidance
    generator = [item.work.total for item in plan.items if (item.kind, item.row) == ("evaluation", "fvq")][-1]
    assert generator == pytest.approx(network * (1000 + len(sweep.scales) * sweep.count + 4000))
    assert any("memory traffic" in note and "lower bound" in note for note in records["notes"])


def test_steps_follow_from_epochs_and_the_batch():
    study = parameters(rows__vq__epochs=1.5, rows__vq__steps=None, **QUICK)
    row = plan_study(study, Images(100, 20, 10), ["vq"]).rows[0]
    batch = study.train_tokenizer.batch_size
    assert row.steps == round(1.5 * (100 // batch))
    assert row.training == (row.step.constant + row.step.per_image * batch) * row.steps


def test_parts_of_a_batch_map_the_codebook_each():
    study = parameters(train_tokenizer__accumulate=4, **QUICK)
    row = plan_study(study, IMAGES, ["fvq"]).rows[0]
    batch = study.train_tokenizer.batch_size
    assert row.training == (row.step.constant * 4 + row.step.per_image * batch) * row.steps


def test_the_discriminator_counts_from_its_start():
    def training_work(**changes):
        return plan_study(parameters(**changes, **QUICK), IMAGES, ["vq"]).rows[0].training.total

    without = training_work()
    late = training_work(train_tokenizer__adversarial_weight=0.1, train_tokenizer__adversarial_start=450)
    always = training_work(train_tokenizer__adversarial_weight=0.1)
    assert always > without
    assert late - without == pytest.approx((always - without) * 150 / 600, rel=1e-9)


def test_repeated_rows_cost_each_time():
    once = parameters(**QUICK)
    more = parameters(repeats={"seeds": [1, 2], "rows": ["fvq"]}, **QUICK)
    one, three = (plan_study(study, IMAGES, ["fvq"]) for study in (once, more))
    assert three.rows[0].runs == 3
    assert three.work("tokenizers").total == pytest.approx(3 * one.work("tokenizers").total)
    reference = one.items[-1].work.total
    assert three.work("evaluation").total - reference == pytest.approx(3 * (one.work("evaluation").total - reference))


def further(**changes):
    """A study with two further evaluation sets."""
    chosen = {"images": "x", "protocol": "adm", "image_size": 32, "center_crop": "adm", "turn_by_exif": False}
    sets = {name: {**chosen, "unreadable": "stop"} for name in ("coco", "own")}
    return parameters(evaluation_sets=sets, evaluated_elsewhere=["vq"], **QUICK, **changes)


def test_further_evaluation_sets_count_their_own_images():
    alone, more = parameters(**QUICK), further()
    images = Images(16000, 4000, 10, {"coco": 5000})
    one, three = (as_records(plan_study(study, images, ["vq"]), [], 0.4) for study in (alone, more))
    assert work(three, "evaluation", "vq") / work(one, "evaluation", "vq") == pytest.approx((4000 + 5000 + 4000) / 4000)
    assert work(three, "evaluation", "") / work(one, "evaluation", "") == pytest.approx(13 / 4)
    assert three["storage_references"] == 13000 * 64 * 4
    assert "assumed of evaluation sets not yet prepared: as many images as the validation part (own)" in three["notes"]
    known = plan_study(more, Images(16000, 4000, 10, {"coco": 5000, "own": 100}), ["vq"])
    elsewhere = plan_study(more, images, ["fvq"])
    assert not any("assumed" in note for plan in (known, elsewhere) for note in plan.notes)


def test_what_is_not_counted_is_said(monkeypatch):
    monkeypatch.setattr(compute, "_inception", Cost)
    (only,) = plan_study(parameters(**QUICK), IMAGES, ["vq"]).notes
    for words in ("cropping", "optimizers' arithmetic", "small experiments", "maps of codes", "extractor's training"):
        assert words in only
    published = parameters(train_extractor={"name": "inception-2015", "weights": None}, **QUICK)
    assert "extractor's training" not in plan_study(published, IMAGES, ["vq"]).notes[0]
    unknown = plan_study(parameters(**QUICK), Images(16000, None, 10), ["vq"])
    assert any("validation images are not known" in note for note in unknown.notes)
    assert not unknown.work("evaluation").total


@pytest.mark.parametrize(
    ("everything", "note"),
    [
        (False, "what depends on values in the quantizer linear, such as moving codes, is not counted"),
        (True, "the quantizer linear is not counted: all that it does depends on values"),
    ],
)
def test_a_quantizer_that_cannot_be_traced_says_so(monkeypatch, everything, note):
    """In training alone, or at all."""
    trace = compute.trace

    def refused(run, modules):
        first = modules[0]
        if isinstance(first, Tokenizer) and first.config.quantizer == "linear" and (everything or first.training):
            raise DataDependentOutputException(None)
        return trace(run, modules)

    monkeypatch.setattr(compute, "trace", refused)
    records = as_records(plan_study(parameters(**QUICK), IMAGES, ["vq", "linear"]), [], 0.4)
    assert [row["note"] for row in records["rows"]] == ["", note]
