"""The paper's tables with its columns on the left and the measured ones on the right: content, no markup."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fvq.runtime.text import count
from fvq.study.groups import base_row, bridge_sweeps
from fvq.study.paper import PaperColumn, PaperRow, PaperTable, paper_row_of, paper_tables
from fvq.study.results import GeneratorRow, Study, TokenizerRow
from fvq.study.runs import StageRun
from fvq.study.tables.cells import ABSENT, Cell, ranked
from fvq.study.tables.columns import (
    Column,
    Filled,
    Row,
    bridge_columns,
    elsewhere_columns,
    further_columns,
    generator_columns,
    label_column,
    tokenizer_columns,
)
from fvq.study.tables.notes import (
    PAPER_LABEL,
    beside_paper,
    elsewhere_label,
    elsewhere_notes,
    generation_notes,
    measured_label,
    reconstruction_notes,
    samples_in_words,
)
from fvq.study.tables.settings import settings_cells

Kind: TypeAlias = Literal["tokenizers", "generators", "settings", "costs"]

_TITLES = {
    "table_1": "Reconstruction",
    "table_2": "Generation",
    "table_3": "Codebook size, channels and length of training",
    "table_4": "Several codes a place",
    "table_5": "Codebook usage and annealing",
    "table_6": "Settings of the training",
    "table_7": "PSNR and SSIM",
    "table_8": "Reconstruction, with further systems",
    "table_9": "Warm-up and shape of the annealing",
    "table_10": "Cost of the projectors",
    "table_11": "Generation, with further systems",
}
_SOURCES: dict[Kind, str] = {
    "tokenizers": "measured",
    "generators": "measured",
    "settings": "this study",
    "costs": "computed",
}
_COMPUTED = "computed here: multiply-adds of a pass over the codebook"
_COUNTED = (
    "Computed, not measured: the multiply-adds of all matrix products. The paper's counter adds 4 for each normalised "
    "element and 1/2 for each element that is put back into place."
)
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Result:
    """One number behind a line, unrounded; ``data`` says what it was measured on, ``run`` is the stage that did."""

    figure: str
    value: float | str
    data: str
    seed: int | None = None
    run: StageRun | None = None


@dataclass(frozen=True)
class Line:
    """A line of a table. Either side may be missing: ``measured`` is then empty; ``row`` names the measured row."""

    paper: PaperRow | None
    row: str | None
    measured: tuple[Cell, ...]
    results: tuple[Result, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper with the measured rows beside their kin, or a further one, which has no ``paper``.

    ``comparison`` says how the two sides stand to each other, '' where there is nothing to compare.
    """

    paper: PaperTable | None
    name: str
    title: str
    kind: Kind
    paper_label: str
    measured_label: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    comparison: str = ""

    @property
    def heading(self) -> str:
        """The title with the paper's number."""
        return f"Table {self.paper.number}: {self.title}" if self.paper else self.title

    @property
    def paper_columns(self) -> tuple[PaperColumn, ...]:
        """The paper's columns; empty where there is no such table."""
        return self.paper.columns if self.paper else ()

    @property
    def source(self) -> str:
        """Where what is not the paper's comes from, in a word or two."""
        return _SOURCES[self.kind]

    @property
    def measured(self) -> bool:
        """Whether anything stands on the measured side."""
        return any(line.measured for line in self.lines)


def build_tables(study: Study) -> list[Table]:
    """The paper's Tables 1 to 11, then what it only draws or does not have.

    A measured row stands beside the paper's row that is its like, in each table that has one. Rows that no table has
    follow in Table 1, generators in Table 2; Figure 6's have a table of their own.
    """
    return [
        *(_paper_table(study, name, paper) for name, paper in paper_tables().items()),
        *_bridge(study),
        *_further_generator_figures(study),
        *(_elsewhere(study, image_set) for image_set in study.elsewhere),
    ]


def _paper_table(study: Study, name: str, paper: PaperTable) -> Table:
    keys = {column.key for column in paper.columns}
    if "fid" in keys:
        return _generation(study, name, paper)
    if "rfid" in keys:
        return _reconstruction(study, name, paper)
    return _settings(study, name, paper) if "generation" in keys else _costs(study, name, paper)


# --- tables of figures -----------------------------------------------------------------------------------------------


def _reconstruction(study: Study, name: str, paper: PaperTable) -> Table:
    keys = [column.key for column in paper.columns]
    kin = {row.name: paper_row_of(paper, row.name, _row_settings(row)) for row in study.rows}
    rest = _in_no_table(study) if name == "table_1" else []
    shown = [row for row in study.rows if kin[row.name] or row in rest]
    filled = tokenizer_columns(study, keys)
    lines = _filled_lines(filled, shown, kin, lambda row, columns: _tokenizer_results(study, row, columns))
    return Table(
        paper=paper,
        name=name,
        title=_TITLES[name],
        kind="tokenizers",
        paper_label=PAPER_LABEL,
        measured_label=measured_label(study),
        columns=tuple(each.column for each in filled),
        lines=_in_paper_order(paper, lines),
        notes=_notes(paper, lines, reconstruction_notes(study, shown, keys)),
        comparison=beside_paper(study),
    )


def _generation(study: Study, name: str, paper: PaperTable) -> Table:
    kin = {row.name: paper_row_of(paper, row.name, _generator_settings(study, row)) for row in study.generators}
    known = {row.name for row in study.generators if _known(row.name, _generator_settings(study, row), "fid")}
    shown = [row for row in study.generators if kin[row.name] or (name == "table_2" and row.name not in known)]
    filled = generator_columns(study, [column.key for column in paper.columns])
    lines = _filled_lines(filled, shown, kin, lambda row, columns: _generator_results(study, row, columns))
    return Table(
        paper=paper,
        name=name,
        title=_TITLES[name],
        kind="generators",
        paper_label=PAPER_LABEL,
        measured_label=measured_label(study),
        columns=tuple(each.column for each in filled),
        lines=_in_paper_order(paper, lines),
        notes=_notes(paper, lines, generation_notes(study)),
        comparison=beside_paper(study),
    )


def _bridge(study: Study) -> list[Table]:
    """Figure 6's rows and the one that they vary."""
    swept = _swept(study)
    if not swept:
        return []
    shown, keys = [row for row in study.rows if row.name in swept], ["codebook_size", "rfid", "usage"]
    filled = [label_column(), *bridge_columns(), *tokenizer_columns(study, keys)[1:]]
    lines = _filled_lines(filled, shown, {}, lambda row, columns: _tokenizer_results(study, row, columns))
    return [
        Table(
            paper=None,
            name="figure_6",
            title="Width, depth and patch of the bridge, which the paper draws in Figure 6",
            kind="tokenizers",
            paper_label="",
            measured_label=measured_label(study),
            columns=tuple(each.column for each in filled),
            lines=lines,
            notes=_notes(None, lines, reconstruction_notes(study, shown, keys)),
        )
    ]


def _further_generator_figures(study: Study) -> list[Table]:
    """What the evaluation of the generators gave beyond the paper's figures."""
    filled = further_columns(study)
    if not filled:
        return []
    lines = _filled_lines(filled, study.generators, {}, lambda row, columns: _generator_results(study, row, columns))
    return [
        Table(
            paper=None,
            name="generators_more",
            title="Further figures of the generators",
            kind="generators",
            paper_label="",
            measured_label=measured_label(study),
            columns=tuple(each.column for each in filled),
            lines=lines,
            notes=_notes(None, lines, [f"Measured on {samples_in_words(study)}."]),
        )
    ]


def _elsewhere(study: Study, image_set: str) -> Table:
    """Reconstruction on a further image set, under its own protocol."""
    shown = [row for row in study.rows if image_set in row.elsewhere]
    filled = elsewhere_columns(study, image_set)
    lines = _filled_lines(filled, shown, {}, lambda row, columns: _tokenizer_results(study, row, columns))
    return Table(
        paper=None,
        name=f"elsewhere_{image_set}",
        title=f"Reconstruction on {image_set}",
        kind="tokenizers",
        paper_label="",
        measured_label=elsewhere_label(study, image_set),
        columns=tuple(each.column for each in filled),
        lines=lines,
        notes=_notes(None, lines, elsewhere_notes(study, image_set, shown)),
    )


# --- tables of settings and costs ------------------------------------------------------------------------------------


def _settings(study: Study, name: str, paper: PaperTable) -> Table:
    label = f"this study: {study.name}"
    lines = []
    for entry in paper.rows:
        cells = settings_cells(study, entry.id)
        texts = zip(("reconstruction", "generation"), cells, strict=True)
        results = tuple(Result(key, cell.text, label) for key, cell in texts if cell.text)
        lines.append(Line(entry, None, cells, results))
    notes = [] if study.generators else ["This study has no generator."]
    return Table(
        paper=paper,
        name=name,
        title=_TITLES[name],
        kind="settings",
        paper_label="paper: ImageNet 256×256",
        measured_label=label,
        columns=(Column("Reconstruction"), Column("Generation")),
        lines=tuple(lines),
        notes=_notes(paper, lines, notes),
    )


def _costs(study: Study, name: str, paper: PaperTable) -> Table:
    projectors = [column for column in paper.columns if column.key != "codebook_size"]
    costs = study.projector_costs

    def line(entry: PaperRow | None, size: int) -> Line:
        found = [(column.key, costs.get((column.key, size))) for column in projectors]
        if all(cost is None for _, cost in found):
            return Line(entry, None, ())
        cells = [Cell(ABSENT) if cost is None else Cell(f"{cost / 1e9:,.2f}G", value=cost) for _, cost in found]
        results = [Result(key, cost, _COMPUTED) for key, cost in found if cost is not None]
        size_cell = Cell(count(size), value=size)
        return Line(entry, None, (size_cell, *cells), (Result("codebook_size", size, _COMPUTED), *results))

    printed = {entry.id: int(paper.value(entry.id, "codebook_size") or 0) for entry in paper.rows}
    others = sorted({size for _, size in costs} - set(printed.values()))
    lines = [*(line(entry, printed[entry.id]) for entry in paper.rows), *(line(None, size) for size in others)]
    return Table(
        paper=paper,
        name=name,
        title=_TITLES[name],
        kind="costs",
        paper_label="paper: its estimate",
        measured_label=_COMPUTED,
        columns=(Column("Codebook Size"), *(Column(column.name, "", column.key) for column in projectors)),
        lines=tuple(lines),
        notes=_notes(paper, lines, [_COUNTED]),
    )


# --- lines -----------------------------------------------------------------------------------------------------------


def _filled_lines(
    filled: Sequence[Filled[Row]],
    rows: Sequence[Row],
    kin: Mapping[str, PaperRow | None],
    results: Callable[[Row, Sequence[Column]], Iterable[Result]],
) -> tuple[Line, ...]:
    """A line for each row, the best and the second-best of each figure marked."""
    columns = [each.column for each in filled]
    cells = [[each.cell(row) for row in rows] for each in filled]
    marked = [
        ranked(entries, higher=column.better == "higher") if column.better else entries
        for column, entries in zip(columns, cells, strict=True)
    ]
    return tuple(
        Line(kin.get(row.name), row.name, tuple(entries[position] for entries in marked), tuple(results(row, columns)))
        for position, row in enumerate(rows)
    )


def _in_paper_order(paper: PaperTable, lines: Sequence[Line]) -> tuple[Line, ...]:
    """The paper's rows, each with the measured ones beside it, then those without kin."""
    ordered: list[Line] = []
    for entry in paper.rows:
        ordered += [line for line in lines if line.paper == entry] or [Line(entry, None, ())]
    return (*ordered, *(line for line in lines if line.paper is None))


def _notes(paper: PaperTable | None, lines: Sequence[Line], measured: Sequence[str]) -> tuple[str, ...]:
    """What the marks mean, what the measured figures stand on, the paper's own notes, and remarks on its cells."""
    marks = []
    if any(cell.rank for line in lines for cell in line.measured):
        marks.append("Bold and underlined: best and second-best measured row.")
    if paper is None:
        return (*marks, *measured)
    if any(row.underlined for row in paper.rows):
        marks.append("Underlined on the paper's side: what the paper underlines; its bold is not kept.")
    remarks = [f"{mark} {remark}" for remark, mark in remark_marks(paper).items()]
    caption = f"The paper's caption: {paper.footnotes}" if paper.footnotes else ""
    notes = dict.fromkeys((" ".join(marks), *measured, caption, *paper.notes, *remarks))
    return tuple(note for note in notes if note)


def remark_marks(paper: PaperTable) -> dict[str, str]:
    """The remarks on a table's cells with the superscript digits that lead to them, in the order of the cells."""
    remarks = dict.fromkeys(
        row.remarks[column.key] for row in paper.rows for column in paper.columns if column.key in row.remarks
    )
    return {remark: str(number).translate(_SUPERSCRIPTS) for number, remark in enumerate(remarks, 1)}


# --- numbers ---------------------------------------------------------------------------------------------------------


def _tokenizer_results(study: Study, row: TokenizerRow, columns: Sequence[Column]) -> Iterator[Result]:
    """Every number behind a row's line: of each seed, and on each image set that a column shows."""
    seeds = {study.seed: (row.figures, study.run("evaluate_tokenizer", row.name))}
    seeds |= {
        seed: (figures, study.run("evaluate_repeat", f"{row.name}-{seed}")) for seed, figures in row.repeats.items()
    }
    label = measured_label(study)
    for name in _names([column.figure for column in columns if column.figure and not column.image_set]):
        for seed, (figures, run) in seeds.items():
            if name in figures:
                yield Result(name, figures[name], label, seed, run)
    for image_set in dict.fromkeys(column.image_set for column in columns if column.image_set):
        figures = row.elsewhere.get(image_set, {})
        for name in _names([column.figure for column in columns if column.image_set == image_set]):
            if name in figures:
                run = study.run("evaluate_elsewhere", row.name)
                yield Result(name, figures[name], elsewhere_label(study, image_set), study.seed, run)


def _generator_results(study: Study, row: GeneratorRow, columns: Sequence[Column]) -> Iterator[Result]:
    """Every number behind a generator's line."""
    label = measured_label(study)
    if row.parameters is not None and any(column.figure == "parameters" for column in columns):
        run = study.run("train_generator", row.name)
        yield Result("parameters", row.parameters, label, study.seed, run)
    for name in _names([column.figure for column in columns if column.figure]):
        if name in row.figures:
            run = study.run("evaluate_generator", row.name)
            yield Result(name, row.figures[name], label, study.seed, run)


def _names(figures: Sequence[str]) -> list[str]:
    """The figures with what belongs to them."""
    if not figures:
        return []
    counted = ["usage_codes", "usage_tokens", "usage_ceiling", "codebook_size"] if "usage" in figures else []
    names = [*figures, *counted]
    return [*names, *(f"{name}_{ending}" for name in names for ending in ("spread", "infinity")), "samples"]


# --- rows and their kin ----------------------------------------------------------------------------------------------


def _row_settings(row: TokenizerRow) -> dict[str, Any]:
    return row.settings | {"annealing": row.annealed}


def _generator_settings(study: Study, row: GeneratorRow) -> dict[str, Any]:
    return _row_settings(next(tokenizer for tokenizer in study.rows if tokenizer.name == row.tokenizer))


def _known(name: str, settings: Mapping[str, Any], figure: str) -> bool:
    """Whether a table of the paper with that column has a row of this kind."""
    return any(
        paper_row_of(paper, name, settings) is not None
        for paper in paper_tables().values()
        if figure in {column.key for column in paper.columns}
    )


def _swept(study: Study) -> set[str]:
    """The names of Figure 6's rows, with the one that they vary."""
    return {row.name for rows in bridge_sweeps(study.rows).values() for row in rows}


def _in_no_table(study: Study) -> list[TokenizerRow]:
    """Rows that neither a table of the paper nor, but for the one that they vary, Figure 6's has."""
    drawn = _swept(study) - {base_row(study.rows).name}
    return [row for row in study.rows if row.name not in drawn and not _known(row.name, _row_settings(row), "rfid")]
