"""The small experiments in the study: read as written, drawn, described by their own figures; what is refused."""

import dataclasses
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from test_study_fabricated import (
    code_maps,
    fabricate,
    history,
    parameters,
    record_outputs,
    sizes,
    trajectories,
    write_json,
    write_lines,
    write_table,
)

from fvq.runtime.errors import UserError
from fvq.study import observations, render_study
from fvq.study.drawings.figures import figure_bytes, study_figures
from fvq.study.experiments import SizeCurve, read_trajectories
from fvq.study.history import read_history
from fvq.study.results import read_study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("results") / "smoke-photos")


@pytest.fixture(scope="module")
def study(results):
    return read_study(results, parameters())


@pytest.fixture(scope="module")
def figures(study):
    return study_figures(study)


@pytest.fixture(scope="module")
def html(results, tmp_path_factory):
    reports = tmp_path_factory.mktemp("study") / "reports"
    render_study(results, reports, parameters())
    return (reports / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def broken(results, tmp_path):
    """A copy to break."""
    return shutil.copytree(results, tmp_path / "smoke-photos")


def words(html):
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


# --- reading ---------------------------------------------------------------------------------------------------------


def test_trajectories_as_written_and_in_their_order(study):
    assert [run.name for run in study.trajectories] == ["plain VQ", "plain VQ with a faster codebook", "VQBridge <&"]
    columns, figures = trajectories()
    first = study.trajectories[0]
    np.testing.assert_array_equal(first.z_e, np.stack([columns["z_e_x"][:21], columns["z_e_y"][:21]], 1))
    np.testing.assert_array_equal(first.z_q, np.stack([columns["z_q_x"][:21], columns["z_q_y"][:21]], 1))
    assert first.target.tolist() == [0.2, 0.3]
    for run in study.trajectories:
        for name in ("path_ratio", "turning_net", "distance_first"):
            assert getattr(run, name) == figures[run.name][name]


def test_code_maps_as_written_in_the_order_of_the_rows(study):
    columns, figures = code_maps()
    assert [drawn.row for drawn in study.code_maps] == ["vq", "linear", "fvq", "fvq_no_annealing"]
    fvq = study.code_maps[2]
    at = columns["row"].index("fvq")
    np.testing.assert_array_equal(fvq.feature_xy[:, 0], columns["x"].to_numpy()[at : at + 90])
    np.testing.assert_array_equal(fvq.code_xy[:, 1], columns["y"].to_numpy()[at + 90 : at + 150])
    assert fvq.code_used.tolist() == columns["used"][at + 90 : at + 150]
    assert {"usage": fvq.usage, "tokens": fvq.tokens, "ceiling": fvq.ceiling} == figures["fvq"]


def test_maps_of_rows_that_the_study_no_longer_has_are_ignored(results):
    rows = {name: row for name, row in parameters()["rows"].items() if name != "linear"}
    study = read_study(results, parameters(rows=rows))
    assert "linear" not in {drawn.row for drawn in study.code_maps}


def test_sizes_smallest_first(broken):
    write_lines(broken / "small_experiments" / "sizes.csv", sizes()[::-1][12:] + sizes()[-12:])
    record_outputs(broken)
    curves = read_study(broken, parameters()).sizes
    assert [curve.codebook_size for curve in curves] == [64, 256, 1024]
    assert curves[2].loss.tolist() == [line["loss"] for line in sizes() if line["codebook_size"] == 1024]
    assert curves[2].steps.tolist() == list(range(25, 301, 25))


def test_watched_steps_and_windows_of_a_history(study):
    seen = study.rows[3].history
    written = history("fvq", 3)
    assert (seen.last_window.usage, seen.last_window.tokens) == (written[-1]["usage"], 102400)
    assert (seen.sliding.usage, seen.sliding.tokens) == (written[-1]["sliding_usage"], 65536)
    for field in dataclasses.fields(seen.stability):
        name = "step" if field.name == "steps" else field.name
        assert getattr(seen.stability, field.name).tolist() == [line[name] for line in written]


def test_watched_steps_may_be_fewer_than_the_lines(tmp_path):
    lines = history("fvq", 0)
    for line in lines[::2]:
        line |= {name: "" for name in line if name not in history("fvq", 0, watched=False)[0]}
    write_lines(tmp_path / "history.csv", lines)
    seen = read_history(tmp_path / "history.csv")
    assert seen.stability.steps.tolist() == list(range(100, 1001, 100))
    assert seen.stability.switched_share.tolist() == [line["switched_share"] for line in lines[1::2]]


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(results, match):
    record_outputs(results)
    with pytest.raises(UserError, match=match) as caught:
        read_study(results, parameters())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, True, "1.2", float("nan")])
def test_figures_that_are_no_numbers(broken, value):
    path = broken / "small_experiments" / "trajectories.json"
    figures = json.loads(path.read_text())
    figures["plain VQ"]["path_ratio"] = value
    write_json(path, figures)
    refused(broken, r"trajectories\.json: path_ratio of plain VQ must be a finite number, not ")


@pytest.mark.parametrize(
    ("file", "name", "key"),
    [
        ("small_experiments/trajectories.json", "VQBridge <&", "distance_first"),
        ("map_codes/code_map.json", "linear", "ceiling"),
    ],
)
def test_figures_that_are_missing(broken, file, name, key):
    figures = json.loads((broken / file).read_text())
    del figures[name][key]
    write_json(broken / file, figures)
    refused(broken, rf"{re.escape(file)}: lacks {key} of {name}")
    del figures[name]
    write_json(broken / file, figures)
    refused(broken, rf"{re.escape(file)}: lacks \w+ of {name}")
    write_json(broken / file, [])
    refused(broken, rf"{re.escape(file)}: must hold one object of figures, not list")


def test_a_trajectory_without_a_column_or_a_number(broken):
    path = broken / "small_experiments" / "trajectories.parquet"
    columns, _ = trajectories()
    write_table(path, "trajectories", {name: values for name, values in columns.items() if name != "z_q_y"})
    refused(broken, r"trajectories\.parquet: column z_q_y is missing")
    write_table(path, "trajectories", columns | {"z_q_y": [float("inf"), *columns["z_q_y"][1:]]})
    refused(broken, r"trajectories\.parquet: plain VQ: a coordinate is not finite")
    write_table(path, "trajectories", columns | {"z_q_y": [None, *columns["z_q_y"][1:]]})
    refused(broken, r"trajectories\.parquet: row 0: z_q_y is missing \(null\)")
    write_table(path, "code_map", columns)
    refused(broken, r"trajectories\.parquet: holds format 'code_map'")


def test_no_trajectory_at_all(broken):
    folder = broken / "small_experiments"
    empty = pa.table(trajectories()[0]).slice(0, 0)
    write_table(folder / "trajectories.parquet", "trajectories", dict(zip(empty.column_names, empty, strict=True)))
    with pytest.raises(UserError, match=r"trajectories\.parquet: holds no experiment"):
        read_trajectories(folder)


def test_a_map_without_features_or_with_codes_of_unknown_use(broken):
    path = broken / "map_codes" / "code_map.parquet"
    columns, _ = code_maps()
    write_table(path, "code_map", columns | {"kind": ["code"] * len(columns["kind"])})
    refused(broken, r"code_map\.parquet: vq: a map needs features, and codes that are used or not")
    write_table(path, "code_map", columns | {"used": [None, *columns["used"][1:-1], None]})
    refused(broken, r"code_map\.parquet: fvq_no_annealing: a map needs features, and codes that are used or not")


def test_sizes_with_a_gap(broken):
    lines = sizes()
    lines[3]["loss"] = ""
    write_lines(broken / "small_experiments" / "sizes.csv", lines)
    refused(broken, r"sizes\.csv: line 5: loss is missing")
    write_lines(broken / "small_experiments" / "sizes.csv", [{"step": 1, "loss": 1}])
    refused(broken, r"sizes\.csv: lacks the column codebook_size")


@pytest.mark.parametrize(
    ("name", "first"),
    [("switched_share", "code_displacement"), ("sliding_usage_tokens", "sliding_usage")],
)
def test_watched_columns_that_do_not_belong_together(broken, name, first):
    path = broken / "train_tokenizer" / "mlp5" / "history.csv"
    lines = history("mlp5", 2)
    lines[4][name] = ""
    write_lines(path, lines)
    refused(broken, rf"mlp5/history\.csv: {name} must stand beside every {first}")
    for line in lines:
        del line[name]
    write_lines(path, lines)
    refused(broken, rf"mlp5/history\.csv: lacks the column {name}")


# --- drawings --------------------------------------------------------------------------------------------------------


def drawn(figure):
    """The panels that show something."""
    return [axes for axes in figure.axes if axes.axison]


def test_trajectories_have_one_panel_each_with_the_same_limits(study, figures):
    panels = drawn(figures["trajectories"])
    assert [axes.get_title(loc="left").split() for axes in panels] == [run.name.split() for run in study.trajectories]
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in panels}) == 1
    (left, right), (low, high) = panels[0].get_xlim(), panels[0].get_ylim()
    for axes, run in zip(panels, study.trajectories, strict=True):
        shown = [np.column_stack(line.get_data()).tolist() for line in axes.lines]
        assert run.z_e.tolist() in shown
        assert run.z_q.tolist() in shown
        assert [run.target.tolist()] in shown
        for points in (run.z_e, run.z_q):
            assert (points > (left, low)).all()
            assert (points < (right, high)).all()
        # Arrowheads on both paths.
        assert len(axes.texts) == 6
    assert "path 1.60 × straight\nearly |z_q − z_e| 0.35" in panels[0].get_xlabel()


def test_more_experiments_than_a_line_of_panels_holds(study):
    more = [dataclasses.replace(study.trajectories[0], name=f"run {number}") for number in range(4)]
    figure = study_figures(dataclasses.replace(study, trajectories=tuple(more)))["trajectories"]
    assert len(drawn(figure)) == 4


def test_a_vector_that_never_moves_can_be_drawn(study):
    still = dataclasses.replace(study.trajectories[0], z_e=np.zeros((3, 2)), z_q=np.zeros((3, 2)), target=np.zeros(2))
    figure = study_figures(dataclasses.replace(study, trajectories=(still,)))["trajectories"]
    assert b"<svg" in figure_bytes(figure, "svg", "trajectories")


def test_code_maps_show_every_point_and_the_usage(study, figures):
    panels = drawn(figures["code_map"])
    assert panels[0].get_title(loc="left") == "plain VQ\n2.4% in use"
    for axes, drawing in zip(panels, study.code_maps, strict=True):
        features, unused, used = (np.column_stack(line.get_data()) for line in axes.lines)
        np.testing.assert_array_equal(features, drawing.feature_xy)
        np.testing.assert_array_equal(unused, drawing.code_xy[~drawing.code_used])
        np.testing.assert_array_equal(used, drawing.code_xy[drawing.code_used])
    # Grey, and the row's colour as everywhere else.
    colours = {drawing.row: axes.lines[2].get_color() for axes, drawing in zip(panels, study.code_maps, strict=True)}
    curves = {line.get_label(): line.get_color() for line in figures["usage"].axes[0].lines}
    assert colours["fvq"] == curves["FVQ"]
    assert panels[0].lines[0].get_color() == panels[1].lines[0].get_color() not in colours.values()


def test_sizes_are_told_apart_on_a_logarithmic_axis(study, figures):
    axes = figures["codebook_sizes"].axes[0]
    assert axes.get_yscale() == "log"
    assert [line.get_label() for line in axes.lines] == ["64 codes", "256 codes", "1,024 codes"]
    assert len({line.get_color() for line in axes.lines}) == 3
    zero = SizeCurve(64, np.array([1, 2]), np.array([1.0, 0.0]))
    figure = study_figures(dataclasses.replace(study, sizes=(zero,)))["codebook_sizes"]
    assert figure.axes[0].get_yscale() == "linear"


def test_every_logarithmic_axis_has_labels(study):
    for scale in (1.0, 1.3, 3.0, 20.0, 1e3, 1e6):
        curve = SizeCurve(64, np.array([1, 2]), np.array([7e-5, 7e-5 * scale]))
        figure = study_figures(dataclasses.replace(study, sizes=(curve,)))["codebook_sizes"]
        svg = figure_bytes(figure, "svg", "codebook_sizes").decode()
        low, high = figure.axes[0].get_ylim()
        assert sum(low <= tick <= high for tick in figure.axes[0].get_yticks()) >= (1 if scale == 1.0 else 2)
        assert "⁻" in svg


def test_stability_has_a_line_for_each_watched_row(study, figures):
    codes, features, switched = figures["stability"].axes
    assert (codes.get_yscale(), features.get_yscale(), switched.get_yscale()) == ("log", "log", "linear")
    assert [len(axes.lines) for axes in (codes, features, switched)] == [10, 5, 5]
    assert [line.get_linestyle() for line in switched.lines] == ["-", "-", "-", "-", "--"]
    mean, largest = codes.lines[:2]
    assert largest.get_linewidth() < mean.get_linewidth()
    assert largest.get_ydata().tolist() == study.rows[0].history.stability.code_displacement_max.tolist()


def test_drawings_are_repeatable_and_keep_labels_as_text(study, figures):
    again = study_figures(study)
    for stem in ("trajectories", "code_map", "codebook_sizes", "stability"):
        first = figure_bytes(figures[stem], "svg", stem)
        assert first == figure_bytes(again[stem], "svg", stem)
        ElementTree.fromstring(first)
    assert b"VQBridge &lt;&amp;" in figure_bytes(figures["trajectories"], "svg", "trajectories")


# --- the page --------------------------------------------------------------------------------------------------------


def test_page_holds_the_experiments_and_their_figures(html):
    text = words(html)
    assert 'href="#experiments"' in html
    assert "1.60 times the straight distance, turning 240° (plain VQ)" in text
    assert "turning 4° (VQBridge &lt;&amp;)" in text
    assert "plain VQ 2.4%, linear 13.0%, FVQ 100%, FVQ, no annealing 100%." in text
    assert "counted over 64,000 tokens, ceiling 100%; drawn are at most 90 features and 60 codes" in text
    assert "with 64, " in text
    assert "it falls with every larger codebook" in text
    assert "z<sub>e</sub> travels" in html
    assert "z_e travels" not in text


def test_page_compares_the_ways_to_count_usage(html):
    text = words(html)
    assert "Validation256,000 tokens, ceiling 100%" in text
    assert "Last window102,400 tokens, ceiling 100%" in text
    assert "Sliding window65,536 tokens, ceiling 100%" in text
    assert re.search(r"FVQ ?100%99\.\d%89\.\d%", text)


def test_windows_of_different_sizes_stand_in_the_cells(study):
    rows = list(study.rows)
    window = dataclasses.replace(rows[1].history.sliding, tokens=1024)
    rows[0] = dataclasses.replace(rows[0], history=dataclasses.replace(rows[0].history, sliding=None))
    rows[1] = dataclasses.replace(rows[1], history=dataclasses.replace(rows[1].history, sliding=window))
    *_, way = observations.usage_ways(dataclasses.replace(study, rows=tuple(rows)))
    assert way.sample == ""
    assert (way.cells[0].text, way.cells[0].detail, way.cells[0].value) == ("—", "", None)
    assert (way.cells[1].text, way.cells[1].detail) == ("11.7%", "1,024 tokens, ceiling 63.2%")
    assert way.cells[2].detail == "65,536 tokens, ceiling 100%"
    assert way.cells[2].run == study.run("train_tokenizer", "mlp5")


def test_older_histories_still_render(broken, tmp_path):
    for position, row in enumerate(parameters()["rows"]):
        write_lines(broken / "train_tokenizer" / row / "history.csv", history(row, position, watched=False))
    record_outputs(broken)
    written = render_study(broken, tmp_path / "reports", parameters())
    assert "stability.svg" not in {path.name for path in written}
    text = words((tmp_path / "reports" / "index.html").read_text(encoding="utf-8"))
    assert "What one step does" not in text
    assert "Usage counted in three ways" not in text
    assert "One vector descends to a fixed target" in text


def test_a_study_whose_rows_have_no_mapped_codes(broken, tmp_path):
    columns, _ = code_maps()
    write_table(broken / "map_codes" / "code_map.parquet", "code_map", columns | {"row": ["old"] * len(columns["row"])})
    record_outputs(broken)
    written = render_study(broken, tmp_path / "reports", parameters())
    assert "code_map.svg" not in {path.name for path in written}
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "Codes and features in one plane" not in page


def test_stages_are_among_what_ran_where(results, html):
    assert '<th class="number">small experiments</th>' in html
    assert '<th class="number">map codes</th>' in html
    stages = list(dict.fromkeys(run.stage for run in read_study(results, parameters()).runs))
    assert stages[1:3] == ["train_extractor", "small_experiments"]
    assert stages[4:7] == ["freeze_codebook", "evaluate_tokenizer", "map_codes"]


# --- sentences -------------------------------------------------------------------------------------------------------


def bent(study, **ratios):
    """The trajectories with other path ratios."""
    runs = {"plain": study.trajectories[0], "faster": study.trajectories[1], "bridge": study.trajectories[2]}
    return [dataclasses.replace(run, path_ratio=ratios.get(name, run.path_ratio)) for name, run in runs.items()]


def test_a_faster_codebook_that_goes_straight_is_the_caveat(study):
    assert "needs no projector, see “plain VQ with a faster codebook”" in observations.faster_codebook(
        study.trajectories
    )


def test_a_faster_codebook_that_stays_bent_is_none(study):
    text = observations.faster_codebook(bent(study, faster=1.5))
    assert text == "Without a projector the path stays bent: “plain VQ with a faster codebook”."


def test_without_a_changed_vq_there_is_nothing_to_say(study):
    assert observations.faster_codebook(study.trajectories[::2]) == ""
    assert observations.faster_codebook(study.trajectories[1:]) == ""
    other = [dataclasses.replace(study.trajectories[2], name=name) for name in ("VQBridge", "VQBridge with more heads")]
    assert observations.faster_codebook(other) == ""


def test_loss_that_does_not_fall_with_the_size(study):
    assert "falls with every larger" in observations.size_order(study.sizes)
    small, middle, large = study.sizes
    swapped = (small, dataclasses.replace(middle, loss=large.loss), dataclasses.replace(large, loss=middle.loss))
    assert "does not fall with every larger codebook" in observations.size_order(swapped)
    assert observations.size_order(study.sizes[:1]).endswith("0.0308 with 64 codes.")


def with_stability(study, **changes):
    """The same changes to what was seen in every row."""
    rows = []
    for row in study.rows:
        seen = row.history.stability
        changed = {name: np.full_like(seen.switched_share, value) for name, value in changes.items()}
        stability = dataclasses.replace(seen, **changed)
        rows.append(dataclasses.replace(row, history=dataclasses.replace(row.history, stability=stability)))
    return dataclasses.replace(study, rows=tuple(rows))


def test_annealing_is_compared_between_rows_that_differ_in_nothing_else(study):
    late = np.mean([min(1, (1050 - step) / 700) * 20 for step in range(700, 1001, 50)])
    assert observations.annealing(study) == (
        f"A step in the last third of the training switches on average {late:.1f}% of the tokens with FVQ, "
        "20.0% with FVQ, no annealing."
    )
    alone = dataclasses.replace(study, rows=study.rows[:4])
    assert observations.annealing(alone) == ""
    *others, without = study.rows
    for changed in ({"warmup": 0}, {"quantizer": "simvq", "bridge": None}):
        other = dataclasses.replace(without, settings=without.settings | changed)
        assert observations.annealing(dataclasses.replace(study, rows=(*others, other))) == ""


def test_bounds_are_described_as_they_were_seen(study):
    assert observations.bounds(study).startswith("No token contradicted the bounds. Above 2δ_z")
    assert "up to 4.0% of the tokens" in observations.bounds(study)
    assert observations.bounds(with_stability(study, switched_outside_margin_share=0)).endswith(
        "none switched with a margin above 2δ_z."
    )
    assert observations.bounds(with_stability(study, bound_violations=2)).startswith("200 tokens contradicted")
