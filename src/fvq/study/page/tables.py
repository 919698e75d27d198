"""Tables on the page: what their cells are sorted by and lead to, and subscripts as they are written."""

import re
from dataclasses import replace

from markupsafe import Markup

from fvq.study.tables.build import Line, Table
from fvq.study.tables.cells import Cell
from fvq.study.tables.formats import scripts, side_by_side

_SCRIPTS = {"": "{}", "_": "<sub>{}</sub>", "^": "<sup>{}</sup>"}


def sortable_cells(line: Line, table: Table) -> tuple[list[Cell], list[Cell]]:
    """Both sides of a line as ``side_by_side`` gives them, the paper's figures with their numbers as well."""
    paper, measured = side_by_side(line, table)
    if table.paper and line.paper:
        keys = [column.key for column in table.paper_columns]
        row = line.paper.id
        paper = [replace(cell, value=table.paper.value(row, key)) for key, cell in zip(keys, paper, strict=True)]
    return paper, measured


def detail_parts(detail: str) -> list[list[str]]:
    """What goes with a figure, a line each, in pieces that are not broken: ``256,000 tokens,`` and ``ceiling 100%``."""
    return [re.split("(?<=,) ", part) for part in detail.split("; ")]


def is_remark(note: str) -> bool:
    """Whether a table's note explains single cells of the paper's, which lead to it by a superscript number."""
    return note[0] in "¹²³⁴⁵⁶⁷⁸⁹"


def scripted(text: str) -> Markup:
    """Escaped text with what stands as _{…} and ^{…} below and above the line."""
    return Markup("").join(Markup(_SCRIPTS[sign]).format(part) for sign, part in scripts(text))
