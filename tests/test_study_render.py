"""Reports from fabricated results: what they show, that they are whole, escaped and repeatable; what they refuse."""

import base64
import csv
import errno
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_study_fabricated import (
    change_figures,
    fabricate,
    fabricate_elsewhere,
    fabricate_repeats,
    generator_metrics,
    on_inception,
    parameters,
    pictures,
    record_outputs,
    tokenizer_metrics,
    write_json,
)

from fvq.evaluate.record import OF_NEIGHBOURS
from fvq.runtime.errors import UserError
from fvq.study import render_study
from fvq.study.claims.verdicts import judge
from fvq.study.drawings.drawing import Drawing
from fvq.study.page.images import fitting_grid, strip_uri
from fvq.study.page.provenance import anchor, titled_commands
from fvq.study.page.report import render_report, usage_samples
from fvq.study.render import headline_figures
from fvq.study.results import read_study
from fvq.study.tables.build import build_tables
from fvq.study.tables.guidance import guidance_table

COMMANDS = {"": "dvc repro", "evaluate_tokenizer@fvq": "dvc exp run -S 'a=<b>' evaluate_tokenizer@fvq"}
STEMS = ("usage", "reconstruction_error", "trajectories", "code_map", "codebook_sizes", "stability", "guidance")
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Text, attributes and nesting of a page; raises where an element is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.addresses, self.ids, self.images, self.tags = [], [], [], [], 0, set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href", "xlink:href", "srcset") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(study):
    """The page of a study with empty plots."""
    return render_report(
        study,
        dict.fromkeys(STEMS, Drawing("<svg></svg>", ())),
        [],
        claims=judge(study),
        tables=build_tables(study),
        guidance=guidance_table(study),
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    written = render_study(fabricate(root / "results" / "smoke-photos"), root / "reports", parameters(), COMMANDS)
    return root, written


@pytest.fixture(scope="module")
def reports(rendered):
    return rendered[0] / "reports"


@pytest.fixture
def results(rendered, tmp_path):
    """A copy to break."""
    return shutil.copytree(rendered[0] / "results" / "smoke-photos", tmp_path / "smoke-photos")


@pytest.fixture(scope="module")
def page(reports):
    return Page((reports / "index.html").read_text(encoding="utf-8"))


# --- the page --------------------------------------------------------------------------------------------------------


def test_all_files_are_named_and_there(rendered, reports):
    names = {path.relative_to(reports).as_posix() for path in rendered[1]}
    assert names == {path.relative_to(reports).as_posix() for path in reports.rglob("*") if path.is_file()}
    assert {"index.html", "usage.csv", "metrics.json", "verdicts.json", "figures/usage.svg"} <= names
    assert {f"tables/table_{number}.{kind}" for number in range(1, 12) for kind in ("md", "tex", "csv")} <= names
    assert {"figures/samples_fvq_l.png", "figures/reconstructions.png"} <= names
    for stem in ("trajectories", "code_map", "codebook_sizes", "stability"):
        assert {f"figures/{stem}.svg", f"figures/{stem}.png"} <= names
    assert rendered[1][0] == reports / "index.html"


def test_page_needs_no_network_and_its_links_exist(page, reports):
    assert page.tags.isdisjoint({"link", "iframe", "object"})
    for address in page.addresses:
        assert not re.match(r"(https?:)?//", address)
        if not address.startswith(("#", "data:image/png;base64,")):
            assert (reports / address).is_file()
    html = (reports / "index.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not re.search(r"<script[^>]*\bsrc\b|\beval\(|\bfetch\(|\bimport\(|XMLHttpRequest", html)


def test_page_ids_are_unique_and_internal_links_lead_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_page_shows_measured_and_paper_figures(page):
    text = " ".join(" ".join(page.text).split())
    for shown in (
        "97.6%",
        "25 of 1,024 codes",
        "256,000 tokens, ceiling 100%",
        "21.48",
        "61.7",
        "276.6",
        "9.21",
        "0.29%",
    ):
        assert shown in text
    assert "paper: ImageNet 256×256, FID on Inception" in text
    assert "measured here: photos 32×32, Fréchet distance on the study's own classifier, not FID" in text
    assert "one seed here (7)" in text
    assert "102,400 training tokens" in text
    assert "Made-up CPU, 2 cores, 8.0 GB" in text
    assert "not recorded" in text
    assert "abababab" in text


def test_class_names_are_escaped(page, reports):
    assert page.text.count("<b>&") == 2
    assert "<b>&" not in (reports / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in (reports / "figures" / "samples_vq.svg").read_text(encoding="utf-8")


def test_page_has_a_strip_of_images_for_each_row_and_class(page):
    assert page.images == 1 + 2 * 5 + 2 * 3


def test_commands_stand_on_the_page(page, reports):
    for command in COMMANDS.values():
        assert command in page.text
    assert "#commands" in page.addresses
    assert (
        "<b>" not in (reports / "index.html").read_text(encoding="utf-8").replace("<b class", "").split("commands")[-1]
    )


def test_without_commands_there_is_no_place_for_them(results):
    html = page_of(read_study(results, parameters()))
    assert "#commands" not in html and 'class="copy"' not in html


def test_commands_are_called_after_what_they_make(results):
    changes = fabricate_repeats(results, ["fvq"], [1]) | fabricate_elsewhere(results, ["fvq"], ["coco", "plain"])
    stages = ("evaluate_tokenizer@fvq", "evaluate_elsewhere@fvq", "evaluate_repeat@fvq-1")
    stages += ("evaluate_generator@fvq_l", "sweep_guidance@fvq_l")
    study = read_study(results, parameters(**changes), {stage: f"dvc repro {stage}" for stage in stages})
    assert [title for title, _ in titled_commands(study)] == [
        "FVQ",
        "FVQ on coco, plain",
        "FVQ, seed 1",
        "LlamaGen on FVQ",
        "LlamaGen on FVQ: scales of guidance",
    ]


def test_what_usage_was_counted_over_is_told_once(results):
    study = read_study(results, parameters(**fabricate_repeats(results, ["fvq"], [1, 2])))
    assert usage_samples(study) == [("256,000 tokens, ceiling 100%", [row.label for row in study.rows])]


def test_the_files_are_listed(page):
    for name in ("verdicts.json", "metrics.json", "usage.csv", "tables/table_1.csv", "figures/usage.png"):
        assert name in page.addresses


def test_every_stage_has_a_line_with_its_record(page, rendered):
    study = read_study(rendered[0] / "results" / "smoke-photos", parameters())
    anchors = [anchor(run) for run in study.runs]
    assert len(anchors) == len(set(anchors))
    assert [name for name in page.ids if name.startswith("run-")] == anchors
    assert "0123456789abcdef" * 2 in page.text


def test_verdicts_are_counted_on_top(page, reports):
    records = json.loads((reports / "verdicts.json").read_text(encoding="utf-8"))
    times = Counter(record["verdict"] for record in records)
    text = " ".join(" ".join(page.text).split())
    assert sum(times.values()) == len(records) > 10
    for verdict, words_of in (("holds", "hold"), ("fails", "fail"), ("not testable at this scale",) * 2):
        number = times[verdict]
        assert f"{number} {verdict if number == 1 else words_of}" in text
    for position, record in enumerate(records, 1):
        assert f"claim-{position}" in page.ids and f"#claim-{position}" in page.addresses
        assert record["title"] in page.text


def test_markdown_leads_to_the_records(reports):
    text = (reports / "tables" / "table_5.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)]*)\)", text))
    assert "../../results/smoke-photos/evaluate_tokenizer/fvq/provenance.json" in links
    for link in links:
        assert (reports / "tables" / link).is_file()


def test_tables_without_a_measured_row_are_folded(reports):
    html = (reports / "index.html").read_text(encoding="utf-8")
    assert '<h3 id="table_5">' in html
    assert '<summary id="table_4">Table 4' in html


@pytest.mark.parametrize(("lines", "side"), [(11, 32), (75, 32), (5, 256), (75, 256), (3, 512)])
def test_images_stay_within_their_budget(lines, side):
    images = np.zeros((10, side, side, 3), np.uint8)
    grid = fitting_grid(lines, images, 3_000_000)
    line = Image.open(io.BytesIO(base64.b64decode(strip_uri(images, grid).partition(",")[2])))
    assert lines * line.width * line.height * 3 < 3_200_000  # with the gaps between images
    assert line.height == min(side, 64 if lines == 75 else 128)
    # As many as there is room for.
    assert grid.images == (3 if (lines, side) == (75, 256) else 10)


# --- digits and protocols --------------------------------------------------------------------------------------------


def words(html):
    """The text of a page."""
    return " ".join(" ".join(Page(html).text).split())


def test_no_figure_has_more_digits_than_its_spread_supports(results):
    uncertain = {"rfd_photos_spread": 3.2, "rfd_photos_infinity": -1.234}
    change_figures(results, "evaluate_tokenizer/*/metrics.json", uncertain)
    change_figures(results, "evaluate_generator/*/metrics.json", {"fd_photos_spread": 12.0})
    text = words(page_of(read_study(results, parameters())))
    assert "FVQ 25 ± 3, MLP-5 49 ± 3 (−49%" in text
    assert "25 ± 3 at ∞: −1" in text
    # The paper's own figures follow.
    assert not re.search(r"\b(25\.0|61\.7|48\.8|125)\b", text.split("During training")[0])


def test_the_number_of_images_stands_with_every_distance(reports):
    text = words((reports / "index.html").read_text(encoding="utf-8"))
    assert "rfd_photos stands on 4,000 images, fd_photos on 2,000 samples a row against 4,000 reference images." in text
    assert "Over the 4,000 validation images." in text


def test_the_protocol_is_told_in_words(reports):
    html = (reports / "index.html").read_text(encoding="utf-8")
    fields = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", html)
    assert ("preparation of the images", "as stored") in fields
    assert fields.count(("reference images", "4,000")) == 2
    assert ("groups of the score", "chunks of 5000 in file order, no bias") in fields
    assert ("LPIPS on AlexNet", "absent: no alexnet") in fields
    assert ("resizing for it", "none") in fields
    assert ("SHA-256 of the reference", "01" * 32) in fields
    # What the tokenizers' evaluation has no figures of.
    assert "none" not in [value for name, value in fields if name != "resizing for it"]


def test_figures_that_are_named_after_their_protocol(results):
    changes = {"protocol": "torch-fidelity", "protocol_neighbours_on": "vgg16", "protocol_neighbours_sha256": "9" * 64}
    shares = {"precision_vgg16": 0.61, "recall_vgg16": 0.32}
    change_figures(results, "evaluate_generator/*/metrics.json", changes | shares, gone=("precision", "recall"))
    study = read_study(results, parameters())
    assert headline_figures(study)["fvq_l.recall_vgg16"] == 0.32
    html = page_of(study)
    assert "<dt>network of neighbours</dt><dd>vgg16</dd>" in html
    assert "recall_vgg16 0.32" in words(html)
    on_inception(results)
    assert headline_figures(read_study(results, parameters()))["fvq.rfid"] == 25.04567


def test_what_a_protocol_leaves_out_is_no_headline(results):
    left_out = dict.fromkeys(("protocol_score", *OF_NEIGHBOURS), "none")
    gone = ("precision", "recall", "is_photos", "is_photos_std")
    change_figures(results, "evaluate_generator/*/metrics.json", {**left_out, "protocol": "pytorch-fid"}, gone)
    figures = headline_figures(read_study(results, parameters()))
    assert "fvq_l.fd_photos" in figures and "fvq_l.precision" not in figures


# --- for dvc ---------------------------------------------------------------------------------------------------------


def test_headline_figures(reports):
    figures = json.loads((reports / "metrics.json").read_text())
    assert figures["fvq.usage"] == 1.0
    assert figures["fvq.rfd_photos"] == 25.04567
    assert figures["fvq_l.fd_photos"] == 61.654321
    assert {name.split(".")[1] for name in figures} == {
        "usage",
        "rfd_photos",
        "psnr_rgb",
        "fd_photos",
        "precision",
        "recall",
    }


def test_usage_in_long_form(reports):
    with (reports / "usage.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 20
    assert lines[0].keys() == {"row", "step", "usage"}
    assert (lines[0]["row"], lines[0]["step"]) == ("vq", "50")
    assert float(lines[19]["usage"]) == pytest.approx(25 / 1024, rel=1e-3)


# --- whole and repeatable --------------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_results_give_the_same_bytes(rendered, reports, tmp_path):
    again = shutil.copytree(rendered[0] / "results", tmp_path / "results")
    render_study(again / "smoke-photos", tmp_path / "reports", parameters(), COMMANDS)
    new, old = contents(tmp_path / "reports"), contents(reports)
    assert new.keys() == old.keys()
    # The records that LaTeX and CSV name lie below the results' own path.
    assert {
        name for name in new if new[name] != old[name].replace(str(rendered[0]).encode(), str(tmp_path).encode())
    } == set()


def test_files_carry_no_date_and_no_software(reports):
    for path in (reports / "figures").iterdir():
        data = path.read_bytes()
        assert b"<dc:date>" not in data and b"<metadata>" not in data and b"Software" not in data


def one_file(_, folder):
    """In place of all plots."""
    folder.mkdir()
    (folder / "usage.svg").write_text("<svg></svg>")
    return dict.fromkeys(STEMS, Drawing("<svg></svg>", ()))


def test_full_disk_leaves_what_was_there(rendered, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    reports = tmp_path / "reports"
    (reports / "tables").mkdir(parents=True)
    (reports / "tables" / "table_1.md").write_text("before")
    monkeypatch.setattr("fvq.study.render.write_figures", lambda _, folder: folder.mkdir() or {})
    monkeypatch.setattr("fvq.study.render.render_report", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render_study(rendered[0] / "results" / "smoke-photos", reports, parameters())
    assert contents(reports) == {"tables/table_1.md": b"before"}


def test_second_render_replaces_the_first_and_leaves_nothing_else(results, tmp_path, rendered, monkeypatch):
    reports = shutil.copytree(rendered[0] / "reports", tmp_path / "reports")
    monkeypatch.setattr("fvq.study.render.write_figures", one_file)
    rows = {name: row for name, row in parameters()["rows"].items() if name != "mlp5"}
    written = render_study(results, reports, parameters(rows=rows, generators={}))
    assert {path for path in reports.rglob("*") if path.is_file()} == set(written)
    assert not (reports / "figures" / "samples_vq.png").exists()
    assert "MLP-5" not in (reports / "usage.csv").read_text()
    assert "This study has no generator." in (reports / "tables" / "table_2.md").read_text()


def test_importing_needs_no_torch():
    code = "import sys, fvq.study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(results, reports, match, **changes):
    """Rendering stops with one line that holds ``match``, and what was there before stays."""
    record_outputs(results)
    reports.mkdir()
    (reports / "index.html").write_text("before")
    with pytest.raises(UserError, match=match) as caught:
        render_study(results, reports, parameters(**changes))
    assert "\n" not in str(caught.value)
    assert contents(reports) == {"index.html": b"before"}


@pytest.mark.parametrize(
    "file",
    [
        "evaluate_tokenizer/linear/metrics.json",
        "evaluate_tokenizer/linear/reconstructions.npz",
        "train_tokenizer/linear/history.csv",
        "evaluate_generator/fvq_l/metrics.json",
        "sample/fvq_l/samples.npz",
        "prepare_data/validation.parquet",
        "small_experiments/trajectories.parquet",
        "small_experiments/trajectories.json",
        "small_experiments/sizes.csv",
        "map_codes/code_map.parquet",
        "map_codes/code_map.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_missing_and_damaged_files_are_named(results, tmp_path, file, damage):
    path = results / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    refused(results, tmp_path / "reports", re.escape(str(path)))


def test_figures_that_were_changed_by_hand_are_refused(results):
    path = results / "evaluate_tokenizer" / "fvq" / "metrics.json"
    write_json(path, json.loads(path.read_text()) | {"rfd_photos": 1.0})
    with pytest.raises(UserError, match=r"fvq/metrics\.json: is not what evaluate_tokenizer@fvq wrote"):
        read_study(results, parameters())


def test_broken_header_of_generator_weights(results, tmp_path):
    (results / "train_generator" / "vq" / "generator.safetensors").write_bytes(b"no weights")
    refused(results, tmp_path / "reports", r"generator\.safetensors: damaged weights")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"psnr_rgb": None}, "psnr_rgb must be a finite number, not None"),
        ({"psnr": 21.5}, "psnr is no known figure, and no field of an evaluation"),
        ({"protocol": "pytorch-fid"}, "protocol is 'pytorch-fid', and 'adm' in .*different protocols do not mix"),
        ({"mse": "0.007"}, "mse must be a finite number"),
        ({"usage": True}, "usage must be a finite number"),
        ({"usage": 1.5}, r"usage must be a finite number of 0 to 1, not 1\.5"),
        ({"codebook_size": 4096}, r"codebook_size is 4096, and 1024 in rows\.fvq"),
        (
            {"protocol_extractor_sha256": "cd" * 32},
            "protocol_extractor_sha256 is 'cdcd.*different protocols do not mix",
        ),
        ({"protocol_images": "100"}, "protocol_images is '100', and '4000'"),
        ({"protocol_new": "x"}, "protocol_new is 'x', and None"),
        ({"protocol_extractor": 3}, "protocol_extractor must be a text, not 3"),
    ],
)
def test_dirty_figures_are_named(results, tmp_path, change, match):
    path = results / "evaluate_tokenizer" / "fvq" / "metrics.json"
    write_json(path, tokenizer_metrics("fvq") | change)
    refused(results, tmp_path / "reports", f"fvq/metrics.json.*{match}|fvq/metrics.json: {match}")


@pytest.mark.parametrize("name", ["usage", "ssim_g11", "rfd_photos", "usage_ceiling", "samples", "protocol_extractor"])
def test_missing_figures_are_named(results, tmp_path, name):
    metrics = tokenizer_metrics("fvq")
    del metrics[name]
    write_json(results / "evaluate_tokenizer" / "fvq" / "metrics.json", metrics)
    refused(results, tmp_path / "reports", rf"fvq/metrics\.json: (holds no complete evaluation: )?lacks {name}$")


def test_missing_figures_of_a_generator_are_named(results, tmp_path):
    for name in ("recall", "is_photos", "fd_photos"):
        metrics = generator_metrics("fvq_l")
        del metrics[name]
        write_json(results / "evaluate_generator" / "fvq_l" / "metrics.json", metrics)
        record_outputs(results)
        with pytest.raises(UserError, match=rf"fvq_l/metrics\.json: lacks {name}$"):
            read_study(results, parameters())


def test_not_a_number_in_json(results, tmp_path):
    path = results / "evaluate_tokenizer" / "fvq" / "metrics.json"
    path.write_text(path.read_text().replace('"usage": 1.0', '"usage": NaN'))
    refused(results, tmp_path / "reports", r"fvq/metrics\.json: usage must be a finite number of 0 to 1, not nan")


def test_generators_and_tokenizers_share_the_extractor(results, tmp_path):
    for name in ("vq", "fvq_l"):
        path = results / "evaluate_generator" / name / "metrics.json"
        write_json(path, json.loads(path.read_text()) | {"protocol_extractor_sha256": "ef" * 32})
    refused(results, tmp_path / "reports", r"evaluate_generator/vq/metrics\.json: protocol_extractor_sha256")


def test_rows_must_have_reconstructed_the_same_images(results, tmp_path):
    path = results / "evaluate_tokenizer" / "mlp5" / "reconstructions.npz"
    np.savez(path, original=pictures(12, seed=99), reconstruction=pictures(12, seed=98))
    refused(results, tmp_path / "reports", r"mlp5/reconstructions\.npz: its originals are not those of the row vq")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"original": np.zeros((2, 32, 32, 3), np.uint8)}, "lacks the array reconstruction"),
        (dict.fromkeys(("original", "reconstruction"), np.zeros((2, 32, 32, 3), np.float32)), "original must be uint8"),
        (dict.fromkeys(("original", "reconstruction"), np.zeros((0, 32, 32, 3), np.uint8)), "original must be uint8"),
    ],
)
def test_reconstructions_of_another_kind(results, tmp_path, arrays, match):
    np.savez(results / "evaluate_tokenizer" / "vq" / "reconstructions.npz", **arrays)
    refused(results, tmp_path / "reports", rf"vq/reconstructions\.npz: {match}")


@pytest.mark.parametrize(("label", "match"), [(3, "a label lies outside 0 to 2"), (-1, "a label lies outside 0 to 2")])
def test_labels_outside_the_classes(results, tmp_path, label, match):
    np.savez(results / "sample" / "vq" / "samples.npz", arr_0=pictures(4, 0), arr_1=np.array([0, 1, 2, label]))
    refused(results, tmp_path / "reports", rf"vq/samples\.npz: {match}")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("usage,", "use,", "lacks the column usage"),
        ("reconstruction", "other", "lacks the column reconstruction"),
        ("102400", "many", "line 2: usage_tokens must be a finite number, not 'many'"),
        ("102400", "inf", "line 2: usage_tokens must be a finite number, not 'inf'"),
    ],
)
def test_dirty_history(results, tmp_path, old, new, match):
    path = results / "train_tokenizer" / "vq" / "history.csv"
    path.write_text(path.read_text().replace(old, new))
    refused(results, tmp_path / "reports", rf"vq/history\.csv: {match}")


def test_generator_of_an_unknown_row(results, tmp_path):
    generators = {"x": {"label": "x", "tokenizer": "rq", "width": 1}}
    refused(results, tmp_path / "reports", r"generators\.x\.tokenizer: there is no row rq", generators=generators)


def test_other_rows_left_in_the_folder_are_ignored(results):
    write_json(results / "evaluate_tokenizer" / "old" / "metrics.json", {"protocol_extractor": "other"})
    assert "old" not in {row.name for row in read_study(results, parameters()).rows}
