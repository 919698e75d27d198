"""The tables of fabricated studies: which figure stands where, what the paper's side says, and the three formats."""

import csv
import dataclasses
import io
import json
import re
import shutil
from collections import defaultdict

import pytest
from test_study_fabricated import (
    BRIDGE,
    FURTHER_TOKENIZERS,
    TOKENIZERS,
    change_figures,
    fabricate,
    fabricate_elsewhere,
    fabricate_every_measure,
    fabricate_repeats,
    fabricate_tables,
    on_inception,
    parameters,
    record_outputs,
    tables_parameters,
    write_json,
)

from fvq.evaluate.record import OF_NEIGHBOURS
from fvq.study.paper import paper_tables
from fvq.study.results import read_study
from fvq.study.tables.build import build_tables
from fvq.study.tables.cells import Cell, ranked
from fvq.study.tables.formats import escape_latex, escape_markdown, scripts, side_by_side, to_csv, to_latex, to_markdown
from fvq.study.tables.notes import beside_paper, elsewhere_label, measured_label

EVALUATIONS, OF_SAMPLES = "evaluate_tokenizer/*/metrics.json", "evaluate_generator/*/metrics.json"
PAPER = [f"table_{number}" for number in range(1, 12)]
MULTIPLY_ADDS = {("linear", 16384): 1073741824, ("mlp5", 16384): 5368709120, ("vqbridge", 16384): 4294967296}


@pytest.fixture(scope="module")
def small_results(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("results") / "smoke-photos")


@pytest.fixture(scope="module")
def small(small_results):
    """The default rows."""
    return by_name(build_tables(read_study(small_results, parameters())))


@pytest.fixture(scope="module")
def full_results(tmp_path_factory):
    return fabricate_tables(tmp_path_factory.mktemp("results") / "smoke-photos-tables")


@pytest.fixture(scope="module")
def full_study(full_results, tmp_path_factory):
    """Every row, two of them with three seeds and two elsewhere, and every measure."""
    results = shutil.copytree(full_results, tmp_path_factory.mktemp("full") / "smoke-photos-tables")
    changes = fabricate_repeats(results, ["vq", "fvq"], [1, 2])
    changes |= fabricate_elsewhere(results, ["fvq", "vq_l2"], ["coco", "plain"])
    fabricate_every_measure(results)
    return read_study(results, tables_parameters(**changes), projector_costs=MULTIPLY_ADDS)


@pytest.fixture(scope="module")
def full(full_study):
    return by_name(build_tables(full_study))


@pytest.fixture
def results(small_results, tmp_path):
    """A copy to change."""
    return shutil.copytree(small_results, tmp_path / "smoke-photos")


def by_name(tables):
    return {table.name: table for table in tables}


def tables_of(results, **changes):
    return by_name(build_tables(read_study(results, parameters(**changes))))


def cell(table, row, figure, image_set=""):
    """The measured cell of a row in a figure's column."""
    position = [(column.figure, column.image_set) for column in table.columns].index((figure, image_set))
    return next(line for line in table.lines if line.row == row).measured[position]


def beside(table):
    """The measured rows beside each of the paper's, by its id; those without kin under None."""
    found = defaultdict(list)
    for line in table.lines:
        if line.row:
            found[line.paper.id if line.paper else None].append(line.row)
    return dict(found)


def markdown_cells(text, containing):
    line = next(line for line in text.splitlines() if containing in line)
    return [entry.strip() for entry in line.strip("|").split(" | ")]


def plain(text):
    """Markdown without links."""
    return re.sub(r"\[(.*?)\]\([^()]*provenance\.json\)", r"\1", text)


def csv_lines(table):
    return list(csv.DictReader(io.StringIO(to_csv(table))))


# --- rows and their kin ----------------------------------------------------------------------------------------------


def test_all_eleven_tables_in_order(small, full):
    assert list(small) == PAPER
    assert list(full) == [*PAPER, "figure_6", "generators_more", "elsewhere_coco", "elsewhere_plain"]
    assert full["table_3"].heading == "Table 3: Codebook size, channels and length of training"
    assert [full["figure_6"].paper, full["figure_6"].paper_columns] == [None, ()]


def test_every_row_of_the_paper_stands_in_its_table_once_or_more(full):
    for name, paper in paper_tables().items():
        rows = [line.paper.id for line in full[name].lines if line.paper]
        assert list(dict.fromkeys(rows)) == [row.id for row in paper.rows]


def test_measured_rows_stand_beside_their_kin(full):
    assert beside(full["table_1"]) == {
        "llamagen_8": ["vq_l2"],
        "llamagen_256": ["vq", "vq_no_annealing"],
        "fvq_40": ["fvq"],
        "fvq_120": ["fvq_long"],
    }
    assert list(beside(full["table_3"]).values()) == [
        ["vq_l2"],
        ["vq", "vq_no_annealing"],
        ["fvq_no_annealing"],
        ["fvq_d4"],
        ["fvq_d8"],
        ["fvq"],
        ["fvq_long"],
        ["fvq_4x"],
        ["fvq_4x_wide"],
        ["fvq_4x_wide_long"],
        ["fvq_16x"],
        ["fvq_16x_long"],
        ["vq_l2_fine"],
        ["fvq_fine"],
    ]
    assert beside(full["table_4"]) == {
        "rq_vae_10": ["rq_vq"],
        "fvq_rq_vae": ["rq_fvq"],
        "var": ["var_vq"],
        "fvq_var": ["var_fvq"],
    }
    assert beside(full["table_5"])["mlp5_annealing"] == ["mlp5", "mlp5_16x"]
    assert beside(full["table_9"]) == {
        "linear_annealing": ["fvq"],
        "no_warmup": ["fvq_no_warmup"],
        "cosine_annealing": ["fvq_cosine"],
    }
    assert beside(full["table_2"]) == beside(full["table_11"]) == {"llamagen_l": ["vq"], "fvq_l": ["fvq_l"]}


def test_every_row_stands_somewhere_and_figure_6_with_its_base_alone(full):
    shown = [{line.row for line in full[name].lines if line.row} for name in (*PAPER, "figure_6")]
    varied = {name for name in FURTHER_TOKENIZERS if re.match("fvq_(width|depth|patch|quarter)_", name)}
    assert set.union(*shown) == {*TOKENIZERS, *FURTHER_TOKENIZERS, "fvq_l"}
    assert len(varied) == 10 and shown[-1] == varied | {"fvq"}
    assert not any(rows & varied for rows in shown[:-1])


def test_figure_6_goes_by_settings_not_by_names(full_results):
    changed = tables_parameters()
    changed["rows"]["fvq_width_half"]["annealing"] = "none"  # two things unlike FVQ
    changed["rows"]["fvq_d4"] = changed["rows"]["fvq"] | {"label": "half as wide", "bridge": BRIDGE | {"width": 32}}
    tables = by_name(build_tables(read_study(full_results, changed)))
    drawn, first = ({line.row for line in tables[name].lines} for name in ("figure_6", "table_1"))
    assert "fvq_width_half" in first - drawn
    assert "fvq_d4" in drawn - first


def test_rows_that_no_table_has_follow_in_the_first_of_their_kind_alone(small_results):
    changed = parameters()
    # By its settings it is not what its name says.
    changed["rows"]["fvq"] |= {"quantizer": "simvq"}
    changed["generators"]["fvq_l"]["label"] = "LlamaGen on SimVQ"
    tables = by_name(build_tables(read_study(small_results, changed)))
    found = {name: beside(tables[name])[None] for name in PAPER if None in beside(tables[name])}
    assert found == {"table_1": ["fvq"], "table_2": ["fvq_l"]}
    line = next(line for line in tables["table_1"].lines if line.row == "fvq")
    paper, measured = side_by_side(line, tables["table_1"])
    assert [entry.text for entry in paper] == ["(not in the paper's table)", *[""] * 6]
    assert measured[0].text == "FVQ"


def test_quoted_systems_say_so_and_rows_that_lack_too(small):
    table = small["table_1"]
    first = {line.paper.id: side_by_side(line, table)[1][0].text for line in table.lines}
    assert first["ibq"] == "quoted"
    assert first["fvq_120"] == "not measured here"
    assert first["fvq_40"] == "FVQ"
    costs = small["table_10"]
    assert {side_by_side(line, costs)[1][0].text for line in costs.lines} == {"not measured here"}
    assert [small[name].measured for name in PAPER] == [number not in (4, 10) for number in range(1, 12)]


def test_study_without_generators(small_results):
    tables = tables_of(small_results, generators={})
    assert not tables["table_2"].measured and not tables["table_11"].measured
    assert "This study has no generator." in to_markdown(tables["table_2"])
    assert {line.measured[1].text for line in tables["table_6"].lines} == {"—"}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_measured_columns_are_those_of_the_paper(full):
    def figures(name):
        return [column.figure or column.heading for column in full[name].columns]

    first = ["Row", "Tokens", "Codebook Size", "Vector Channel"]
    assert figures("table_1") == [*first, "rfd_photos", "lpips_alex", "usage"]
    assert figures("table_8") == figures("table_1")
    assert figures("table_3")[1:3] == ["Training", "Ratio"]
    assert figures("table_3")[5:] == ["rfd_photos", "rfd_photos", "usage"]
    assert figures("table_4") == ["Row", "Training", *first[1:], "rfd_photos"]
    assert figures("table_5") == ["Row", "Codebook Size", "usage", "rfd_photos"]
    both = ["psnr_y", "psnr_rgb", "ssim_g11_dr2", "ssim_u7_dr2"]
    assert figures("table_7") == ["Row", "Codebook Size", "rfd_photos", *both, "usage"]
    assert figures("table_2") == ["Row", "parameters", "fd_photos", "is_photos", "precision", "recall"]
    assert figures("generators_more") == ["Row", "sfid", "kd_photos", "density", "coverage"]
    assert figures("elsewhere_coco") == ["Row", "rfd_photos", "psnr_rgb", "lpips_alex"]
    sizes = ["Bridge width", "Bridge depth", "Patch", "Codebook Size"]
    assert figures("figure_6") == ["Row", *sizes, "rfd_photos", "usage"]


def test_headings_say_which_way_a_figure_was_measured(small, full):
    headings = {column.figure: column.heading for column in full["table_7"].columns}
    assert headings["psnr_y"] == "PSNR ↑ (dB, luma)" and headings["ssim_u7_dr2"] == "SSIM ↑ (7×7 uniform, range 2)"
    headings = [column.heading for column in small["table_7"].columns]
    assert "PSNR ↑ (dB, RGB)" in headings and "SSIM ↑ (11×11 Gaussian, range 1)" in headings
    assert not any("luma" in heading for heading in headings)


def expected_numbers(study, table):
    """Every number that a column of the table shows, by row, figure, data and seed, from the rows themselves."""
    rows = {row.name: row for row in (study.rows if table.kind == "tokenizers" else study.generators)}
    numbers = {}
    for row in (rows[line.row] for line in table.lines if line.row):
        for column in table.columns:
            if column.image_set:
                label, seeds = elsewhere_label(study, column.image_set), {7: row.elsewhere.get(column.image_set, {})}
            else:
                own = row.figures if table.kind == "tokenizers" else row.figures | {"parameters": row.parameters}
                label, seeds = measured_label(study), {7: own, **getattr(row, "repeats", {})}
            for seed, figures in seeds.items():
                if column.figure in figures:
                    numbers[row.name, column.figure, label, str(seed)] = figures[column.figure]
    return numbers


def test_trainings_sort_by_their_length(full):
    table = full["table_3"]
    position = [column.heading for column in table.columns].index("Training")
    values = {line.row: line.measured[position].value for line in table.lines if line.row}
    assert values["fvq"] == 1000 and values["fvq_4x_wide_long"] == 3000


def test_every_number_of_every_cell_is_in_the_csv_exactly(full_study, full):
    attached = r"usage_.*|codebook_size|samples|.*_(spread|infinity)"
    for table in full.values():
        if table.kind not in ("tokenizers", "generators"):
            continue
        lines = [line for line in csv_lines(table) if line["source"] == "measured"]
        found = {
            (line["row"], line["figure"], line["data"], line["seed"]): float(line["value"])
            for line in lines
            if not re.fullmatch(attached, line["figure"])
        }
        assert found == expected_numbers(full_study, table)
        shown = [entry for line in table.lines for entry in line.measured if entry.run]
        alone = {key for key in found if key[3] == "7"}
        assert len(shown) == len(alone) > 0
        assert len({tuple(line.values())[:8] for line in lines}) == len(lines)


def test_figures_and_settings_of_a_row(small):
    table = small["table_1"]
    line = next(line for line in table.lines if line.row == "fvq")
    assert [entry.text for entry in line.measured] == ["FVQ", "8×8", "1,024", "64", "25.0", "—", "100%"]
    assert [entry.value for entry in line.measured] == [None, None, 1024, 64, 25.04567, None, 1.0]
    assert [entry.detail for entry in line.measured[4:]] == [
        "± 0.4; at ∞: 23.5",
        "",
        "256,000 tokens, ceiling 100%",
    ]
    assert {entry.run.name for entry in line.measured if entry.run} == {"evaluate_tokenizer@fvq"}
    generator = next(line for line in small["table_2"].lines if line.row == "fvq_l").measured
    assert [entry.text for entry in generator] == ["LlamaGen on FVQ", "12.3k", "61.7", "3.46", "0.46", "0.29"]
    assert [entry.run and entry.run.name for entry in generator[:3]] == [
        None,
        "train_generator@fvq_l",
        "evaluate_generator@fvq_l",
    ]


def test_lengths_ratios_and_grids_of_the_rows(full):
    def texts(name, row):
        return [entry.text for entry in next(line for line in full[name].lines if line.row == row).measured]

    assert texts("table_3", "fvq_4x_wide_long")[1:5] == ["3,000 steps", "4", "4,096", "128"]
    assert texts("table_3", "fvq_fine")[2] == "2"
    assert texts("table_4", "rq_fvq")[2] == "4×4×4"
    assert texts("table_4", "var_vq")[2] == "130"
    assert texts("figure_6", "fvq")[1:5] == ["64", "2", "4", "1,024"]
    assert texts("figure_6", "fvq_width_double")[1] == "128"
    assert texts("figure_6", "fvq_quarter_patch_large")[3:5] == ["16", "256"]


def test_best_and_second_best(small, full):
    table = small["table_5"]
    ranks = {line.row: [entry.rank for entry in line.measured] for line in table.lines if line.row}
    # Row, codebook size, usage, distance; equal figures share the best.
    assert ranks == {
        "linear": [0, 0, 0, 0],
        "mlp5": [0, 0, 2, 2],
        "fvq": [0, 0, 1, 1],
        "fvq_no_annealing": [0, 0, 1, 0],
    }
    distances = [cell(full["table_3"], row, "rfd_photos").rank for row in ("fvq_fine", "vq_l2_fine", "fvq_16x_long")]
    assert distances == [1, 2, 0]
    assert [entry.rank for entry in small["table_9"].lines[0].measured] == [0, 0, 0]
    assert "Bold" not in " ".join(small["table_9"].notes)


def test_rank_of_what_reads_the_same_and_of_dashes():
    cells = [Cell("1.2", value=1.21), Cell("—"), Cell("1.2", value=1.19), Cell("3", value=3.0), Cell("9", value=9.0)]
    assert [entry.rank for entry in ranked(cells, higher=False)] == [1, 0, 1, 2, 0]
    assert [entry.rank for entry in ranked(cells, higher=True)] == [0, 0, 0, 2, 1]
    assert [entry.rank for entry in ranked(cells[:3], higher=True)] == [0, 0, 0]


def test_several_seeds_give_mean_and_spread(full):
    found = cell(full["table_1"], "fvq", "rfd_photos")
    assert (found.text, found.detail) == ("25.5", "± 0.5, 3 seeds")
    assert found.value == pytest.approx(25.54567)
    assert (found.run.name, [run.name for run in found.further_runs]) == (
        "evaluate_tokenizer@fvq",
        ["evaluate_repeat@fvq-1", "evaluate_repeat@fvq-2"],
    )
    usage = cell(full["table_1"], "vq", "usage")
    # 25, 24 and 23 of 1,024 codes.
    assert (usage.text, usage.detail) == ("2.3%", "± 0.1%, 3 seeds; 256,000 tokens, ceiling 100%")
    assert cell(full["table_1"], "vq_l2", "rfd_photos").detail == "± 0.4; at ∞: 29.7"
    assert cell(full["table_1"], "fvq", "usage").text == "99.9%"
    assert any("seeds" in note for note in full["table_1"].notes)
    assert not any("seeds" in note for note in full["table_4"].notes)


def test_spread_over_seeds_sets_the_digits(results):
    changes = fabricate_repeats(results, ["fvq"], [1])
    again = {"rfd_photos": 33.0, "usage": 1.0, "usage_codes": 1024}
    change_figures(results, "evaluate_repeat/fvq-1/metrics.json", again)
    table = tables_of(results, **changes)["table_1"]
    found = cell(table, "fvq", "rfd_photos")
    assert (found.text, found.detail) == ("29", "± 6, 2 seeds")
    assert cell(table, "fvq", "usage").text == "100%"


def test_mean_usage_below_one_never_reads_100_percent(results):
    changes = fabricate_repeats(results, ["fvq"], [1])
    # The mean is 99.6%, the spread 0.6%.
    change_figures(results, "evaluate_repeat/fvq-1/metrics.json", {"usage": 1016 / 1024, "usage_codes": 1016})
    assert cell(tables_of(results, **changes)["table_1"], "fvq", "usage").text == "99.6%"
    # The mean is 99.6%, the spread 1.4%.
    changes = fabricate_repeats(results, ["fvq"], [1, 2])
    change_figures(results, "evaluate_repeat/fvq-1/metrics.json", {"usage": 999 / 1024, "usage_codes": 999})
    assert cell(tables_of(results, **changes)["table_1"], "fvq", "usage").text == "99%"


def test_further_image_sets_stand_under_their_own_protocol(full_results, tmp_path):
    results = shutil.copytree(full_results, tmp_path / "smoke-photos-tables")
    changes = fabricate_elsewhere(results, ["fvq", "vq_l2"], ["coco", "plain"])
    released_way(results, "plain")
    tables = by_name(build_tables(read_study(results, tables_parameters(**changes))))
    table = tables["table_3"]
    assert cell(table, "fvq", "rfd_photos", "coco").text == "32.5"
    assert cell(table, "fvq", "rfd_photos", "coco").run.name == "evaluate_elsewhere@fvq"
    assert cell(table, "fvq_d4", "rfd_photos", "coco") == Cell("—")
    assert "COCO: rfd_photos ↓" in [column.heading for column in table.columns]
    assert any(note.startswith("On coco: rfd_photos compares the reconstructions of 5,000") for note in table.notes)
    coco, plain_set = tables["elsewhere_coco"], tables["elsewhere_plain"]
    assert coco.measured_label == (
        "measured here: coco 32×32, Fréchet distance on the study's own classifier, not FID, protocol adm"
    )
    assert plain_set.measured_label.endswith("protocol fvq-released")
    assert beside(coco) == {None: ["fvq", "vq_l2"]}
    assert cell(plain_set, "fvq", "rfd_photos_jpeg75", "plain").text == "40.0"
    assert cell(coco, "fvq", "psnr_rgb", "coco").rank == 1


def released_way(results, image_set):
    """Make the figures on a further set those of the released evaluation."""
    for path in results.glob(f"evaluate_elsewhere/*/metrics/{image_set}.json"):
        figures = {
            name.replace("rfd_photos", "rfd_photos_jpeg75"): value
            for name, value in json.loads(path.read_text()).items()
        }
        write_json(path, figures | {"protocol": "fvq-released"})
    record_outputs(results / "evaluate_elsewhere")


def test_rfid_as_released_stands_beside_rfid(full_results, tmp_path):
    results = shutil.copytree(full_results, tmp_path / "smoke-photos-tables")
    # The further set of the data set itself, not COCO by the same protocol.
    changes = fabricate_elsewhere(results, ["fvq", "vq_l2"], ["coco", "photos_plain"])
    for image_set in ("coco", "photos_plain"):
        released_way(results, image_set)
    tables = by_name(build_tables(read_study(results, tables_parameters(**changes))))
    for name in ("table_1", "table_3", "table_5", "table_7", "table_8", "table_9"):
        table = tables[name]
        position = [column.figure for column in table.columns].index("rfd_photos")
        beside_it = table.columns[position + 1]
        assert beside_it.heading == "rfd_photos_jpeg75 as released ↓ (plain crop, JPEG)"
        found = cell(table, "fvq", "rfd_photos_jpeg75", "photos_plain")
        assert (found.text, found.run.name) == ("40.0", "evaluate_elsewhere@fvq")
        assert any(note.startswith("On photos_plain: rfd_photos_jpeg75 compares") for note in table.notes)
        assert any("crops without resizing and compares JPEG copies" in note for note in table.notes)
    assert cell(tables["table_3"], "fvq_d4", "rfd_photos_jpeg75", "photos_plain") == Cell("—")
    on_inception(results)
    table = by_name(build_tables(read_study(results, tables_parameters(**changes))))["table_1"]
    headings = [column.heading for column in table.columns]
    assert headings[4:6] == ["rFID ↓", "rFID as released ↓ (plain crop, JPEG)"]


def test_without_coco_the_column_says_so(small):
    table = small["table_3"]
    position = [column.heading for column in table.columns].index("COCO: not measured here")
    assert {line.measured[position].text for line in table.lines if line.row} == {"—"}


def test_only_inception_features_give_an_fid(full_results, tmp_path):
    results = shutil.copytree(full_results, tmp_path / "smoke-photos-tables")
    changes = fabricate_elsewhere(results, ["fvq"]) | fabricate_repeats(results, ["fvq"], [1])
    fabricate_every_measure(results)
    on_inception(results)
    tables = by_name(build_tables(read_study(results, tables_parameters(**changes))))
    for name in ("table_1", "table_3", "table_4", "table_5", "table_7", "table_8", "table_9", "figure_6"):
        assert "rFID ↓" in [column.heading for column in tables[name].columns]
    assert [column.heading for column in tables["table_2"].columns[2:4]] == ["FID ↓", "inception_score ↑"]
    further = ["sFID ↓", "KID ↓", "Density ↑", "Coverage ↑"]
    assert [column.heading for column in tables["generators_more"].columns[1:]] == further
    assert "COCO: rFID ↓" in [column.heading for column in tables["table_3"].columns]
    assert "photos 32×32, FID on Inception" in tables["table_1"].measured_label
    assert cell(tables["table_1"], "fvq", "rfid").detail == "± 0.4, 2 seeds"


def test_no_fid_without_inception(full):
    for table in full.values():
        assert not any("FID" in column.heading and "sFID" not in column.heading for column in table.columns)
        if table.kind in ("tokenizers", "generators"):
            assert "not FID" in table.measured_label


# --- settings and costs ----------------------------------------------------------------------------------------------


def test_settings_of_the_training_beside_the_papers(full):
    lines = {line.paper.id: [entry.text for entry in line.measured] for line in full["table_6"].lines}
    assert list(lines) == [row.id for row in paper_tables()["table_6"].rows]
    assert lines["batch_size"] == ["32", "64; 128: “LlamaGen on FVQ”"]
    lengths = "1,000 steps; 3,000 steps: “fvq long”, “fvq 4x wide long”, “fvq 16x long”"
    assert lines["epochs"] == [lengths, "400 steps; 300 steps: “LlamaGen on FVQ”"]
    assert lines["optimizer"] == ["Adam", "AdamW"]
    assert lines["learning_rate"] == ["0.003", "0.002"]
    schedule, *others = lines["learning_rate_schedule"][0].split("; ")
    assert schedule == "warmup(0.1) [baselr(0.3)–linear(0.7)]"
    assert others[0].startswith("warmup(0.1) baselr: “FVQ, no annealing”, “vq l2”,")
    assert others[1:] == [
        "warmup(0) [baselr(0.3)–linear(0.7)]: “fvq no warmup”",
        "warmup(0.1) [baselr(0.3)–cosine(0.7)]: “fvq cosine”",
    ]
    assert lines["learning_rate_schedule"][1] == "warmup(0) [baselr(0.05)–linear(0.95)]"
    assert lines["warmup_learning_rate"] == ["0.005 to 1; –: “fvq no warmup”", "–"]
    assert lines["linear_learning_rate"][1] == "1 to 0.01"
    assert lines["optimizer_parameters"] == ["β = 0.9 and 0.95", "β = 0.9 and 0.95, weight decay 0.05"]
    assert lines["loss_weight"] == [
        "commit loss β = 0.25, squared error 1, perceptual loss 0, discriminative loss 0.5 from step 2,000",
        "",
    ]


def test_learning_rate_in_proportion_to_the_batch_says_so(full_results):
    changed = tables_parameters()
    changed["train_tokenizer"] = changed["train_tokenizer"] | {"reference_batch_size": 128}
    table = by_name(build_tables(read_study(full_results, changed)))["table_6"]
    assert table.lines[3].measured[0].text == "0.003 for 128 images, in proportion"


def test_parameters_that_do_not_say_leave_dashes(small):
    lines = {line.paper.id: [entry.text for entry in line.measured] for line in small["table_6"].lines}
    assert lines["batch_size"] == ["32", "—"]
    assert lines["learning_rate_schedule"] == ["—", "—"]


def test_costs_are_computed_and_marked_so(full):
    table = full["table_10"]
    assert [entry.text for entry in table.lines[0].measured] == ["16,384", "1.07G", "5.37G", "4.29G"]
    assert table.lines[1].measured == ()
    assert table.measured_label.startswith("computed here")
    text = to_markdown(table)
    assert "| computed: VQBridge |" in text and "| measured:" not in text
    values = {(line["source"], line["row"], line["figure"]): line["value"] for line in csv_lines(table)}
    assert values["computed", "codes_16k", "vqbridge"] == "4294967296"
    assert values["paper", "codes_262k", "vqbridge"] == "55.89G"


def test_costs_of_other_sizes_follow(small_results):
    costs = MULTIPLY_ADDS | {("linear", 1024): 67108864}
    tables = by_name(build_tables(read_study(small_results, parameters(), projector_costs=costs)))
    line = tables["table_10"].lines[-1]
    assert line.paper is None
    assert [entry.text for entry in line.measured] == ["1,024", "0.07G", "—", "—"]


# --- the paper's side ------------------------------------------------------------------------------------------------


def test_paper_cells_are_as_printed_and_underlined_where_the_paper_underlines(full):
    for name, paper in paper_tables().items():
        for line in full[name].lines:
            if line.paper:
                cells = side_by_side(line, full[name])[0]
                assert [entry.text for entry in cells] == list(line.paper.cells.values())
                underlined = [column.key for column, entry in zip(paper.columns, cells, strict=True) if entry.rank == 2]
                assert sorted(underlined) == sorted(line.paper.underlined)
                assert not any(entry.rank == 1 for entry in cells)


def test_remarks_are_numbered_notes(full):
    for name, paper in paper_tables().items():
        table = full[name]
        notes = dict(re.findall(r"^([⁰¹²³⁴⁵⁶⁷⁸⁹]+) (.*)$", "\n".join(table.notes), re.MULTILINE))
        for line in table.lines:
            if line.paper:
                marks = [entry.mark for entry in side_by_side(line, table)[0]]
                for column, mark in zip(paper.columns, marks, strict=True):
                    assert notes.get(mark, "") == line.paper.remarks.get(column.key, "")
    used = {entry.mark for line in full["table_8"].lines for entry in side_by_side(line, full["table_8"])[0]}
    assert "¹⁰" in used and max(len(mark) for mark in used) == 2


def test_scripts():
    assert scripts("680_{10step}") == [("", "680"), ("_", "10step")]
    assert scripts("1×10^{-4}, β_{1} = 0.9") == [("", "1×10"), ("^", "-4"), ("", ", β"), ("_", "1"), ("", " = 0.9")]
    assert scripts("a_b {c}") == [("", "a_b {c}")]
    assert scripts("") == []


# --- Markdown --------------------------------------------------------------------------------------------------------


def test_markdown_puts_measured_beside_paper(small):
    text = to_markdown(small["table_1"])
    assert text.startswith("# Table 1: Reconstruction\n")
    cells = markdown_cells(plain(text), "| FVQ |")
    assert cells[:7] == ["FVQ", "16×16", "16,384", "256", "<u>1.30</u>", "<u>0.13</u>⁶", "100%⁷"]
    assert cells[7:13] == ["FVQ", "8×8", "1,024", "64", "**25.0** (± 0.4; at ∞: 23.5)", "—"]
    assert cells[13] == "**100%** (256,000 tokens, ceiling 100%)"
    assert markdown_cells(text, "9.21")[7] == "plain VQ"
    text = to_markdown(small["table_4"])
    assert "680<sub>10step</sub>" in text and "_{" not in text


def test_markdown_rows_have_one_width(small, full):
    for table in (*small.values(), *full.values()):
        lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert widths == {len(table.paper_columns) + len(table.columns) + 1}


def test_what_the_sides_are_to_each_other_depends_on_the_data(full_study, full):
    text = "The two sides are different data, not to be compared figure by figure"
    for name in ("table_1", "table_11"):
        assert text in to_markdown(full[name]) and text in to_latex(full[name])
    for name in ("table_6", "table_10"):
        assert "The two sides" not in to_markdown(full[name]) + to_latex(full[name])
    same = {"dataset": "imagenet", "image_size": (256, 256), "extractor": "inception-2015"}
    assert "different runs on the same data" in beside_paper(dataclasses.replace(full_study, **same))
    for other in ({"dataset": "folder"}, {"image_size": (128, 128)}, {"extractor": "photos"}):
        assert beside_paper(dataclasses.replace(full_study, **same | other)).startswith(text)


def test_tables_without_a_paper_have_one_side(full):
    for name in ("figure_6", "generators_more", "elsewhere_coco"):
        text = to_markdown(full[name])
        assert "paper: " not in text and "The two sides" not in text
        assert full[name].measured_label in text.replace("\\", "")
        assert "multicolumn" in to_latex(full[name]) and "cmidrule(lr){1-" in to_latex(full[name])


def test_markdown_prints_what_stands_across_the_papers_table(full):
    lines = [line for line in to_markdown(full["table_8"]).splitlines() if line.startswith("| *")]
    assert [line.split("*")[1] for line in lines] == [
        "VQ-VAE-based Methods",
        "1-D Token Sequence",
        "Multi-Code Representation",
    ]


def test_every_measured_figure_links_to_its_record(full):
    table = full["table_3"]
    text = to_markdown(table, lambda run: f"#{run.name}")
    for line in table.lines:
        if line.row:
            measured = [entry for entry in line.measured if entry.run]
            runs = [run.name for entry in measured for run in (entry.run, *entry.further_runs)]
            found = next(each for each in text.splitlines() if runs and f"(#{runs[0]})" in each)
            assert re.findall(r"\]\(#(.*?)\)", found) == runs
            assert len(measured) == sum(bool(column.figure) for column in table.columns) - (
                line.row not in ("fvq", "vq_l2")
            )


def test_default_links_lead_from_the_tables_to_the_records(small_results, monkeypatch):
    monkeypatch.chdir(small_results.parent)
    study = read_study(small_results.relative_to(small_results.parent), parameters())
    text = to_markdown(build_tables(study)[0])
    assert "[**25.0**](../../smoke-photos/evaluate_tokenizer/fvq/provenance.json) (± 0.4" in text
    reports = small_results.parent / "reports" / "tables"
    reports.mkdir(parents=True)
    for target in re.findall(r"\]\((.*?)\)", text):
        assert (reports / target).is_file()


def test_no_link_where_nothing_is_recorded(results):
    (results / "evaluate_tokenizer" / "fvq" / "provenance.json").unlink()
    table = tables_of(results)["table_1"]
    assert "| **25.0** (± 0.4" in to_markdown(table)
    assert "% fvq:" not in to_latex(table)
    lines = [line for line in csv_lines(table) if line["row"] == "fvq"]
    assert lines and {line["provenance"] for line in lines} == {""}


# --- LaTeX -----------------------------------------------------------------------------------------------------------


def test_latex_is_balanced_and_escaped(small, full):
    for table in (*small.values(), *full.values()):
        text = to_latex(table)
        # Without comments, every row has all its cells.
        body = re.sub(r"(?m)(?<!\\)%.*$", "", text.partition(r"\midrule")[2].partition(r"\bottomrule")[0])
        rows = [line for line in body.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {
            len(table.paper_columns) + len(table.columns) - 1
        }
        bare = re.sub(r"\\[\\{}$&%#_]", "", re.sub(r"(?m)(?<!\\)%.*$", "", text))
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search("[_^#]", bare)
        assert {character for character in text if ord(character) > 126} <= {"é", "ń"}
        # What follows a line's end would be taken for its argument.
        assert not re.search(r"\\\\\s*[\[*]", text)


def test_latex_marks_and_headings(small):
    text = to_latex(small["table_1"])
    assert r"rfd\_photos $\downarrow$" in text and r"IBQ\dag{}" in text
    assert r"\textbf{25.0} ($\pm$ 0.4" in text and r"\underline{51.3}" in text
    assert r"\underline{0.13}\textsuperscript{6}" in text
    assert r"\multicolumn{14}{l}{\emph{VQ-VAE-based Methods}}" in to_latex(small["table_8"])
    assert r"680\textsubscript{10step}" in to_latex(small["table_4"])
    assert r"\toprule" in text and r"\bottomrule" in text


def test_latex_names_the_record_before_each_measured_row(full):
    assert "evaluate_repeat/fvq-1/provenance.json" in to_latex(full["table_3"])
    lines = to_latex(full["table_3"]).splitlines()
    position = next(index for index, line in enumerate(lines) if line.startswith("% vq_l2: "))
    assert lines[position].endswith("evaluate_elsewhere/vq_l2/provenance.json")
    assert "evaluate_tokenizer/vq_l2/provenance.json" in lines[position]
    assert lines[position + 1].startswith("1 VQGAN")
    assert sum(line.startswith("% ") and "provenance.json" in line for line in lines) == 15


def test_latex_escapes_whatever_a_label_holds():
    assert escape_latex(r"50% of $x_1$ & #{a}~^\b") == (
        r"50\% of \$x\_1\$ \& \#\{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}b"
    )
    assert escape_latex("[1] * <b>|") == r"{[}1] {*} \textless{}b\textgreater{}\textbar{}"


def test_hostile_labels_in_every_format(small_results):
    changed = parameters()
    label = "50% $x_1$ & <b>|\n`[a](b)` ~~*_{c}"
    for row in (changed["rows"]["fvq"], changed["generators"]["fvq_l"]):
        row["label"] = label
    tables = by_name(build_tables(read_study(small_results, changed)))
    for name in ("table_1", "table_2", "table_11"):
        table = tables[name]
        markdown, latex = to_markdown(table), to_latex(table)
        assert r"| 50% \$x\_1\$ &amp; &lt;b&gt;\| \`\[a\](b)\` \~\~\*\_{c} |" in markdown
        lines = [line for line in markdown.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert r"& 50\% \$x\_1\$ \& \textless{}b\textgreater{}\textbar{} `{[}a](b)`" in latex
        assert r"\textasciitilde{}\textasciitilde{}{*}\_\{c\}" in latex
        assert {line["table"] for line in csv_lines(table)} == {str(table.paper.number)}


def test_markdown_escapes_what_would_be_markup():
    assert escape_markdown("a_b *c* [d] $e$ ~f~ <g> & |") == (r"a\_b \*c\* \[d\] \$e\$ \~f\~ &lt;g&gt; &amp; \|")


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_is_tidy_and_in_full_precision(small):
    lines = csv_lines(small["table_1"])
    values = {(line["source"], line["row"], line["figure"]): line for line in lines}
    assert len(values) == len(lines)
    assert values["measured", "fvq", "rfd_photos"]["value"] == "25.04567"
    assert float(values["measured", "vq", "usage"]["value"]) == 25 / 1024
    assert values["measured", "vq", "usage_tokens"]["value"] == "256000"
    assert values["paper", "llamagen_256", "usage"]["value"] == "0.29%"
    assert values["paper", "llamagen_256", "usage"]["beside"] == "vq"
    assert values["measured", "fvq", "rfd_photos"]["beside"] == "fvq_40"
    assert values["measured", "fvq", "samples"]["value"] == "4000"
    assert values["measured", "fvq", "rfd_photos_spread"]["value"] == "0.384"
    assert float(values["measured", "fvq", "rfd_photos_infinity"]["value"]) == pytest.approx(23.54567)
    assert values["measured", "fvq", "usage"]["provenance"].endswith("evaluate_tokenizer/fvq/provenance.json")
    assert values["measured", "fvq", "usage"]["seed"] == "7"
    assert values["paper", "fvq_40", "usage"]["seed"] == values["paper", "fvq_40", "usage"]["provenance"] == ""


def test_csv_has_a_line_for_each_seed_with_its_record(full):
    found = [line for line in csv_lines(full["table_5"]) if (line["row"], line["figure"]) == ("fvq", "rfd_photos")]
    assert [(line["seed"], float(line["value"])) for line in found] == [
        ("7", 25.04567),
        ("1", 25.54567),
        ("2", 26.04567),
    ]
    assert found[1]["provenance"].endswith("evaluate_repeat/fvq-1/provenance.json")


def test_csv_of_tables_without_a_paper_bears_their_name(full):
    lines = csv_lines(full["figure_6"])
    assert {line["table"] for line in lines} == {"figure_6"} and {line["source"] for line in lines} == {"measured"}
    further = {(line["row"], line["figure"]): line["value"] for line in csv_lines(full["generators_more"])}
    assert float(further["fvq_l", "sfid"]) == 40 - 0.455
    assert {line["data"] for line in csv_lines(full["elsewhere_plain"])} == {full["elsewhere_plain"].measured_label}


# --- digits and protocols --------------------------------------------------------------------------------------------


def test_no_figure_has_more_digits_than_its_spread_supports(results):
    change_figures(results, EVALUATIONS, {"rfd_photos_spread": 3.2, "rfd_photos_infinity": -1.234})
    change_figures(results, OF_SAMPLES, {"fd_photos_spread": 12.0})
    tables = tables_of(results)
    found = cell(tables["table_5"], "fvq", "rfd_photos")
    assert (found.text, found.detail) == ("25", "± 3; at ∞: −1")
    assert cell(tables["table_2"], "fvq_l", "fd_photos").text == "60"


def test_three_digits_where_no_spread_was_measured(results):
    change_figures(results, EVALUATIONS, {}, gone=("rfd_photos_spread", "rfd_photos_infinity"))
    tables = tables_of(results)
    assert cell(tables["table_5"], "fvq", "rfd_photos") == dataclasses.replace(
        cell(tables["table_5"], "fvq", "rfd_photos"), text="25.0", detail=""
    )
    assert "± after" not in to_markdown(tables["table_5"])


def test_the_number_of_images_stands_with_every_distance(small):
    for name in ("table_1", "table_3", "table_5", "table_7", "table_8", "table_9"):
        for text in (to_markdown(small[name]), to_latex(small[name])):
            text = text.replace("\\", "")
            assert "rfd_photos compares the reconstructions of 4,000 images with the originals." in text
            assert "from random halves of them" in text
    for name in ("table_2", "table_11"):
        assert "Measured on 2,000 samples a row against 4,000 reference images." in to_markdown(small[name])


def test_lpips_stands_in_the_table_where_it_was_measured(small, results):
    assert "LPIPS is not measured here: no alexnet." in small["table_1"].notes
    for position, row in enumerate(parameters()["rows"]):
        lpips = {"lpips_alex": 0.2 + position / 100}
        change_figures(results, f"evaluate_tokenizer/{row}/metrics.json", lpips, gone=("protocol_lpips_alex",))
    table = tables_of(results)["table_1"]
    assert (cell(table, "vq", "lpips_alex").text, cell(table, "vq", "lpips_alex").rank) == ("0.200", 1)
    assert "Measured LPIPS: AlexNet." in table.notes


def test_precision_on_vgg16_has_its_own_name(results):
    changes = {"protocol": "torch-fidelity", "protocol_neighbours_on": "vgg16", "protocol_neighbours_sha256": "9" * 64}
    shares = {"precision_vgg16": 0.61, "recall_vgg16": 0.32}
    change_figures(results, OF_SAMPLES, changes | shares, gone=("precision", "recall"))
    table = tables_of(results)["table_2"]
    assert [cell(table, "fvq_l", name).text for name in shares] == ["0.61", "0.32"]
    assert "Precision and recall on the features of vgg16." in table.notes


def test_a_reference_of_stored_statistics_may_not_say_its_number(results):
    change_figures(results, OF_SAMPLES, {"protocol_reference_images": "not known"})
    table = tables_of(results)["table_2"]
    assert "Measured on 2,000 samples a row against stored statistics of the reference." in table.notes


def test_figures_of_stored_jpegs_have_their_own_name(results):
    renamed = {f"rfd_photos_jpeg75{end}": 25.0 for end in ("", "_spread", "_infinity")}
    gone = ("rfd_photos", "rfd_photos_spread", "rfd_photos_infinity")
    change_figures(results, EVALUATIONS, {**renamed, "protocol": "fvq-released"}, gone)
    assert "rfd_photos_jpeg75 ↓" in [column.heading for column in tables_of(results)["table_1"].columns]
    on_inception(results)
    assert "rFID of JPEGs ↓" in [column.heading for column in tables_of(results)["table_1"].columns]


def test_float16_distances_have_their_own_names(results):
    changes = {"protocol_distances": "float16", "precision_float16": 0.61, "recall_float16": 0.32}
    change_figures(results, OF_SAMPLES, changes, gone=("precision", "recall"))
    table = tables_of(results)["table_2"]
    assert cell(table, "fvq_l", "recall_float16").text == "0.32"
    assert any("float16 distances" in note for note in table.notes)


def test_what_a_protocol_leaves_out_is_a_dash(results):
    left_out = dict.fromkeys(("protocol_score", *OF_NEIGHBOURS), "none")
    gone = ("precision", "recall", "is_photos", "is_photos_std")
    change_figures(results, OF_SAMPLES, {**left_out, "protocol": "pytorch-fid"}, gone)
    line = next(line for line in tables_of(results)["table_2"].lines if line.row == "fvq_l")
    assert [entry.text for entry in line.measured[2:]] == ["61.7", "—", "—", "—"]


def test_same_study_gives_the_same_texts(small_results, small):
    again = tables_of(small_results)
    for convert in (to_markdown, to_latex, to_csv):
        assert [convert(table) for table in again.values()] == [convert(table) for table in small.values()]
