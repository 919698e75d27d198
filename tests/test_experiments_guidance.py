"""A sweep over guidance scales: each scale's figures as by hand, the same draws at each, a killed sweep, its stage."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml
from test_config import CONTENT
from test_generate_llamagen import random_model
from test_tokenizer_model import tokenizer
from test_tokenizer_training import write_table

from fvq.config import Sample, load_parameters
from fvq.data.image_table import to_uint8
from fvq.evaluate.evaluation import Options
from fvq.evaluate.generator_metrics import evaluate_samples
from fvq.evaluate.image_sets import ImageSet, TensorImages, open_image_set
from fvq.evaluate.networks.classifier import ImageClassifier, ImageClassifierConfig
from fvq.evaluate.protocols import PROTOCOLS
from fvq.evaluate.sides import Side
from fvq.experiments import guidance
from fvq.experiments.guidance import draw_at_scales, measure_scales
from fvq.generate import SamplingSettings
from fvq.runtime.errors import UserError
from fvq.study.guidance import read_sweep

ROOT = Path(__file__).parents[1]
SETTINGS = SamplingSettings(cfg_scale=7.0, cfg_start=1, temperature=0.9, top_k=40, top_p=0.95)
LABELS = torch.arange(40) % 5
SCALES = [1.0, 1.5, 4.0]


@dataclasses.dataclass
class Parts:
    """Everything that a sweep needs, small."""

    generator: object
    tokenizer: object
    extractor: object
    reference: ImageSet


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    decoder = tokenizer()
    config = decoder.config
    generator = random_model(vocabulary_size=config.codebook_size, grid=config.grid)
    torch.manual_seed(0)
    extractor = ImageClassifier(ImageClassifierConfig(name="photos", image_size=16, classes=3, width=8)).eval()
    extractor.save(folder / "extractor.safetensors")
    reference = open_image_set(write_table(folder / "validation.parquet", 16, 30).path)
    return Parts(generator, decoder, extractor, reference)


def draw(parts, folder, scales=SCALES, **changes):
    changes = {"seed": 3, "batch_size": 64, **changes}
    return draw_at_scales(changes.pop("model", parts.generator), LABELS, SETTINGS, scales, folder=folder, **changes)


def measure(parts, tokens, folder):
    return measure_scales(tokens, parts.tokenizer, parts.extractor, parts.reference, folder)


@pytest.fixture(scope="module")
def tokens(parts, tmp_path_factory):
    return draw(parts, tmp_path_factory.mktemp("drawn"))


def test_figures_equal_those_of_each_scale_by_hand(parts, tokens, tmp_path):
    rows = measure(parts, tokens, tmp_path)
    assert [row["cfg_scale"] for row in rows] == SCALES
    for row in rows:
        options = SETTINGS.model_dump() | {"cfg_scale": row["cfg_scale"]}
        with torch.no_grad():
            drawn = parts.generator.sample(LABELS, **options, seed=3)
            images = to_uint8(parts.tokenizer.decode(drawn))
        sides = Side(TensorImages(images, "by hand")), Side(parts.reference)
        expected = evaluate_samples(*sides, parts.extractor, PROTOCOLS["adm"], Options()).values
        assert list(row) == ["cfg_scale", "samples", "precision", "recall", "is_photos", "fd_photos"]
        for name in list(row)[1:]:
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name
    assert len({row["fd_photos"] for row in rows}) == 3


def test_an_image_has_the_same_draws_at_every_scale(parts, tmp_path):
    # Where all classes mean the same, guidance changes nothing but rounding, and only the draws could differ.
    model = random_model(vocabulary_size=64, grid=parts.tokenizer.config.grid)
    with torch.no_grad():
        model.cls_embedding.embedding_table.weight[:] = model.cls_embedding.embedding_table.weight[0]
    drawn = draw(parts, tmp_path, model=model)
    assert torch.equal(drawn[1.0], drawn[1.5])
    assert torch.equal(drawn[1.0], drawn[4.0])
    assert len(torch.unique(drawn[1.0], dim=0)) > 30


def test_the_other_scales_and_their_order_change_nothing(parts, tokens, tmp_path):
    drawn = draw(parts, tmp_path, [4.0, 1.25, 1.0])
    assert list(drawn) == [4.0, 1.25, 1.0]
    for scale in (1.0, 4.0):
        assert torch.equal(drawn[scale], tokens[scale])
    assert not torch.equal(drawn[1.0], drawn[1.25])


def test_a_killed_sweep_measures_only_what_is_missing(parts, tokens, tmp_path, monkeypatch):
    whole = measure(parts, tokens, tmp_path / "whole")
    seen = []

    def watched(samples, *others, **options):
        seen.append(samples.name)
        if seen == ["samples at scale 1", "samples at scale 1.5"]:
            raise KeyboardInterrupt
        return evaluate_samples(samples, *others, **options)

    monkeypatch.setattr(guidance, "evaluate_samples", watched)
    with pytest.raises(KeyboardInterrupt):
        measure(parts, tokens, tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").glob("*.json")] == ["scale-1.0.json"]
    seen.clear()
    assert measure(parts, tokens, tmp_path / "killed") == whole
    assert seen == ["samples at scale 1.5", "samples at scale 4"]
    seen.clear()
    assert measure(parts, tokens, tmp_path / "killed") == whole
    assert seen == []


def test_the_reference_passes_the_network_once(parts, tokens, tmp_path, monkeypatch):
    passed = []

    def counted(self, images, spatial=False):
        passed.append(len(images))
        return forward(self, images, spatial=spatial)

    forward = ImageClassifier.forward
    monkeypatch.setattr(ImageClassifier, "forward", counted)
    measure(parts, tokens, tmp_path)
    assert sum(passed) == len(parts.reference) + len(SCALES) * len(LABELS)


def test_a_killed_drawing_goes_on_with_the_scale_it_was_at(parts, tokens, tmp_path, monkeypatch):
    drawn = []

    def stopping(model, labels, settings, **options):
        drawn.append(settings.cfg_scale)
        if settings.cfg_scale == 1.5 and drawn.count(1.5) == 1:
            raise KeyboardInterrupt
        return many(model, labels, settings, **options)

    many = guidance.sample_many
    monkeypatch.setattr(guidance, "sample_many", stopping)
    with pytest.raises(KeyboardInterrupt):
        draw(parts, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert before
    again = draw(parts, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert all(torch.equal(again[scale], tokens[scale]) for scale in SCALES)


def test_a_damaged_record_of_a_finished_scale_is_named(parts, tokens, tmp_path):
    (tmp_path / "scale-1.5.json").write_text('{"cfg_scale": 1')
    with pytest.raises(UserError, match=r"scale-1\.5\.json: not valid JSON"):
        measure(parts, tokens, tmp_path)


def test_a_generator_that_cannot_be_guided_draws_nothing(parts, tmp_path):
    model = random_model(vocabulary_size=64, grid=parts.tokenizer.config.grid, class_dropout=0.0)
    with pytest.raises(UserError, match=r"sweep_guidance\.scales: .* class_dropout 0 and cannot be guided") as caught:
        draw(parts, tmp_path, model=model)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert list(draw(parts, tmp_path, [1.0], model=model)) == [1.0]


# --- parameters ------------------------------------------------------------------------------------------------------


def load(tmp_path, **changes):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **changes}))
    return load_parameters(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sweep_guidance": {"scales": [1.0, 2.0, 1.5], "count": 40}},
            "sweep_guidance.scales: must increase from each to the next, not 1, 2, 1.5",
        ),
        (
            {"sweep_guidance": {"scales": [1.5, 1.5], "count": 40}},
            "sweep_guidance.scales: must increase from each to the next, not 1.5, 1.5",
        ),
        (
            {"sweep_guidance": {"scales": [0.5, 1.5], "count": 40}},
            "sweep_guidance.scales.0: should be greater than or equal to 1, not 0.5",
        ),
        (
            {"sweep_guidance": {"scales": [], "count": 40}},
            "sweep_guidance.scales: should have at least 1 entry, not 0",
        ),
        (
            {"sweep_guidance": {"scales": [1.0], "count": 3}},
            "sweep_guidance.count: should be greater than or equal to 4, not 3",
        ),
        (
            {"train_generator": {**CONTENT["train_generator"], "class_dropout": 0.0}},
            "sweep_guidance.scales: guidance above 1 needs generators trained with class_dropout above 0",
        ),
    ],
)
def test_wrong_parameters_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_without_class_dropout_there_is_still_a_sweep_of_no_guidance_or_none(tmp_path):
    unguided = {**CONTENT["train_generator"], "class_dropout": 0.0}
    alone = load(tmp_path, train_generator=unguided, sweep_guidance={"scales": [1.0], "count": 40})
    assert alone.sweep_guidance.scales == (1.0,)
    load(tmp_path, train_generator=unguided, swept_generators={"vq": False})


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(parts, tmp_path, monkeypatch):
    """Make a run of the stage in a folder with the results that it reads."""
    monkeypatch.syspath_prepend(str(ROOT))  # the stages are run from there, and not installed
    monkeypatch.chdir(tmp_path)
    from pipeline.run import Run

    parameters = load(tmp_path).model_copy(update={"threads": 1})
    results = tmp_path / "results" / parameters.study
    parts.generator.save(results / "train_generator/vq/generator.safetensors")
    parts.tokenizer.save(results / "freeze_codebook/vq/tokenizer.safetensors")
    parts.extractor.save(results / "train_extractor/extractor.safetensors")
    (results / "prepare_data").mkdir()
    (results / "prepare_data/validation.parquet").write_bytes(Path(parts.reference.name).read_bytes())

    def run(name="vq", **changes):
        return Run("sweep_guidance", name, parameters.model_copy(update=changes))

    return run


def sweep(run):
    from pipeline.sweep_guidance import main

    main(run)
    run.finish()
    run.drop_state()
    return Path("results", run.parameters.study, "sweep_guidance", run.name, "guidance.csv")


def test_the_stage_writes_what_the_study_reads(run, parts, tmp_path):
    stage = run()
    written = sweep(stage)
    found = read_sweep(written, "vq", distance="fd_photos", score="is_photos")
    assert found.scales.tolist() == [1.0, 2.0]
    assert found.samples == 40
    # The number of images and the scale of the study's own samples are not the sweep's.
    settings = stage.parameters.sample.model_copy(update={"count": 7, "cfg_scale": 9.0})
    assert run(sample=settings).recipe() == stage.recipe()
    # Nor do other generators' sweeps and the number of images drawn at once change it.
    assert run(swept_generators={"vq": True, "fvq": True}).recipe() == stage.recipe()
    assert run(swept_generators={"vq": False}).recipe() != stage.recipe()
    assert run(sample=settings.model_copy(update={"batch_size": 3})).recipe() == stage.recipe()
    assert run(sample=settings.model_copy(update={"temperature": 0.5})).recipe() != stage.recipe()
    drawn = draw_at_scales(
        parts.generator, LABELS, stage.parameters.sample, [2.0], seed=0, folder=tmp_path / "drawn", batch_size=None
    )
    by_hand = measure(parts, drawn, tmp_path / "by hand")
    with written.open(newline="") as file:
        line = list(csv.DictReader(file))[1]
    assert {name: float(value) for name, value in line.items()} == pytest.approx(by_hand[0], rel=1e-4)
    # dvc plots draws the last column.
    assert list(line)[-1] == "fd_photos"
    assert not list(Path("runs").rglob("*.npy"))


def test_a_generator_that_is_not_swept_has_an_empty_table(run, capsys):
    assert sweep(run(swept_generators={"vq": False})).read_text().strip() == ""
    assert "vq: swept_generators leaves it out" in capsys.readouterr().out


@pytest.mark.parametrize("swept", [True, False])
def test_processes_are_started_only_for_a_sweep(run, monkeypatch, swept):
    from pipeline import run as module
    from pipeline.sweep_guidance import is_swept

    Path("params.yaml").write_text(yaml.safe_dump({**CONTENT, "swept_generators": {"vq": swept}}))
    done = []
    monkeypatch.setenv("FVQ_PROCESSES", "2")
    monkeypatch.setattr("sys.argv", ["pipeline.sweep_guidance", "vq"])
    monkeypatch.setattr(module, "launch", lambda name, arguments, count: done.append((name, arguments, count)))
    module.run_stage("sweep_guidance", lambda run: done.append(run.name), each="generators", parallel=is_swept)
    assert done == ([("pipeline.sweep_guidance", ["vq"], 2)] if swept else ["vq"])


def test_another_tokenizers_tokens_are_refused(run, parts):
    folder = Path("results/smoke-photos/freeze_codebook/vq")
    tokenizer("vq", codebook_size=32).save(folder / "tokenizer.safetensors")
    with pytest.raises(UserError, match=r"train_generator/vq/.*freeze_codebook/vq/tokenizer\.safetensors has"):
        sweep(run())


@pytest.mark.parametrize(
    ("stage", "left_out"),
    [("sample", {"batch_size"}), ("sweep_guidance", {"batch_size", "count", "cfg_scale", "cfg_scale_of"})],
)
def test_dvc_and_resuming_regard_all_of_the_sample_block_that_the_result_follows_from(run, stage, left_out):
    from pipeline.run import Run

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    tracked = {name.removesuffix(".${key}") for name in stages[stage]["do"]["params"] if name.startswith("sample.")}
    assert tracked == {f"sample.{name}" for name in Sample.model_fields.keys() - left_out}
    recipe = Run(stage, "vq", run().parameters).recipe()
    # A generator's own scale stands in the place of the shared one.
    assert recipe["sample"].keys() == Sample.model_fields.keys() - left_out - {"cfg_scale_of"}
