"""The figures of large studies: which rows share a panel, what a reader sees who hovers, and where on the drawing."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import test_study_fabricated
from test_study_fabricated import fabricate, parameters, record_outputs, tokenizer_metrics, write_json

from fvq.runtime.text import percent, significant
from fvq.study.drawings.bridge import bridge_figure
from fvq.study.drawings.drawing import Plot, draw, hover
from fvq.study.drawings.experiments import code_map_figure, stability_figure, trajectory_figure
from fvq.study.drawings.figures import (
    reconstructed_rows,
    reconstruction_figure,
    sample_figure,
    study_figures,
    write_figures,
)
from fvq.study.drawings.generation import generation_figure
from fvq.study.drawings.palette import panel_colours, row_colours, row_lines
from fvq.study.drawings.pictures import ERROR_SCALE, error_images
from fvq.study.drawings.style import STYLE
from fvq.study.drawings.training import error_figure, usage_figure
from fvq.study.groups import base_row, bridge_sweeps, groups, square_rows
from fvq.study.results import read_study
from fvq.study.settings import bridge_patch, bridge_width, differences

SVG = "{http://www.w3.org/2000/svg}"
QUARTER, BASE, FOUR, SIXTEEN = 256, 1024, 4096, 16384
BRIDGE = {"patch": None, "width": None, "depth": 2, "heads": 4, "layout": "grid", "block": "vit"}


def row(label, quantizer="fvq", bridge=None, **changes):
    settings = {"label": label, "quantizer": quantizer, "codebook_size": BASE, "code_dim": 32, "ratio": 4}
    settings |= {"epochs": None, "steps": 1000, "annealing": "linear"}
    inner = changes.get("options", {}).get("inner", quantizer)
    return settings | {"bridge": {**BRIDGE, **(bridge or {})} if inner == "fvq" else None} | changes


# Every shape of the paper's tables and figures.
ROWS = {
    "fvq": row("FVQ"),
    "vq": row("VQ", "vq"),
    "mlp5": row("MLP-5", "mlp5"),
    "linear": row("Linear", "linear"),
    "fvq_no_annealing": row("FVQ without annealing", annealing="none"),
    "vq_l2": row("VQ on the sphere, 8 channels", "vq-l2", code_dim=8, annealing="none"),
    "vq_no_annealing": row("VQ without annealing", "vq", annealing="none"),
    "fvq_d4": row("FVQ, 4 channels", code_dim=4, bridge={"width": 32}),
    "fvq_d8": row("FVQ, 8 channels", code_dim=8, bridge={"width": 32}),
    "fvq_long": row("FVQ, three times as long", steps=3000),
    "fvq_4x": row("FVQ, 4 × the codes", codebook_size=FOUR),
    "fvq_4x_wide": row("FVQ, 4 × the codes, twice the channels", codebook_size=FOUR, code_dim=64),
    "fvq_4x_wide_long": row(
        "FVQ, 4 × the codes, twice the channels, three times as long", codebook_size=FOUR, code_dim=64, steps=3000
    ),
    "fvq_16x": row("FVQ, 16 × the codes", codebook_size=SIXTEEN),
    "fvq_16x_long": row("FVQ, 16 × the codes, three times as long", codebook_size=SIXTEEN, steps=3000),
    "vq_l2_fine": row("VQ on the sphere, 8 channels, half the ratio", "vq-l2", code_dim=8, ratio=2, annealing="none"),
    "fvq_fine": row("FVQ, half the ratio", ratio=2),
    "linear_no_annealing": row("Linear without annealing", "linear", annealing="none"),
    "mlp5_16x_no_annealing": row(
        "MLP-5, 16 × the codes, without annealing", "mlp5", codebook_size=SIXTEEN, annealing="none"
    ),
    "mlp5_16x": row("MLP-5, 16 × the codes", "mlp5", codebook_size=SIXTEEN),
    "fvq_16x_no_annealing": row("FVQ, 16 × the codes, without annealing", codebook_size=SIXTEEN, annealing="none"),
    "fvq_no_warmup": row("FVQ without warm-up", warmup=0),
    "fvq_cosine": row("FVQ, cosine annealing", annealing="cosine"),
    "fvq_width_quarter": row("FVQ, bridge of a quarter of the width", bridge={"width": 8}),
    "fvq_width_half": row("FVQ, bridge of half the width", bridge={"width": 16}),
    "fvq_width_double": row("FVQ, bridge of twice the width", bridge={"width": 64}),
    "fvq_depth_1": row("FVQ, bridge of 1 block", bridge={"depth": 1}),
    "fvq_depth_4": row("FVQ, bridge of 4 blocks", bridge={"depth": 4}),
    "fvq_patch_small": row("FVQ, a quarter of the patch", bridge={"patch": 1}),
    "fvq_patch_large": row("FVQ, 4 × the patch", bridge={"patch": 16}),
    "fvq_quarter_patch_small": row(
        "FVQ, a quarter of the codes, a quarter of the patch", codebook_size=QUARTER, bridge={"patch": 1}
    ),
    "fvq_quarter_patch_middle": row("FVQ, a quarter of the codes", codebook_size=QUARTER, bridge={"patch": 4}),
    "fvq_quarter_patch_large": row(
        "FVQ, a quarter of the codes, 4 × the patch", codebook_size=QUARTER, bridge={"patch": 16}
    ),
    "rq_fvq": row("FVQ (RQ-VAE)", "residual", ratio=8, options={"inner": "fvq", "depth": 4}),
    "var_fvq": row("FVQ (VAR)", "multiscale", options={"inner": "fvq", "scales": [1, 2, 4, 8]}),
    "rq_vq": row("VQ (RQ-VAE)", "residual", ratio=8, options={"inner": "vq", "depth": 4}),
    "var_vq": row("VQ (VAR)", "multiscale", options={"inner": "vq", "scales": [1, 2, 4, 8]}),
}
USED = {"vq": 0.025, "vq-l2": 0.9, "linear": 0.4, "mlp5": 0.97, "fvq": 1.0, "residual": 0.8, "multiscale": 0.9}
REPEATED = {("fvq", 1): 24.0, ("fvq", 2): 27.0, ("fvq_width_half", 1): 31.0}


@pytest.fixture(scope="module", autouse=True)
def style():
    """As ``study_figures`` draws."""
    with mpl.rc_context(STYLE):
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All 37 rows, two generators, and some rows trained with further seeds."""
    folder = tmp_path_factory.mktemp("results") / "tables"
    random = np.random.default_rng(0)
    figures = {
        name: (int(1024 * USED[settings["quantizer"]]), 0.007 + 0.004 * random.random(), 25 + 30 * random.random())
        for name, settings in ROWS.items()
    }
    figures["fvq"] = (1024, 0.0071, 25.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_study_fabricated, "TOKENIZERS", figures)
        fabricate(folder)
        for name, settings in ROWS.items():
            metrics = tokenizer_metrics(name) | {"codebook_size": settings["codebook_size"]}
            write_json(folder / "evaluate_tokenizer" / name / "metrics.json", metrics)
            for seed in (1, 2):
                distance = {"rfd_photos": REPEATED.get((name, seed), 40.0)}
                write_json(folder / "evaluate_repeat" / f"{name}-{seed}" / "metrics.json", metrics | distance)
        record_outputs(folder)
    seeds = {"rows": ["fvq", "fvq_width_half"], "seeds": [1, 2]}
    return read_study(folder, parameters(study="tables", rows=ROWS, repeats=seeds) | {"swept_generators": {}})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return read_study(fabricate(tmp_path_factory.mktemp("results") / "smoke-photos"), parameters())


@pytest.fixture(scope="module")
def curves(study):
    """The two large figures of training, drawn once."""
    figures = usage_figure(study), error_figure(study)
    return [(figure, draw(figure, "figure")) for figure in figures]


def renamed(study):
    """The same study under names that say nothing."""
    rows = [dataclasses.replace(row, name=f"r{number}") for number, row in enumerate(study.rows)]
    return dataclasses.replace(study, rows=tuple(rows))


# --- which rows belong together --------------------------------------------------------------------------------------


def test_every_row_is_in_one_group_whatever_its_name(study):
    found = {group.title: [row.label for row in group.rows] for group in groups(renamed(study).rows)}
    assert sorted(label for labels in found.values() for label in labels) == sorted(row.label for row in study.rows)
    assert {title: len(labels) for title, labels in found.items()} == {
        "projector and annealing, 1,024 codes": 7,
        "projector and annealing, 16,384 codes": 4,
        "channels, ratio, length": 6,
        "size of the codebook": 5,
        "schedule and options": 2,
        "patch of the bridge": 4,
        "width and depth of the bridge": 5,
        "several codes a place": 4,
    }
    assert found["schedule and options"] == ["FVQ without warm-up", "FVQ, cosine annealing"]
    assert "FVQ, 16 × the codes, three times as long" in found["size of the codebook"]


def test_the_base_row_is_the_one_that_others_vary(study):
    assert base_row(study.rows).name == "fvq"
    backwards = base_row(study.rows[::-1])
    assert (backwards.name, [row.name for row in square_rows(study.rows)]) == (
        "fvq",
        ["fvq", "linear", "fvq_no_annealing", "linear_no_annealing"],
    )


def test_a_number_left_open_is_the_number_that_follows(study):
    rows = {row.name: row for row in study.rows}
    assert differences(rows["fvq_16x"], rows["fvq"]) == {"codebook_size"}
    assert differences(rows["fvq_4x_wide"], rows["fvq_4x"]) == {"code_dim"}
    assert differences(rows["fvq_d4"], rows["fvq"]) == {"code_dim"}
    assert differences(rows["fvq_quarter_patch_middle"], rows["fvq"]) == {"codebook_size"}
    assert differences(rows["var_fvq"], rows["var_vq"]) == {"quantizer"}
    assert differences(rows["fvq_no_warmup"], rows["fvq_cosine"]) == {"warmup", "shape"}
    explicit = dataclasses.replace(rows["fvq"], settings=row("FVQ", bridge={"patch": 4, "width": 32}))
    assert differences(explicit, rows["fvq_16x"]) == {"codebook_size"}
    assert (bridge_width(rows["fvq_d4"]), bridge_width(rows["fvq_4x_wide"])) == (32, 64)
    assert (bridge_patch(rows["fvq"]), bridge_patch(rows["fvq_16x"]), bridge_patch(rows["var_fvq"])) == (4, 16, 4)


def test_colours_of_the_default_rows_are_those_of_their_kinds_everywhere(small, study):
    default = row_colours(small.rows)
    assert default == {
        "vq": "#D55E00",
        "linear": "#E69F00",
        "mlp5": "#009E73",
        "fvq": "#0072B2",
        "fvq_no_annealing": "#CC79A7",
    }
    large = row_colours(study.rows)
    assert {name: large[name] for name in default} == default
    assert large["fvq_4x"] == large["rq_fvq"] == large["fvq"]
    assert large["vq_l2"] not in default.values()
    assert {name for name, line in row_lines(study.rows).items() if line == "--"} == {
        name for name, settings in ROWS.items() if settings["annealing"] == "none"
    }


def test_no_two_lines_of_a_panel_look_alike(study):
    lines = row_lines(study.rows)
    for group in groups(study.rows):
        looks = {(colour, lines[name]) for name, colour in panel_colours(group.rows, study.rows).items()}
        assert len(looks) == len(group.rows)


# --- panels ----------------------------------------------------------------------------------------------------------


def test_few_rows_share_one_panel(small):
    for figure in (usage_figure(small), error_figure(small)):
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [row.label for row in small.rows]


def test_many_rows_have_a_panel_for_each_group_and_the_legends_leave_room(study, curves):
    for figure, _ in curves:
        assert [axes.get_legend().get_title().get_text() for axes in figure.axes] == [
            group.title for group in groups(study.rows)
        ]
        for axes, group in zip(figure.axes, groups(study.rows), strict=True):
            drawn = {line.get_label() for line in axes.lines if not line.get_label().startswith("_")}
            reference = {f"{group.reference.label}, for comparison"} if group.reference else set()
            assert drawn == {row.label for row in group.rows} | reference
            assert axes.get_legend().get_window_extent().x1 <= axes.bbox.x1 + 2
        assert sum(axes.get_position().height for axes in figure.axes[::2]) > 0.5
        assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [{axes.get_yscale() for axes in figure.axes} for figure, _ in curves] == [{"linear"}, {"log"}]


def test_many_maps_show_the_square_and_its_neighbours(study):
    figure = code_map_figure(study)
    titles = [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes if axes.axison]
    assert titles == [
        "FVQ",
        "VQ",
        "Linear",
        "FVQ without annealing",
        "VQ without annealing",
        "Linear without annealing",
    ]
    assert figure.get_supxlabel() == f"6 of {len(study.code_maps)} rows"


def test_many_watched_rows_show_the_compared_ones(study):
    figure = stability_figure(study)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [row.label for row in groups(study.rows)[0].rows]


# --- what hovering shows, and where ----------------------------------------------------------------------------------


def polylines(svg, colour):
    """The lines of a colour in an SVG, (vertices, 2) each."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"stroke: {colour.lower()}" in path.get("style", "") and "L" in path.get("d", ""):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d"))]
            found.append(np.array(numbers).reshape(-1, 2))
    return found


def distance_to(line, point):
    """From a point to a polyline."""
    start, along = line[:-1], np.diff(line, axis=0)
    share = np.clip(((point - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-12), 0, 1)
    return np.linalg.norm(start + share[:, None] * along - point, axis=1).min()


@pytest.mark.parametrize("make", [usage_figure, error_figure, stability_figure])
def test_points_lie_on_their_lines(small, make):
    drawing = draw(make(small), "figure")
    assert len(drawing.points) >= 5 * 20
    _, _, width, height = (float(n) for n in ElementTree.fromstring(drawing.svg).get("viewBox").split())
    for point in drawing.points:
        assert 0 <= point.x <= width and 0 <= point.y <= height
        assert min(distance_to(line, (point.x, point.y)) for line in polylines(drawing.svg, point.colour)) < 0.6


def test_points_of_a_line_are_its_vertices_with_their_values(small):
    fvq = small.rows[3].history
    for make, values, in_words in ((usage_figure, fvq.usage, percent), (error_figure, fvq.error, significant)):
        drawing = draw(make(small), "figure")
        points = [point for point in drawing.points if point.text.startswith("FVQ\n")]
        steps = range(50, 1001, 50)
        assert [point.text.splitlines()[1:] for point in points] == [
            [f"step {step:,}", in_words(value)] for step, value in zip(steps, values.tolist(), strict=True)
        ]
        line = max(polylines(drawing.svg, points[0].colour), key=len)
        np.testing.assert_allclose(line[[0, -1]], [(p.x, p.y) for p in (points[0], points[-1])], atol=0.6)


def test_points_of_every_panel_lie_on_lines_of_theirs(study, curves):
    for _, drawing in curves:
        assert {point.text.splitlines()[0] for point in drawing.points} == {row.label for row in study.rows}
        lines = {colour: polylines(drawing.svg, colour) for colour in {point.colour for point in drawing.points}}
        for point in drawing.points[::7]:
            assert min(distance_to(line, (point.x, point.y)) for line in lines[point.colour]) < 0.6


def test_long_lines_are_thinned_and_what_is_not_shown_has_no_point():
    figure = Plot(figsize=(4, 3))
    axes = figure.add_subplot()
    values = np.linspace(-1, 8, 1000)
    axes.set_yscale("log")
    axes.set_ylim(0.01, 5)
    axes.plot(range(1000), values)
    hover(axes, range(1000), values, [str(step) for step in range(1000)], "#123456")
    long = Plot(figsize=(4, 3))
    hover(
        long.add_subplot(xlim=(0, 1000), ylim=(0, 1)), range(1000), np.full(1000, 0.5), list(map(str, range(1000))), ""
    )
    shown = [float(values[int(point.text)]) for point in draw(figure, "figure").points]
    assert len(shown) > 200 and min(shown) > 0.009 and max(shown) < 5.2
    texts = [point.text for point in draw(long, "figure").points]
    assert (len(texts), texts[0], texts[-1]) == (400, "0", "999")


def test_paths_of_the_toy_have_a_point_for_each_step(small):
    drawing = draw(trajectory_figure(small.trajectories), "trajectories")
    assert len(drawing.points) == 2 * sum(len(run.z_e) for run in small.trajectories)
    assert drawing.points[0].text == "plain VQ\nz_q, step 0"
    for point in drawing.points:
        assert min(distance_to(line, (point.x, point.y)) for line in polylines(drawing.svg, point.colour)) < 0.6


# --- generation against reconstruction -------------------------------------------------------------------------------


def markers(svg):
    """Where an SVG repeats a marker."""
    uses = ElementTree.fromstring(svg).iter(f"{SVG}use")
    return np.array([(float(use.get("x")), float(use.get("y"))) for use in uses if use.get("x")])


def test_generators_stand_beside_those_that_the_paper_prints(small):
    figure = generation_figure(small)
    drawing = draw(figure, "figure")
    assert [point.text for point in drawing.points if "fd_photos" in point.text] == [
        "LlamaGen on FVQ\nrfd_photos of FVQ: 25.0 ± 0.4\nfd_photos: 61.7 ± 0.9",
        "LlamaGen on VQ\nrfd_photos of plain VQ: 51.3 ± 0.4\nfd_photos: 125 ± 2",
    ]
    texts = [point.text for point in drawing.points]
    assert "FVQ-L, the paper's figures\nrFID of FVQ‡: 1.17\nFID: 2.39" in texts
    assert "LlamaGen-XL, the paper's figures\nrFID of LlamaGen: 2.19\nFID: 3.39" in texts
    assert len(texts) == 2 + 8
    for point in drawing.points:
        assert np.linalg.norm(markers(drawing.svg) - (point.x, point.y), axis=1).min() < 0.6
    here, printed = figure.axes
    assert here.get_title(loc="left") == "measured here: photos"
    assert "the paper's own figures" in printed.get_title(loc="left")


def test_a_generator_stands_at_the_tokenizer_that_it_learned_from(study):
    texts = [point.text for point in draw(generation_figure(study), "figure").points]
    # 25.5, 24 and 27 of three seeds, of which the first made its tokens.
    assert "LlamaGen on FVQ\nrfd_photos of FVQ: 25.5 ± 0.4\nfd_photos: 61.7 ± 0.9" in texts
    assert "over seeds" not in generation_figure(study).get_supxlabel()


def test_figures_that_a_study_cannot_have_are_not_made(small, study):
    assert "bridge" not in (made := study_figures(small))
    assert {"tokenizer_and_generator", "samples_fvq_l"} <= made.keys()
    few = dataclasses.replace(small, generators=())
    assert "tokenizer_and_generator" not in study_figures(few)


# --- the bridge's settings -------------------------------------------------------------------------------------------


def test_the_bridge_has_a_panel_for_each_setting_that_rows_vary(study):
    sweeps = bridge_sweeps(renamed(study).rows[::-1])
    assert {name: [row.label for row in rows] for name, rows in sweeps.items()} == {
        name: [ROWS[row]["label"] for row in rows]
        for name, rows in {
            "width": ["fvq_width_quarter", "fvq_width_half", "fvq", "fvq_width_double"],
            "depth": ["fvq_depth_1", "fvq", "fvq_depth_4"],
            "patch": [f"fvq_quarter_patch_{size}" for size in ("small", "middle", "large")]
            + ["fvq_patch_small", "fvq", "fvq_patch_large"],
        }.items()
    }
    drawing = draw(bridge_figure(study), "bridge")
    texts = [point.text for point in drawing.points]
    assert len(texts) == 4 + 3 + 6
    assert "FVQ\nwidth d' of a token: 32\nrfd_photos 26 ± 2\nusage 100%" in texts
    for point in drawing.points:
        assert min(distance_to(line, (point.x, point.y)) for line in polylines(drawing.svg, point.colour)) < 0.6


def test_only_settings_that_vary_have_a_panel(small, study):
    assert bridge_sweeps(small.rows) == {}
    few = tuple(row for row in study.rows if row.name in ("vq", "fvq", "fvq_depth_4", "fvq_4x"))
    assert len(bridge_figure(dataclasses.replace(study, rows=few)).axes) == 1


# --- pictures --------------------------------------------------------------------------------------------------------


def test_errors_are_absolute_and_magnified():
    original = np.full((1, 1, 4, 3), 100, np.uint8)
    reconstruction = original + np.array([0, 7, -7, 155], np.int16).reshape(1, 1, 4, 1).astype(np.uint8)
    errors = error_images(original, reconstruction)
    assert errors.dtype == np.uint8
    assert errors[0, 0, :, 0].tolist() == [0, 7 * ERROR_SCALE, 7 * ERROR_SCALE, 255]


def test_each_row_shows_its_reconstructions_and_their_errors(small):
    figure = reconstruction_figure(small)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[:3] == ["original", "plain VQ", f"its error × {ERROR_SCALE}"]
    assert len(labels) == 1 + 2 * len(small.rows)
    first = small.rows[0]
    shown = figure.axes[2].images[0].get_array()
    np.testing.assert_array_equal(shown[:, :32], error_images(first.original, first.reconstruction)[0])
    assert "of 5 rows" not in figure.get_supxlabel()


def test_of_many_rows_the_square_and_the_best_are_shown(study):
    rows, words = reconstructed_rows(study)
    assert len(rows) == 8
    assert rows == sorted(rows, key=study.rows.index)
    square = square_rows(study.rows)
    assert [row for row in rows if row in square] == square
    worst = max(row.figures["rfd_photos"] for row in rows if row not in square)
    assert all(row.figures["rfd_photos"] >= worst for row in study.rows if row not in rows)
    assert words.startswith("8 of 37 rows: ")
    assert "8 of 37 rows" in reconstruction_figure(study).get_supxlabel()


# --- files -----------------------------------------------------------------------------------------------------------


def test_large_figures_are_repeatable(study, curves):
    assert draw(usage_figure(study), "figure") == curves[0][1]
    for make in (bridge_figure, generation_figure):
        first, again = (draw(make(study), "figure") for _ in range(2))
        assert first == again
    # The layout's solver differs in its last digits from run to run, and an SVG's ids are hashes of positions.
    for axes in curves[0][0].axes:
        assert axes.get_position().bounds == pytest.approx(np.round(axes.get_position().bounds, 5), abs=1e-12)


def test_drawings_are_the_files_and_a_png_moves_no_point(small, tmp_path, monkeypatch):
    made = {"usage": usage_figure(small), "samples_vq": sample_figure(small, small.generators[0])}
    monkeypatch.setattr("fvq.study.drawings.figures.study_figures", lambda _: made)
    drawings = write_figures(small, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{stem}.{kind}" for stem in made for kind in ("svg", "png")
    }
    for stem, drawing in drawings.items():
        assert (tmp_path / "figures" / f"{stem}.svg").read_text(encoding="utf-8") == drawing.svg
    assert drawings["usage"] == draw(usage_figure(small), "usage")
    assert json.dumps([dataclasses.astuple(point) for point in drawings["usage"].points])
    assert drawings["samples_vq"].points == ()
