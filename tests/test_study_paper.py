"""The stored tables against the paper's text, and which paper row a measured row stands next to."""

import os
import re
from itertools import groupby
from pathlib import Path

import pytest
import yaml

from fvq.study.paper import TITLE, PaperRow, paper_row_of, paper_tables

ROOT = Path(__file__).parents[1]
ASSETS = Path(os.environ.get("FVQ_TEST_ASSETS", ROOT / ".." / "shared"))
PAPER = ASSETS / "paper" / "fvq.md"

needs_paper = pytest.mark.skipif(not PAPER.exists(), reason=f"the paper's text is not there: {PAPER}")
every_table = pytest.mark.parametrize("number", range(1, 12))

MARKS = {
    r"\downarrow": "↓",
    r"\uparrow": "↑",
    r" \times ": "×",
    r"\times": "×",
    r"\ddagger": "‡",
    r"\dagger": "†",
    r"\diamond": "⋄",
    r"\beta": "β",
    r"\lambda": "λ",
    "$": "",
    "**": "",
    "<i>": "",
    "</i>": "",
    "<u>": "",
    "</u>": "",
    " .": ".",
}

# The names of measured rows that a study may have, beside those of Figure 6.
TOKENIZERS = {
    *("vq", "vq_no_annealing", "vq_l2", "vq_l2_fine", "linear_no_annealing", "linear"),
    *("mlp5", "mlp5_16x_no_annealing", "mlp5_16x"),
    *("fvq_no_annealing", "fvq_16x_no_annealing", "fvq_d4", "fvq_d8", "fvq", "fvq_long", "fvq_4x", "fvq_4x_wide"),
    *("fvq_4x_wide_long", "fvq_16x", "fvq_16x_long", "fvq_fine", "fvq_no_warmup", "fvq_cosine"),
    *("rq_fvq", "var_fvq", "rq_vq", "var_vq"),
}
GENERATORS = {"vq", "fvq", "fvq_l", "fvq_xl", "fvq_l_llamagen", "fvq_xl_llamagen"}

# Numbers in remarks and notes that are not the paper's.
ELSEWHERE = {
    "98.17",  # 1 - (1 - 1/16384)^65536
    "63.2",  # 1 - (1 - 1/262144)^262145
    "0.59", "3.80", "3.07", "2.62", "2.34",  # LlamaGen's README: ratio 8, L, L at 24×24, XL at 24×24, XXL at 24×24
    "3.55", "2.95", "2.33", "1.97",  # VAR's README: d16, d20, d24, d30
    "0.53",  # what users of MAR's tokenizer measured over the validation images
    "36.5",  # multiply-adds of VQBridge with groups of 256 of 262,144 codes
}  # fmt: skip


def plain(text):
    """Printed text without bold, underline and formula marks."""
    for written, meant in MARKS.items():
        text = text.replace(written, meant)
    text = re.sub(r"\\text\{(\w+)\}", r"\1", text)
    text = re.sub(r"\^\{([†⋄]+)\}", r"\1", text)
    text = re.sub(r" ([_^]\{)", r"\1", text)
    return re.sub(r"([βλ])_(\w)", r"\1_{\2}", text).strip()


def plain_cell(text):
    return re.sub(r" ([‡†⋄])", r"\1", plain(text))


def paper_lines():
    return PAPER.read_text(encoding="utf-8").split("\n")


def printed_caption(number):
    (line,) = (line for line in paper_lines() if line.startswith(f"Table {number}: "))
    return line


def printed_lines(number):
    """The printed table of that number, as lists of raw cells, headings first. Table 5's caption stands below it."""
    lines = paper_lines()
    runs = [list(run) for tabbed, run in groupby(range(len(lines)), key=lambda at: "\t" in lines[at]) if tabbed]
    assert len(runs) == 11
    first, *_, last = runs[number - 1]
    assert printed_caption(number) == (lines[last + 2] if number == 5 else lines[first - 2])
    return [lines[at].split("\t") for at in runs[number - 1]]


@needs_paper
@every_table
def test_every_cell_is_the_papers(number):
    table = paper_tables()[f"table_{number}"]
    headings, *printed = printed_lines(number)
    assert [column.name for column in table.columns] == [plain_cell(name) for name in headings]
    stored = []
    for row in table.rows:
        if row.heading:
            stored.append([row.heading, *[""] * (len(table.columns) - 1)])
        stored.append(list(row.cells.values()))
    assert stored == [[plain_cell(cell) for cell in line] for line in printed]


@needs_paper
@every_table
def test_underlined_cells_are_the_papers(number):
    table = paper_tables()[f"table_{number}"]
    keys = [column.key for column in table.columns]
    printed = [line for line in printed_lines(number)[1:] if not line[0].startswith("<i>")]
    underlined = [tuple(key for key, cell in zip(keys, line, strict=True) if "<u>" in cell) for line in printed]
    assert [row.underlined for row in table.rows] == underlined


@needs_paper
@every_table
def test_captions_and_footnotes_are_the_papers(number):
    table = paper_tables()[f"table_{number}"]
    assert table.number == number
    assert f"Table {number}: {table.caption} {table.footnotes}".strip() == plain(printed_caption(number))


@needs_paper
def test_every_table_of_the_paper_is_there():
    printed = re.findall(r"^Table (\d+):", PAPER.read_text(encoding="utf-8"), re.MULTILINE)
    assert [f"table_{number}" for number in printed] == list(paper_tables())
    assert TITLE.upper() in PAPER.read_text(encoding="utf-8")


def annotations():
    """(where, text) of every remark and note."""
    for name, table in paper_tables().items():
        yield from ((name, note) for note in table.notes)
        for row in table.rows:
            yield from ((f"{name} {row.id} {column}", remark) for column, remark in row.remarks.items())


@needs_paper
def test_what_annotations_quote_is_in_the_paper():
    text = plain(PAPER.read_text(encoding="utf-8"))
    quotes = [(where, quote) for where, annotation in annotations() for quote in re.findall(r'"([^"]+)"', annotation)]
    assert len(quotes) > 10
    assert [(where, quote) for where, quote in quotes if quote not in text] == []


@needs_paper
def test_numbers_in_annotations_are_the_papers_or_have_a_source():
    printed = set(re.findall(r"\d+\.\d+", PAPER.read_text(encoding="utf-8")))
    numbers = [(where, number) for where, annotation in annotations() for number in re.findall(r"\d+\.\d+", annotation)]
    assert {number for _, number in numbers} >= ELSEWHERE, "a source is listed for a number that stands nowhere"
    assert [entry for entry in numbers if entry[1] not in printed | ELSEWHERE] == []


@needs_paper
def test_statements_about_the_paper_hold():
    text = PAPER.read_text(encoding="utf-8")
    assert "we simultaneously increase the patch size by the same factor of $4\\times$" in text
    assert "and a patch size of 16" in text
    assert "LAION. Laion-coco 600m." in text
    assert "the best reconstruction performance (rFID=0.88) among all discrete tokenizers" in text
    table_11 = "\n".join("\t".join(line) for line in printed_lines(11))
    assert "‡" not in table_11 and "ddagger" not in table_11


def test_the_two_is_of_fvq_l_are_kept_and_remarked_at_both():
    second, eleventh = paper_tables()["table_2"], paper_tables()["table_11"]
    assert (second.cell("fvq_l", "is"), eleventh.cell("fvq_l", "is")) == ("276.6", "275.8")
    for table in (second, eleventh):
        remark = next(row for row in table.rows if row.id == "fvq_l").remarks["is"]
        assert "276.6" in remark and "275.8" in remark


def test_remarks_on_other_tables_agree_with_them():
    tables = paper_tables()
    first, third, eighth = tables["table_1"], tables["table_3"], tables["table_8"]
    for ours, theirs in (("vqgan_8", "llamagen_8"), ("vqgan_256", "llamagen_256")):
        for column in ("rfid", "usage"):
            assert third.cell(ours, column) == first.cell(theirs, column) == eighth.cell(theirs, column)
    for short, long in (
        ("fvq_256", "fvq_256_120"),
        ("fvq_65k_512", "fvq_65k_512_120"),
        ("fvq_262k_256", "fvq_262k_256_120"),
    ):
        before = third.cell(short, "rfid_coco")
        assert before in next(row for row in third.rows if row.id == long).remarks["rfid_coco"]
        assert float(before) > float(third.cell(long, "rfid_coco"))
    assert tables["table_9"].cell("linear_annealing", "rfid") == third.cell("fvq_256", "rfid")
    at_083 = [row for row in tables["table_2"].rows if row.cells["precision"] == "0.83"]
    assert [len(at_083), sum("precision" in row.underlined for row in at_083)] == [5, 3]
    assert eighth.value("fvq_var", "rfid") < eighth.value("fvq_262k_120", "rfid") == 0.88


def test_costs_are_multiply_adds_of_groups_as_remarked():
    """By hand: projections into and out of groups, then two blocks of 8 d² a token and 2 T² d of attention."""

    def bridge(codes, group, d=256):
        tokens = codes // group
        return 2 * codes * d**2 + 2 * (8 * tokens * d**2 + 2 * tokens**2 * d)

    table = paper_tables()["table_10"]
    for row, codes, group in (("codes_16k", 16384, 16), ("codes_262k", 262144, 64)):
        assert table.value(row, "codebook_size") == codes
        assert table.value(row, "linear") == pytest.approx(codes * 256**2, rel=4e-3)
        assert table.value(row, "mlp5") == pytest.approx(5 * codes * 256**2, rel=4e-3)
        assert table.value(row, "vqbridge") == pytest.approx(bridge(codes, group), rel=4e-3)
    assert f"{bridge(262144, 256) / 1e9:.1f}" == "36.5"


def test_ceilings_of_counted_usage_are_those_in_the_notes():
    assert f"{1 - (1 - 1 / 16384) ** 65536:.2%}" == "98.17%"
    assert f"{1 - (1 - 1 / 262144) ** 262145:.1%}" == "63.2%"


@every_table
def test_keys_of_a_table_fit_together(number):
    table = paper_tables()[f"table_{number}"]
    keys = [column.key for column in table.columns]
    ids = [row.id for row in table.rows]
    names = [name for row in table.rows for name in row.rows]
    known = GENERATORS if number in (2, 11) else TOKENIZERS
    assert len(set(keys)) == len(keys) and len(set(ids)) == len(ids)
    assert sorted(set(names)) == sorted(names), "a measured row stands next to one row of a table"
    assert set(names) <= known
    for row in table.rows:
        assert set(row.remarks) | set(row.underlined) <= set(keys)
        assert bool(row.rows) == ("quantizer" in row.settings) and row.quoted == (not row.rows)


def test_every_named_row_stands_somewhere():
    named = {name for table in paper_tables().values() for row in table.rows for name in row.rows}
    assert named == TOKENIZERS | GENERATORS


def test_directions_agree_over_tables():
    better = {}
    for table in paper_tables().values():
        for column in table.columns:
            better.setdefault(column.key, set()).add(column.better)
            arrow = {"↓": "lower", "↑": "higher"}.get(column.name[-1])
            assert arrow in (None, column.better)
    assert all(len(directions) == 1 for directions in better.values())
    lower = {key for key, (direction,) in better.items() if direction == "lower"}
    assert lower == {"rfid", "rfid_coco", "lpips", "fid"}
    higher = {key for key, (direction,) in better.items() if direction == "higher"}
    assert higher == {"usage", "psnr", "ssim", "is", "precision", "recall"}


def test_cells_are_numbers():
    tables = paper_tables()
    assert tables["table_1"].value("vqgan_1k", "rfid") == 7.94
    assert tables["table_1"].value("llamagen_256", "usage") == 0.0029
    assert tables["table_1"].value("fvq_40", "usage") == 1
    assert tables["table_1"].value("fvq_40", "codebook_size") == 16384
    sizes = ("fvq_256", "fvq_65k_256", "fvq_262k_256")
    assert [tables["table_3"].value(row, "codebook_size") for row in sizes] == [16384, 65536, 262144]
    assert tables["table_11"].value("var_d24", "parameters") == 1.0e9
    assert tables["table_11"].value("fvq_l", "parameters") == 343e6
    assert tables["table_10"].value("codes_262k", "vqbridge") == 55.89e9


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        ("table_1", "vqgan_1k", "lpips"),
        ("table_1", "vqgan_1k", "tokens"),
        ("table_8", "vae_sd", "codebook_size"),
        ("table_3", "fvq_256", "model"),
        ("table_4", "var", "tokens"),
        ("table_6", "epochs", "reconstruction"),
        ("table_6", "warmup_learning_rate", "generation"),
    ],
)
def test_what_is_no_number_has_no_value(table, row, column):
    assert paper_tables()[table].value(row, column) is None


@every_table
def test_figures_of_merit_are_numbers_or_dashes(number):
    table = paper_tables()[f"table_{number}"]
    for column in table.columns:
        if column.better:
            dashes = {row.id for row in table.rows if row.cells[column.key] == "—"}
            assert dashes == {row.id for row in table.rows if table.value(row.id, column.key) is None}


def test_unknown_cells_and_columns_are_errors():
    table = paper_tables()["table_1"]
    assert table.column("usage").name == "Codebook Usage ↑"
    with pytest.raises(KeyError):
        table.cell("fvq_40", "psnr")
    with pytest.raises(KeyError):
        table.value("fvq_50", "rfid")
    with pytest.raises(KeyError):
        table.column("psnr")


def settings(quantizer, annealing=True, **others):
    """A row's settings as a small study has them."""
    return {
        "quantizer": quantizer,
        "annealing": annealing,
        "codebook_size": 1024,
        "warmup": None,
        "options": {},
    } | others


def found(table, **measured):
    rows = {name: paper_row_of(paper_tables()[table], name, each) for name, each in measured.items()}
    return {name: row and row.id for name, row in rows.items()}


def test_rows_stand_next_to_their_namesakes_at_any_scale():
    rows = {
        "vq": settings("vq"),
        "vq_no_annealing": settings("vq", annealing=False),
        "linear": settings("linear"),
        "mlp5": settings("mlp5"),
        "mlp5_16x": settings("mlp5", codebook_size=262144),
        "fvq": settings("fvq"),
        "fvq_no_annealing": settings("fvq", annealing=False),
        "fvq_width_half": settings("fvq"),
    }
    nowhere = dict.fromkeys(rows)
    assert found("table_1", **rows) == nowhere | {
        "vq": "llamagen_256",
        "vq_no_annealing": "llamagen_256",
        "fvq": "fvq_40",
    }
    assert found("table_5", **rows) == nowhere | {
        "linear": "linear_annealing",
        "mlp5": "mlp5_annealing",
        "mlp5_16x": "mlp5_annealing",
        "fvq": "vqbridge_annealing_16k",
        "fvq_no_annealing": "vqbridge_16k",
    }
    assert found("table_10", **rows) == nowhere


def test_a_row_does_not_stand_where_only_its_name_belongs():
    assert found("table_1", fvq=settings("linear")) == {"fvq": None}
    assert found("table_1", fvq=settings("fvq", annealing=False)) == {"fvq": None}
    assert found("table_5", fvq_no_annealing=settings("fvq")) == {"fvq_no_annealing": None}
    assert found("table_2", fvq_l=settings("vq")) == {"fvq_l": None}
    assert found("table_9", fvq_no_warmup=settings("fvq")) == {"fvq_no_warmup": None}
    assert found("table_9", fvq_no_warmup=settings("fvq", warmup=0.0)) == {"fvq_no_warmup": "no_warmup"}
    assert found("table_1", fvq={}) == {"fvq": None}


def test_composed_quantizers_are_told_apart_by_the_inner_one():
    inner = {"options": {"inner": "fvq", "depth": 4}}
    assert found("table_4", rq_fvq=settings("residual", **inner)) == {"rq_fvq": "fvq_rq_vae"}
    assert found("table_4", rq_vq=settings("residual", **inner)) == {"rq_vq": None}
    assert found("table_4", rq_fvq=settings("residual")) == {"rq_fvq": None}
    assert found("table_4", rq_fvq=settings("residual", options=None)) == {"rq_fvq": None}


def test_generators_stand_by_the_quantizer_of_their_tokenizer():
    assert found("table_2", vq=settings("vq"), fvq=settings("fvq"), fvq_xl_llamagen=settings("fvq")) == {
        "vq": "llamagen_l",
        "fvq": "fvq_l",
        "fvq_xl_llamagen": "fvq_xl",
    }


def test_configured_rows_have_the_settings_of_the_places_that_name_them():
    configured = {}
    for path in sorted((ROOT / "conf" / "rows").glob("*.yaml")):
        configured |= yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(configured) >= TOKENIZERS
    for name in TOKENIZERS:
        row = configured[name] | {"annealing": configured[name]["annealing"] != "none"}
        for table in paper_tables().values():
            if table.number not in (2, 11) and any(name in entry.rows for entry in table.rows):
                assert isinstance(paper_row_of(table, name, row), PaperRow), (table.number, name)
