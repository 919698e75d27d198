"""Reports from fabricated results: what they show, that they are whole, escaped and repeatable; what they refuse."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from test_study_fabricated import (
    fabricate,
    generator_metrics,
    on_inception,
    parameters,
    pictures,
    tokenizer_metrics,
    write_json,
)

from fvq.evaluate.record import OF_NEIGHBOURS
from fvq.runtime.errors import UserError
from fvq.study import render_study
from fvq.study.formats import escape_latex, to_markdown
from fvq.study.render import headline_figures
from fvq.study.results import read_study
from fvq.study.tables import build_tables

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


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    written = render_study(fabricate(root / "results" / "smoke-photos"), root / "reports", parameters())
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
    assert {"index.html", "usage.csv", "metrics.json", "tables/table_5.tex", "figures/usage.svg"} <= names
    assert {"figures/samples_fvq_l.png", "figures/reconstructions.png"} <= names
    for stem in ("trajectories", "code_map", "codebook_sizes", "stability"):
        assert {f"figures/{stem}.svg", f"figures/{stem}.png"} <= names
    assert rendered[1][0] == reports / "index.html"


def test_page_needs_no_network_and_its_links_exist(page, reports):
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    for address in page.addresses:
        assert not re.match(r"(https?:)?//", address)
        if not address.startswith(("#", "data:image/png;base64,")):
            assert (reports / address).is_file()
    html = (reports / "index.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


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
    assert page.images == 1 + 5 + 2 * 3


# --- tables ----------------------------------------------------------------------------------------------------------


def table(reports, name):
    return (reports / "tables" / name).read_text(encoding="utf-8")


def markdown_cells(text, containing):
    line = next(line for line in text.splitlines() if containing in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_puts_measured_beside_paper(reports):
    cells = markdown_cells(table(reports, "table_1.md"), "| FVQ |")
    assert cells[:7] == ["FVQ", "16×16", "16,384", "256", "1.30", "0.13", "100%"]
    assert cells[7:13] == ["FVQ", "8×8", "1,024", "64", "**25.0** (± 0.4; at ∞: 23.5)", "—"]
    assert cells[13] == "**100%** (256,000 tokens, ceiling 100%)"
    assert markdown_cells(table(reports, "table_1.md"), "9.21")[7] == "plain VQ"
    assert markdown_cells(table(reports, "table_5.md"), "linear+Annealing")[4:6] == ["linear", "1,024"]
    assert markdown_cells(table(reports, "table_5.md"), "| plain VQ")[0] == "(not in the paper's table)"
    generator = markdown_cells(table(reports, "table_2.md"), "FVQ-L")
    marked = ["**61.7** (± 0.9)", "**3.46**", "**0.46**", "**0.29**"]
    assert generator[5:] == ["0.84", "0.56", "LlamaGen on FVQ", "12.3k", *marked]


def test_markdown_rows_have_one_width(reports):
    for path in (reports / "tables").glob("*.md"):
        widths = {line.count("|") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_second_best_is_marked_once_and_equal_figures_share_the_best(reports):
    text = table(reports, "table_5.md")
    assert text.count("<u>48.8</u>") == 1
    assert text.count("**100%**") == 2
    assert "<u>97.6%</u>" in text


def test_latex_is_balanced_and_escaped(reports):
    text = table(reports, "table_1.tex")
    widths = {
        line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\") and " & " in line
    }
    assert widths == {1, 13}  # the line over the headings, and the rest
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"rfd\_photos $\downarrow$" in text
    assert r"\textbf{25.0}" in text and r"\underline{48.8}" in text and r"IBQ\dag{}" in text
    assert not re.search(r"(?<!\\)%(?! needs|$)", text, re.MULTILINE)
    assert r"\toprule" in text and r"\bottomrule" in text


def test_latex_escapes_whatever_a_label_holds():
    assert escape_latex(r"50% of $x_1$ & #{a}~^\b") == (
        r"50\% of \$x\_1\$ \& \#\{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}b"
    )


def test_csv_is_tidy_and_in_full_precision(reports):
    with (reports / "tables" / "table_1.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    values = {(line["source"], line["row"], line["figure"]): line for line in lines}
    assert len(values) == len(lines)
    assert values["measured", "fvq", "rfd_photos"]["value"] == "25.04567"
    assert float(values["measured", "vq", "usage"]["value"]) == 25 / 1024
    assert values["measured", "vq", "usage_tokens"]["value"] == "256000"
    assert values["paper", "llamagen_256", "usage"]["value"] == "0.29%"
    assert values["paper", "llamagen_256", "usage"]["beside"] == "vq"
    assert values["measured", "linear", "usage"]["beside"] == ""
    assert values["measured", "fvq", "samples"]["value"] == "4000"
    assert values["measured", "fvq", "rfd_photos_spread"]["value"] == "0.384"
    assert float(values["measured", "fvq", "rfd_photos_infinity"]["value"]) == pytest.approx(23.54567)


def test_only_inception_features_give_an_fid(results):
    on_inception(results)
    study = read_study(results, parameters())
    reconstruction, generation, _ = (to_markdown(table) for table in build_tables(study))
    assert "measured: rFID ↓" in reconstruction
    assert r"measured: FID ↓ | measured: inception\_score ↑" in generation
    assert "photos 32×32, FID on Inception" in reconstruction
    assert headline_figures(study)["fvq.rfid"] == 25.04567


def test_lpips_stands_in_the_table_where_it_was_measured(results):
    for position, row in enumerate(parameters()["rows"]):
        metrics = tokenizer_metrics(row) | {"lpips_alex": 0.2 + position / 100}
        del metrics["protocol_lpips_alex"]
        write_json(results / "evaluate_tokenizer" / row / "metrics.json", metrics)
    text = to_markdown(build_tables(read_study(results, parameters()))[0])
    assert markdown_cells(text, "9.21")[12] == "**0.200**"


# --- digits and protocols --------------------------------------------------------------------------------------------


def change_all(results, stage, changes, gone=()):
    """Change the figures of every row of a stage and take some away."""
    for path in (results / stage).glob("*/metrics.json"):
        kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in gone}
        write_json(path, kept | changes)


def test_no_figure_has_more_digits_than_its_spread_supports(results, tmp_path):
    change_all(results, "evaluate_tokenizer", {"rfd_photos_spread": 3.2, "rfd_photos_infinity": -1.234})
    change_all(results, "evaluate_generator", {"fd_photos_spread": 12.0})
    reports = tmp_path / "reports"
    render_study(results, reports, parameters())
    cells = markdown_cells(table(reports, "table_5.md"), "| FVQ |")
    assert "**25** (± 3; at ∞: −1)" in cells
    assert "**60** (± 10)" in markdown_cells(table(reports, "table_2.md"), "FVQ-L")
    html = (reports / "index.html").read_text(encoding="utf-8")
    text = " ".join(" ".join(Page(html).text).split())
    assert "FVQ against MLP-5: −49%" in text and "LlamaGen on FVQ: rfd_photos 25, fd_photos 60;" in text
    assert not re.search(r"\b(25\.0|61\.7|48\.8|125)\b", text)


def test_three_digits_where_no_spread_was_measured(results, tmp_path):
    change_all(results, "evaluate_tokenizer", {}, gone=("rfd_photos_spread", "rfd_photos_infinity"))
    change_all(results, "evaluate_generator", {}, gone=("fd_photos_spread",))
    reports = tmp_path / "reports"
    render_study(results, reports, parameters())
    assert "**25.0**" in markdown_cells(table(reports, "table_5.md"), "| FVQ |")
    assert "**61.7**" in markdown_cells(table(reports, "table_2.md"), "FVQ-L")
    text = " ".join(Page((reports / "index.html").read_text(encoding="utf-8")).text)
    assert "± after" not in text and "at ∞" not in text


def test_the_number_of_images_stands_with_every_distance(reports):
    for name in ("table_1", "table_5"):
        for kind in ("md", "tex"):
            text = table(reports, f"{name}.{kind}").replace("\\", "")
            assert "rfd_photos compares the reconstructions of 4,000 images with the originals." in text
            assert "from random halves of them" in text
    assert "Measured on 2,000 samples a row against 4,000 reference images." in table(reports, "table_2.md")
    text = " ".join(" ".join(Page((reports / "index.html").read_text(encoding="utf-8")).text).split())
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
    assert "LPIPS is not measured here: no alexnet." in table(reports, "table_1.md")


def test_precision_on_vgg16_has_its_own_name(results, tmp_path):
    changes = {"protocol": "torch-fidelity", "protocol_neighbours_on": "vgg16", "protocol_neighbours_sha256": "9" * 64}
    shares = {"precision_vgg16": 0.61, "recall_vgg16": 0.32}
    change_all(results, "evaluate_generator", changes | shares, gone=("precision", "recall"))
    render_study(results, tmp_path / "reports", parameters())
    cells = markdown_cells(table(tmp_path / "reports", "table_2.md"), "FVQ-L")
    assert cells[-2:] == ["0.61", "0.32"]
    assert json.loads((tmp_path / "reports" / "metrics.json").read_text())["fvq_l.recall_vgg16"] == 0.32
    html = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "<dt>network of neighbours</dt><dd>vgg16</dd>" in html
    assert "Precision and recall on the features of vgg16." in html


def test_a_reference_of_stored_statistics_may_not_say_its_number(results):
    change_all(results, "evaluate_generator", {"protocol_reference_images": "not known"})
    text = to_markdown(build_tables(read_study(results, parameters()))[1])
    assert "Measured on 2,000 samples a row against stored statistics of the reference." in text


def test_figures_of_stored_jpegs_have_their_own_name(results):
    renamed = {f"rfd_photos_jpeg75{end}": 25.0 for end in ("", "_spread", "_infinity")}
    gone = ("rfd_photos", "rfd_photos_spread", "rfd_photos_infinity")
    change_all(results, "evaluate_tokenizer", {**renamed, "protocol": "fvq-released"}, gone)
    assert "measured: rfd_photos_jpeg75 ↓" in to_markdown(build_tables(read_study(results, parameters()))[0]).replace(
        "\\", ""
    )
    on_inception(results)
    study = read_study(results, parameters())
    assert "measured: rFID of JPEGs ↓" in to_markdown(build_tables(study)[0])
    assert headline_figures(study)["fvq.rfid_jpeg75"] == 25.0


def test_float16_distances_have_their_own_names(results):
    changes = {"protocol_distances": "float16", "precision_float16": 0.61, "recall_float16": 0.32}
    change_all(results, "evaluate_generator", changes, gone=("precision", "recall"))
    study = read_study(results, parameters())
    text = to_markdown(build_tables(study)[1])
    assert markdown_cells(text, "FVQ-L")[-2:] == ["0.61", "0.32"]
    assert "float16 distances" in text
    assert headline_figures(study)["fvq_l.recall_float16"] == 0.32


def test_what_a_protocol_leaves_out_is_a_dash(results, tmp_path):
    left_out = dict.fromkeys(("protocol_score", *OF_NEIGHBOURS), "none")
    gone = ("precision", "recall", "is_photos", "is_photos_std")
    change_all(results, "evaluate_generator", {**left_out, "protocol": "pytorch-fid"}, gone)
    render_study(results, tmp_path / "reports", parameters())
    cells = markdown_cells(table(tmp_path / "reports", "table_2.md"), "FVQ-L")
    assert cells[-4:] == ["**61.7** (± 0.9)", "—", "—", "—"]
    assert "fvq_l.precision" not in json.loads((tmp_path / "reports" / "metrics.json").read_text())


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
    render_study(rendered[0] / "results" / "smoke-photos", tmp_path / "again", parameters())
    assert contents(tmp_path / "again") == contents(reports)


def test_files_carry_no_date_and_no_software(reports):
    for path in (reports / "figures").iterdir():
        data = path.read_bytes()
        assert b"<dc:date>" not in data and b"<metadata>" not in data and b"Software" not in data


def test_full_disk_leaves_what_was_there(rendered, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    reports = tmp_path / "reports"
    (reports / "tables").mkdir(parents=True)
    (reports / "tables" / "table_1.md").write_text("before")
    monkeypatch.setattr("fvq.study.render.render_report", full_disk)
    with pytest.raises(OSError, match="No space left"):
        render_study(rendered[0] / "results" / "smoke-photos", reports, parameters())
    assert contents(reports) == {"tables/table_1.md": b"before"}


def test_second_render_replaces_the_first_and_leaves_nothing_else(results, tmp_path):
    reports = tmp_path / "reports"
    render_study(results, reports, parameters())
    rows = {name: row for name, row in parameters()["rows"].items() if name != "mlp5"}
    written = render_study(results, reports, parameters(rows=rows, generators={}))
    assert {path for path in reports.rglob("*") if path.is_file()} == set(written)
    assert not (reports / "figures" / "samples_vq.png").exists()
    assert "MLP-5" not in (reports / "usage.csv").read_text()
    assert "This study has no generator." in table(reports, "table_2.md")


def test_importing_needs_no_torch():
    code = "import sys, fvq.study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(results, reports, match, **changes):
    """Rendering stops with one line that holds ``match``, and what was there before stays."""
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
