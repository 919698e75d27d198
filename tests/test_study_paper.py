"""The stored tables against the paper's text, and which paper row a measured row stands next to."""

import os
from pathlib import Path

import pytest

from fvq.study.paper import TITLE, corresponding_rows, paper_tables

ASSETS = Path(os.environ.get("FVQ_TEST_ASSETS", Path(__file__).parents[1] / ".." / "shared"))
PAPER = ASSETS / "paper" / "fvq.md"

needs_paper = pytest.mark.skipif(not PAPER.exists(), reason=f"the paper's text is not there: {PAPER}")


def plain(text):
    """Printed text without what the stored tables leave out: bold, underline, formula marks."""
    marks = {r"\downarrow": "↓", r"\uparrow": "↑", "<u>": "", "</u>": "", "$": "", "**": "", " ^{": "^{"}
    for written, meant in marks.items():
        text = text.replace(written, meant)
    return text.strip()


def printed_lines():
    return [[plain(cell) for cell in line.split("\t")] for line in PAPER.read_text(encoding="utf-8").splitlines()]


@needs_paper
@pytest.mark.parametrize("name", ["table_1", "table_2", "table_3", "table_5"])
def test_every_cell_is_the_papers(name):
    table = paper_tables()[name]
    lines = printed_lines()
    headings = lines.index(list(table.columns.values()))
    following = lines[headings + 1 : headings + 2 + len(table.rows)]
    assert [list(row.cells.values()) for row in table.rows] == following[:-1]
    assert len(following[-1]) == 1, "the paper's table goes on"


@needs_paper
def test_captions_and_title_are_the_papers():
    text = plain(PAPER.read_text(encoding="utf-8")).replace(" .", ".")
    for table in paper_tables().values():
        assert f"Table {table.number}: {table.caption}" in text
    assert TITLE.upper() in text


@needs_paper
def test_noted_inconsistency_is_in_the_paper():
    assert ["AR", "FVQ-L (LlamaGen-L)", "343M", "2.39", "275.8", "0.84", "0.56"] in printed_lines()
    assert paper_tables()["table_2"].cell("fvq_l", "is") == "276.6"


def settings(quantizer, annealing=True, **sizes):
    return {
        "quantizer": quantizer,
        "annealing": annealing,
        "codebook_size": 16384,
        "code_dim": 256,
        "ratio": 16,
    } | sizes


def found(table, **measured):
    rows = corresponding_rows(paper_tables()[table], measured)
    return {name: row and row.id for name, row in rows.items()}


def test_small_study_stands_next_to_its_kind():
    small = {"codebook_size": 1024, "code_dim": 32, "ratio": 4, "epochs": None, "steps": 1000}
    rows = {
        "vq": settings("vq", **small),
        "linear": settings("linear", **small),
        "mlp5": settings("mlp5", **small),
        "fvq": settings("fvq", **small),
        "without": settings("fvq", annealing=False, **small),
    }
    assert found("table_1", **rows) == {
        "vq": "llamagen_256",
        "linear": None,
        "mlp5": None,
        "fvq": "fvq_40",
        "without": None,
    }
    assert found("table_5", **rows) == {
        "vq": None,
        "linear": "linear_annealing",
        "mlp5": "mlp5_annealing",
        "fvq": "vqbridge_annealing_16k",
        "without": "vqbridge_16k",
    }


def test_full_study_stands_next_to_its_own_sizes():
    rows = {
        "short": settings("fvq", epochs=40),
        "long": settings("fvq", epochs=120),
        "narrow": settings("fvq", epochs=40, code_dim=8),
        "large": settings("fvq", epochs=40, codebook_size=262144),
    }
    assert found("table_1", **rows) == {"short": "fvq_40", "long": "fvq_120", "narrow": None, "large": None}
    assert found("table_5", short=rows["short"], large=rows["large"]) == {
        "short": "vqbridge_annealing_16k",
        "large": "vqbridge_annealing_262k",
    }


def test_generators_stand_next_to_their_size():
    rows = {
        "small": settings("fvq", parameters=340_000_000),
        "large": settings("fvq", parameters=775_000_000),
        "unknown": settings("vq", parameters=None),
    }
    assert found("table_2", **rows) == {"small": "fvq_l", "large": "fvq_xl", "unknown": "llamagen_l"}


def test_unknown_cell_is_an_error():
    with pytest.raises(KeyError):
        paper_tables()["table_1"].cell("fvq_40", "psnr")
