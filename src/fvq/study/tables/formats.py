"""A table as Markdown, as LaTeX (booktabs) and as tidy CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

from fvq.study.runs import StageRun
from fvq.study.tables.build import Line, Table, remark_marks
from fvq.study.tables.cells import Cell

NO_KIN = "(not in the paper's table)"
NOT_MEASURED = "not measured here"
QUOTED = "quoted"

_SCRIPT = re.compile(r"([_^])\{([^{}]*)\}")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at a line's start it would be the length that \\ takes
    "*": "{*}",  # there it would belong to \\
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "−": "$-$",
    "∞": r"$\infty$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "⋄": r"$\diamond$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "—": "---",
    "–": "--",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "§": r"\S{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    **{digit: rf"\textsuperscript{{{number}}}" for number, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}


def side_by_side(line: Line, table: Table) -> tuple[list[Cell], list[Cell]]:
    """The cells of both sides, filled up where one of them is missing; no paper cells where there is no such table.

    The paper's texts write subscripts as _{…} and superscripts as ^{…}, see ``scripts``.
    """
    return _paper_cells(line, table), _measured_cells(line, table)


def scripts(text: str) -> list[tuple[str, str]]:
    """A text's parts, each with "" before plain ones, "_" before subscripts and "^" before superscripts."""
    # The split gives plain text, sign, script, plain text, …
    parts = _SCRIPT.split(text)
    found = [("", parts[0])]
    for sign, script, plain in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        found += [(sign, script), ("", plain)]
    return [(sign, part) for sign, part in found if part]


def _paper_cells(line: Line, table: Table) -> list[Cell]:
    if table.paper is None:
        return []
    row = line.paper
    if row is None:
        return _filled(NO_KIN, len(table.paper_columns))
    marks = remark_marks(table.paper)
    return [
        Cell(text, rank=2 if key in row.underlined else 0, mark=marks[row.remarks[key]] if key in row.remarks else "")
        for key, text in row.cells.items()
    ]


def _measured_cells(line: Line, table: Table) -> list[Cell]:
    if line.measured:
        return list(line.measured)
    quoted = line.paper is not None and line.paper.quoted and table.kind in ("tokenizers", "generators")
    return _filled(QUOTED if quoted else NOT_MEASURED, len(table.columns))


def _filled(text: str, width: int) -> list[Cell]:
    return [Cell(text), *(Cell("") for _ in range(width - 1))]


# --- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(table: Table, link: Callable[[StageRun], str] | None = None) -> str:
    """GitHub-flavoured Markdown; the headings say which side a column is on.

    Measured figures link to the record of the stage that measured them where there is one: to ``link`` of it, by
    default to where it lies when the table stands in `reports/tables/` of the folder that the study ran in.
    """
    headings = [
        *(f"paper: {_scripts_markdown(column.name)}" for column in table.paper_columns),
        *(f"{table.source}: {escape_markdown(column.heading)}" for column in table.columns),
    ]
    lines = [f"# {escape_markdown(table.heading)}", ""]
    if table.comparison:
        lines += [table.comparison, ""]
    labels = [label for label in (table.paper_label, table.measured_label) if label]
    lines += [f"- **{escape_markdown(label)}**" for label in labels]
    lines += ["", _markdown_line(headings), _markdown_line(["---"] * len(headings))]
    for line, heading in _with_headings(table):
        if heading:
            lines.append(_markdown_line([f"*{escape_markdown(heading)}*", *([""] * (len(headings) - 1))]))
        paper, measured = side_by_side(line, table)
        cells = [_paper_markdown(cell) for cell in paper]
        cells += [_markdown_cell(cell, link or _default_link) for cell in measured]
        lines.append(_markdown_line(cells))
    return "\n".join([*lines, "", *(f"- {_scripts_markdown(note)}" for note in table.notes)]) + "\n"


def escape_markdown(text: str) -> str:
    """``text`` so that Markdown shows it as it stands, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in r"\|*_`[]$~" else character for character in text)


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell, link: Callable[[StageRun], str]) -> str:
    """Text and detail, the best in bold, the second-best underlined; the text leads to ``link`` of the cell's run."""
    marked = _markdown_rank(escape_markdown(cell.text), cell) + cell.mark
    if cell.run and cell.run.recorded:
        marked = f"[{marked}]({link(cell.run)})"
    further = [f"[{escape_markdown(run.name)}]({link(run)})" for run in cell.further_runs if run.recorded]
    details = "; ".join(filter(None, [escape_markdown(cell.detail), ", ".join(further)]))
    return f"{marked} ({details})" if details else marked


def _paper_markdown(cell: Cell) -> str:
    return _markdown_rank(_scripts_markdown(cell.text), cell) + cell.mark


def _markdown_rank(text: str, cell: Cell) -> str:
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.rank, text)


def _scripts_markdown(text: str) -> str:
    forms = {"": "{}", "_": "<sub>{}</sub>", "^": "<sup>{}</sup>"}
    # Spaces at the ends of parts are kept.
    return "".join(
        forms[sign].format(" ".join(escape_markdown(word) for word in part.split(" "))) for sign, part in scripts(text)
    )


def _default_link(run: StageRun) -> str:
    path = quote(run.path.as_posix())
    return path if run.path.is_absolute() else f"../../{path}"


# --- LaTeX -----------------------------------------------------------------------------------------------------------


def to_latex(table: Table) -> str:
    """A table environment for a document with ``\\usepackage{booktabs}`` and, for its width, ``graphicx``.

    A comment before each measured row names the records of the stages that measured it.
    """
    left, right = len(table.paper_columns), len(table.columns)
    caption = escape_latex(table.title)
    if table.paper:
        beside = f"measured rows. {table.comparison}" if table.comparison else f"{table.measured_label}."
        caption += f": the paper's Table {table.paper.number} and {escape_latex(beside)}"
    else:
        caption += "."
    headings = [
        *(_scripts_latex(column.name) for column in table.paper_columns),
        *(escape_latex(column.heading) for column in table.columns),
    ]
    sides = [
        f"\\multicolumn{{{width}}}{{c}}{{{escape_latex(label)}}}"
        for width, label in ((left, table.paper_label), (right, table.measured_label))
        if width
    ]
    rules = [f"\\cmidrule(lr){{1-{left}}}"] if left else []
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{caption}}}",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{{'l' * (left + right)}}}",
        "\\toprule",
        " & ".join(sides) + " \\\\",
        " ".join([*rules, f"\\cmidrule(lr){{{left + 1}-{left + right}}}"]),
        " & ".join(headings) + " \\\\",
        "\\midrule",
    ]
    for line, heading in _with_headings(table):
        if heading:
            lines.append(f"\\multicolumn{{{left + right}}}{{l}}{{\\emph{{{escape_latex(heading)}}}}} \\\\")
        runs = [run for cell in line.measured for run in (cell.run, *cell.further_runs) if run and run.recorded]
        records = dict.fromkeys(run.path.as_posix() for run in runs)
        if records:
            lines.append(f"% {line.row}: {' '.join(' '.join(records).split())}")
        paper, measured = side_by_side(line, table)
        lines.append(" & ".join([*map(_paper_latex, paper), *map(_latex_cell, measured)]) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}}", "\\par\\smallskip\\footnotesize\\raggedright"]
    lines += [f"{_scripts_latex(note)}\\\\" for note in table.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def escape_latex(text: str) -> str:
    """``text`` so that LaTeX prints it as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_cell(cell: Cell) -> str:
    """As ``_markdown_cell``, without links."""
    marked = _latex_rank(escape_latex(cell.text), cell) + escape_latex(cell.mark)
    return f"{marked} ({escape_latex(cell.detail)})" if cell.detail else marked


def _paper_latex(cell: Cell) -> str:
    return _latex_rank(_scripts_latex(cell.text), cell) + escape_latex(cell.mark)


def _latex_rank(text: str, cell: Cell) -> str:
    return {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(cell.rank, text)


def _scripts_latex(text: str) -> str:
    forms = {"": "", "_": "\\textsubscript", "^": "\\textsuperscript"}
    parts = []
    for sign, part in scripts(text):
        escaped = " ".join(escape_latex(word) for word in part.split(" "))
        parts.append(f"{forms[sign]}{{{escaped}}}" if sign else escaped)
    return "".join(parts)


def _with_headings(table: Table) -> Iterator[tuple[Line, str]]:
    """The lines, with what the paper prints across the table above the first of a row."""
    before = None
    for line in table.lines:
        yield line, line.paper.heading if line.paper and line.paper != before else ""
        before = line.paper


# --- CSV -------------------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """One value a line.

    The columns: table, source (paper or ``Table.source``), data, row, the row that it stands beside, figure, value, and
    of a measured value its seed and the record of the stage that measured it. Paper values are as printed,
    measured ones in full precision, one for each seed. Where a line is of no row, its paper's row or its first cell
    names it.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "source", "data", "row", "beside", "figure", "value", "seed", "provenance"])
    number = table.paper.number if table.paper else table.name
    for row in table.paper.rows if table.paper else ():
        beside = " ".join(line.row for line in table.lines if line.paper == row and line.row)
        for figure, text in row.cells.items():
            writer.writerow([number, "paper", table.paper_label, row.id, beside, figure, text, "", ""])
    for line in table.lines:
        beside = line.paper.id if line.paper else ""
        for result in line.results:
            value = result.value if isinstance(result.value, str) else repr(result.value)
            record = result.run.path.as_posix() if result.run and result.run.recorded else ""
            name = line.row or beside or line.measured[0].text
            seed = "" if result.seed is None else result.seed
            writer.writerow([number, table.source, result.data, name, beside, result.figure, value, seed, record])
    return file.getvalue()
