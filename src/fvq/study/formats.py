"""A table as Markdown, as LaTeX (booktabs) and as tidy CSV."""

import csv
import io
from collections.abc import Sequence

from fvq.study.tables import PAPER_LABEL, Cell, Line, Table

NO_KIN = "(not in the paper's table)"
NOT_MEASURED = "—"

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
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": "$-$",
    "∞": r"$\infty$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "—": "---",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
}


def side_by_side(line: Line, table: Table) -> tuple[list[Cell], list[Cell]]:
    """The cells of both sides, filled up where one of them is missing."""
    width = len(table.columns)
    paper = [Cell(text) for text in line.paper.cells.values()] if line.paper else _filled(NO_KIN, table.paper.columns)
    measured = list(line.measured) if line.row else _filled(NOT_MEASURED, range(width))
    return paper, measured


def _filled(text: str, columns: Sequence[object] | dict[str, str] | range) -> list[Cell]:
    return [Cell(text), *(Cell("") for _ in range(len(columns) - 1))]


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown; the headings say which side a column is on."""
    headings = [
        *(f"paper: {name}" for name in table.paper.columns.values()),
        *(f"measured: {column.heading}" for column in table.columns),
    ]
    rules = [*("---" for _ in table.paper.columns), *("---" for _ in table.columns)]
    lines = [
        f"# Table {table.paper.number}: {table.title}",
        "",
        "Two kinds of data side by side, not to be compared figure by figure:",
        "",
        f"- **{escape_markdown(PAPER_LABEL)}**",
        f"- **{escape_markdown(table.measured_label)}**",
        "",
        markdown_line([escape_markdown(heading) for heading in headings]),
        markdown_line(rules),
    ]
    for line in table.lines:
        paper, measured = side_by_side(line, table)
        lines.append(markdown_line([markdown_cell(cell) for cell in (*paper, *measured)]))
    return "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in table.notes)]) + "\n"


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def markdown_cell(cell: Cell) -> str:
    """Text and detail, the best in bold, the second-best underlined."""
    text = escape_markdown(cell.text)
    marked = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    return f"{marked} ({escape_markdown(cell.detail)})" if cell.detail else marked


def escape_markdown(text: str) -> str:
    """``text`` so that Markdown shows it as it stands, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{character}" if character in r"\|*_`[]" else character for character in text)


def to_latex(table: Table) -> str:
    """A table environment for a document with ``\\usepackage{booktabs}`` and, for its width, ``graphicx``."""
    left, right = len(table.paper.columns), len(table.columns)
    headings = [*table.paper.columns.values(), *(column.heading for column in table.columns)]
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape_latex(table.title)}: the paper's Table {table.paper.number} and measured rows. "
        "The two sides are different data.}",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{{'l' * left}{'l' * right}}}",
        "\\toprule",
        f"\\multicolumn{{{left}}}{{c}}{{{escape_latex(PAPER_LABEL)}}} & "
        f"\\multicolumn{{{right}}}{{c}}{{{escape_latex(table.measured_label)}}} \\\\",
        f"\\cmidrule(lr){{1-{left}}} \\cmidrule(lr){{{left + 1}-{left + right}}}",
        " & ".join(escape_latex(heading) for heading in headings) + " \\\\",
        "\\midrule",
    ]
    for line in table.lines:
        paper, measured = side_by_side(line, table)
        lines.append(" & ".join(latex_cell(cell) for cell in (*paper, *measured)) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}}", "\\par\\smallskip\\footnotesize\\raggedright"]
    lines += [f"{escape_latex(note)}\\\\" for note in table.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def latex_cell(cell: Cell) -> str:
    """As ``markdown_cell``, for LaTeX."""
    text = escape_latex(cell.text)
    marked = {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(cell.rank, text)
    return f"{marked} ({escape_latex(cell.detail)})" if cell.detail else marked


def escape_latex(text: str) -> str:
    """``text`` so that LaTeX prints it as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_csv(table: Table) -> str:
    """One value a line: table, source (paper, measured), data, row, the row that it stands beside, figure, value.

    Paper values are as printed, measured ones in full precision.
    """
    measured_figures = [column.figure for column in table.columns if column.figure]
    if "usage" in measured_figures:
        measured_figures += ["usage_codes", "usage_tokens", "usage_ceiling", "codebook_size"]
    measured_figures += [f"{name}_{ending}" for name in measured_figures for ending in ("spread", "infinity")]
    measured_figures.append("samples")
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "source", "data", "row", "beside", "figure", "value"])
    for row in table.paper.rows:
        beside = " ".join(line.row for line in table.lines if line.paper == row and line.row)
        for figure, value in row.cells.items():
            writer.writerow([table.paper.number, "paper", PAPER_LABEL, row.id, beside, figure, value])
    for line in table.lines:
        for figure in measured_figures:
            if figure in line.figures:
                beside = line.paper.id if line.paper else ""
                value = repr(line.figures[figure])
                writer.writerow([table.paper.number, "measured", table.measured_label, line.row, beside, figure, value])
    return file.getvalue()
