"""Sweeps over guidance scales in the study: read as written, drawn, tabled, on the page; what is refused."""

import csv
import dataclasses
import re
import shutil
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from test_study_fabricated import fabricate, on_inception, parameters, provenance, record_outputs, write_lines
from test_study_render import STEMS, Page, contents

from fvq.runtime.errors import UserError
from fvq.study import render_study
from fvq.study.drawings.drawing import Drawing
from fvq.study.drawings.figures import figure_bytes, study_figures, usage_figure
from fvq.study.drawings.guidance import guidance_figure
from fvq.study.drawings.style import STYLE
from fvq.study.guidance import images_in_words, nearest_in_words
from fvq.study.results import read_study
from fvq.study.tables.guidance import guidance_table

# scale: samples, precision, recall, score, distance
SWEEPS = {
    "fvq_l": {
        1.0: (500, 0.31, 0.44, 2.51, 88.123456),
        1.65: (500, 0.42, 0.38, 3.02, 61.25),
        2.0: (500, 0.51, 0.27, 3.47, 73.5),
    },
    "vq": {1.0: (500, 0.2, 0.3, 2.2, 120.5), 2.0: (500, 0.3, 0.1, 2.1, 140.25)},
}
NAMES = ("samples", "precision", "recall", "is_photos", "fd_photos")


def lines(name):
    return [{"cfg_scale": scale, **dict(zip(NAMES, row, strict=True))} for scale, row in SWEEPS[name].items()]


def write_sweep(results, name, rows):
    folder = results / "sweep_guidance" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "guidance.csv", rows)
    provenance(folder, "sweep_guidance", name, 33.0)


def swept(*names):
    rows = {name: row for name, row in parameters()["rows"].items() if name in ("vq", "fvq")}
    return parameters(rows=rows, swept_generators=dict.fromkeys(names, True))


def draw(study):
    with mpl.rc_context(STYLE):
        return guidance_figure(study)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both generators were swept, whichever the parameters name."""
    folder = fabricate(tmp_path_factory.mktemp("results") / "smoke-photos")
    for name in SWEEPS:
        write_sweep(folder, name, lines(name))
    return folder


@pytest.fixture(scope="module")
def study(results):
    return read_study(results, swept("fvq_l", "vq"))


def few_figures(study, folder):
    """In place of all plots, which take long: empty ones, and that of the sweeps as files."""
    folder.mkdir()
    if study.sweeps:
        for kind in ("svg", "png"):
            (folder / f"guidance.{kind}").write_bytes(figure_bytes(draw(study), kind, "guidance"))
    return dict.fromkeys(STEMS, Drawing("<svg></svg>", ()))


def rendered(results, folder, parameters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fvq.study.render.write_figures", few_figures)
        render_study(results, folder, parameters)
    return folder


@pytest.fixture(scope="module")
def reports(results, tmp_path_factory):
    return rendered(results, tmp_path_factory.mktemp("study") / "reports", swept("fvq_l", "vq"))


@pytest.fixture(scope="module")
def without(results, tmp_path_factory):
    """The reports of the same results where nothing is swept."""
    return rendered(results, tmp_path_factory.mktemp("without") / "reports", swept())


# --- reading ---------------------------------------------------------------------------------------------------------


def test_sweeps_as_written_in_the_order_of_the_parameters(study):
    assert [sweep.generator for sweep in study.sweeps] == ["fvq_l", "vq"]
    for sweep in study.sweeps:
        written = lines(sweep.generator)
        assert sweep.samples == 500
        assert sweep.scales.tolist() == [line["cfg_scale"] for line in written]
        assert sweep.distance.tolist() == [line["fd_photos"] for line in written]
        assert sweep.score.tolist() == [line["is_photos"] for line in written]
        assert sweep.precision.tolist() == [line["precision"] for line in written]
        assert sweep.recall.tolist() == [line["recall"] for line in written]


def test_only_what_the_parameters_name_is_read(results):
    assert [sweep.generator for sweep in read_study(results, swept("vq")).sweeps] == ["vq"]
    left_out = {**swept("vq"), "swept_generators": {"fvq_l": False, "vq": True}}
    assert [sweep.generator for sweep in read_study(results, left_out).sweeps] == ["vq"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(results, tmp_path):
    """A copy to break."""
    return shutil.copytree(results, tmp_path / "smoke-photos")


def refused(results, match):
    record_outputs(results)
    with pytest.raises(UserError, match=match) as caught:
        read_study(results, swept("fvq_l"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "name", "value", "match"),
    [
        (2, "fd_photos", "", "line 4: fd_photos must be a number, not nan"),
        (0, "fd_photos", "61,2", "line 2: fd_photos must be a finite number, not '61,2'"),
        (0, "is_photos", "inf", "line 2: is_photos must be a finite number, not 'inf'"),
        (1, "cfg_scale", "", "line 3: cfg_scale must be a number, not nan"),
        (1, "cfg_scale", 1.0, "line 3: cfg_scale must increase, not 1"),
        (2, "cfg_scale", 1.5, "line 4: cfg_scale must increase, not 1.5"),
        (0, "cfg_scale", 0.5, "line 2: cfg_scale must be at least 1, not 0.5"),
        (0, "fd_photos", -3, "line 2: fd_photos must be at least 0, not -3"),
        (1, "is_photos", 0, "line 3: is_photos must be above 0, not 0"),
        (1, "recall", 1.2, "line 3: recall must lie in 0 to 1, not 1.2"),
        (1, "precision", -0.1, "line 3: precision must lie in 0 to 1, not -0.1"),
        (0, "samples", 0, "line 2: samples must be a number of images, not 0"),
        (0, "samples", 1.5, r"line 2: samples must be a number of images, not 1\.5"),
        (2, "samples", 400, "line 4: samples must be 500 as in the first line, not 400"),
    ],
)
def test_a_number_that_cannot_be(broken, line, name, value, match):
    rows = lines("fvq_l")
    rows[line][name] = value
    write_sweep(broken, "fvq_l", rows)
    refused(broken, rf"sweep_guidance/fvq_l/guidance\.csv: {match}")


def test_a_damaged_or_missing_file(broken):
    path = broken / "sweep_guidance" / "fvq_l" / "guidance.csv"
    write_sweep(broken, "fvq_l", [{**line, "recall": ""} for line in lines("vq")])
    path.write_text(path.read_text().replace("recall", "recoil"))
    refused(broken, r"guidance\.csv: lacks the column recall")
    path.write_bytes(b"\xff\xfe\x00cfg")
    refused(broken, r"guidance\.csv: not valid CSV")
    path.write_text("\n")  # as the stage writes it for a generator that is not swept
    refused(broken, r"guidance\.csv: holds no line of figures")
    path.unlink()
    refused(broken, r"guidance\.csv: no such file")


def test_figures_of_another_extractor(broken):
    rows = [{name.replace("photos", "digits"): value for name, value in line.items()} for line in lines("fvq_l")]
    write_sweep(broken, "fvq_l", rows)
    refused(broken, r"guidance\.csv: lacks the column fd_photos")


def test_a_generator_that_is_not_there(results):
    with pytest.raises(UserError, match="swept_generators: there is no generator fqv in this study"):
        read_study(results, swept("fqv"))


# --- the plot --------------------------------------------------------------------------------------------------------


def test_the_plot_shows_every_scale_and_fills_the_best(study):
    figure = draw(study)
    left, right = figure.axes
    assert left.get_title(loc="left") == "fd_photos, lower is better"
    assert right.get_title(loc="left") == "is_photos, higher is better"
    line, best, other, best_other = left.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1.0, 1.65, 2.0], [88.123456, 61.25, 73.5])
    assert (best.get_xdata().tolist(), best.get_ydata().tolist()) == ([1.65], [61.25])
    assert best_other.get_xdata().tolist() == [1.0]
    assert right.lines[1].get_xdata().tolist() == [2.0]
    assert (line.get_markerfacecolor(), best.get_markerfacecolor()) == ("none", best.get_color())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LlamaGen on FVQ", "LlamaGen on VQ"]
    # A generator has its tokenizer's colour, and a marker of its own where others share the tokenizer.
    curves = {line.get_label(): line.get_color() for line in usage_figure(study).axes[0].lines}
    assert (line.get_color(), other.get_color()) == (curves["FVQ"], curves["plain VQ"])
    assert line.get_marker() != other.get_marker()


def test_the_plot_is_repeatable_and_keeps_labels_as_text(study):
    generators = (dataclasses.replace(study.generators[0], label="50% $x$ <&"), study.generators[1])
    named = dataclasses.replace(study, generators=generators)
    first, again = (figure_bytes(draw(named), "svg", "guidance") for _ in range(2))
    assert first == again
    ElementTree.fromstring(first)
    assert b"50% $x$ &lt;&amp;" in first


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_table_marks_the_best_of_each_sweep(reports):
    text = (reports / "tables/guidance.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 5 * 4 and all((reports / "tables" / link).is_file() for link in links)
    assert links[0].endswith("/sweep_guidance/fvq_l/provenance.json")
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text)
    rows = [line for line in text.splitlines() if line.startswith("| LlamaGen")]
    assert rows == [
        "| LlamaGen on FVQ | 1 | 88.1 | 2.51 | 0.31 | 0.44 |",
        "| LlamaGen on FVQ | 1.65 | **61.2** | 3.02 | 0.42 | 0.38 |",
        "| LlamaGen on FVQ | 2 | 73.5 | **3.47** | 0.51 | 0.27 |",
        "| LlamaGen on VQ | 1 | **120** | **2.20** | 0.20 | 0.30 |",
        "| LlamaGen on VQ | 2 | 140 | 2.10 | 0.30 | 0.10 |",
    ]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "500 images a scale" in text
    assert "not FID" in text


def test_latex_is_balanced(reports):
    text = (reports / "tables/guidance.tex").read_text(encoding="utf-8")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert {line.count("&") for line in text.splitlines() if " & " in line} == {5}
    assert "% fvq_l: " in text and "sweep_guidance/fvq_l/provenance.json" in text
    assert r"fd\_photos $\downarrow$" in text
    assert r"\textbf{61.2}" in text


def test_csv_is_in_full_precision(reports):
    with (reports / "tables/guidance.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    written = [{"row": name, **line} for name in ("fvq_l", "vq") for line in lines(name)]
    for line in found:
        assert line.pop("provenance").endswith(f"sweep_guidance/{line['row']}/provenance.json")
        assert line.pop("seed") == "7"
    assert [{key: value if key == "row" else float(value) for key, value in line.items()} for line in found] == written


def test_only_inception_features_give_an_fid(broken):
    renamed = on_inception(broken)
    write_sweep(broken, "vq", [{renamed.get(name, name): value for name, value in row.items()} for row in lines("vq")])
    found = read_study(broken, swept("vq"))
    assert found.sweeps[0].distance.tolist() == [120.5, 140.25]
    assert [column.heading for column in guidance_table(found).columns[2:4]] == ["FID ↓", "inception_score ↑"]
    assert draw(found).axes[0].get_title(loc="left") == "FID, lower is better"


# --- the page --------------------------------------------------------------------------------------------------------


def words(html):
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


def test_the_page_shows_the_sweep(reports):
    html = (reports / "index.html").read_text(encoding="utf-8")
    page, text = Page(html), words(html)
    assert "guidance" in page.ids and "#guidance" in page.addresses
    assert len(page.ids) == len(set(page.ids))
    assert "LlamaGen on FVQ: fd_photos is smallest at scale 1.65 (61.2; 88.1 at 1)." in text
    assert "LlamaGen on VQ: fd_photos is smallest at scale 1 (120)." in text
    assert "it is not comparable with other figures, and small differences between scales say nothing" in text
    for kind in ("figures/guidance.svg", "figures/guidance.png", "tables/guidance.tex", "tables/guidance.csv"):
        assert kind in page.addresses
        assert (reports / kind).is_file()
    assert '<th class="number">sweep guidance</th>' in html
    # Unrounded, and with the run that measured it.
    assert 'data-value="88.123456"><a class="source" href="#run-sweep_guidance-fvq_l"' in html
    assert "33.0 s" in text


def test_numbers_of_images_that_differ_are_both_named(study):
    other = dataclasses.replace(study.sweeps[1], samples=2000)
    assert images_in_words([study.sweeps[0], other]).startswith("500 or 2,000 images a scale")


def test_without_a_sweep_nothing_of_it_is_there(results, reports, without):
    html = (without / "index.html").read_text(encoding="utf-8")
    assert "guidance" not in html.lower()
    assert "guidance" not in study_figures(read_study(results, swept()))
    assert "guidance" in study_figures(read_study(results, swept("vq")))
    added = {f"figures/guidance.{kind}" for kind in ("svg", "png")}
    added |= {f"tables/guidance.{kind}" for kind in ("md", "tex", "csv")}
    both, alone = contents(reports), contents(without)
    assert both.keys() - alone.keys() == added
    # All else is the same to the byte, the page aside.
    assert {name for name in alone if alone[name] != both[name]} == {"index.html"}


def test_the_sentence_for_one_scale(study):
    one = dataclasses.replace(
        study.sweeps[0], **{name: getattr(study.sweeps[0], name)[:1] for name in ("scales", "distance", "score")}
    )
    assert nearest_in_words(one, "LlamaGen", "fid") == "LlamaGen: fid is smallest at scale 1 (88.1)."
