"""Tables 1, 2 and 5 with the paper's columns on the left and the measured ones on the right: content, no markup."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fvq.study.paper import PaperRow, PaperTable, corresponding_rows, paper_tables
from fvq.study.results import GeneratorRow, Study, TokenizerRow
from fvq.study.text import count, expected, model_size, percent, significant

PAPER_LABEL = "paper: ImageNet 256×256, FID on Inception"
ABSENT = "—"

Better = Literal["lower", "higher", ""]
Row = TypeVar("Row", TokenizerRow, GeneratorRow)


@dataclass(frozen=True)
class Column:
    """A measured column: heading, which direction is better, and the key of its figure in metrics.json."""

    heading: str
    better: Better = ""
    figure: str = ""


@dataclass(frozen=True)
class Cell:
    """``text`` and a ``detail`` that goes with it; ``rank`` is 1 for the best, 2 for the second-best measured."""

    text: str
    detail: str = ""
    rank: int = 0


@dataclass(frozen=True)
class Line:
    """A line of a table. Either side may be missing; ``row`` names the measured row, ``figures`` are unrounded."""

    paper: PaperRow | None
    row: str | None
    measured: tuple[Cell, ...]
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables with the measured rows beside their kin."""

    paper: PaperTable
    name: str
    title: str
    measured_label: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def measured_label(study: Study) -> str:
    """What the measured columns hold, to stand over them."""
    height, width = study.image_size
    distance = "FID on Inception" if study.inception else "Fréchet distance on the study's own classifier, not FID"
    return f"measured here: {study.dataset} {width}×{height}, {distance}"


def build_tables(study: Study) -> list[Table]:
    """Tables 1, 2 and 5 of a study."""
    return [_reconstruction(study), _generation(study), _usage(study)]


def usage_cell(row: TokenizerRow) -> Cell:
    """Codebook usage with the number of tokens it was counted over and the ceiling that this number allows."""
    figures = row.figures
    tokens, ceiling = count(figures["usage_tokens"]), expected(figures["usage_ceiling"])
    return Cell(percent(figures["usage"]), f"{tokens} tokens, ceiling {ceiling}")


def token_grid(row: TokenizerRow) -> str:
    """The tokens of an image: 8×8, 8×8×4 with several a place, or the sides of the grids of several scales."""
    ratio, options = int(row.settings["ratio"]), row.settings.get("options", {})
    height, width = (side // ratio for side in row.original.shape[1:3])
    match row.settings["quantizer"]:
        case "residual":
            return f"{height}×{width}×{options.get('depth', 4)}"
        case "multiscale":
            return count(sum(side**2 for side in options.get("scales", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))))
    return f"{height}×{width}"


def _reconstruction(study: Study) -> Table:
    columns = (
        Column("Row"),
        Column("Tokens"),
        Column("Codebook Size"),
        Column("Vector Channel"),
        Column(_distance_heading(study, "r"), "lower", study.rfd),
        Column("LPIPS ↓", "lower", "lpips_alex"),
        Column("Codebook Usage ↑", "higher", "usage"),
    )

    def cells(row: TokenizerRow) -> list[Cell]:
        lpips = row.figures.get("lpips_alex")
        return [
            Cell(row.label),
            Cell(token_grid(row)),
            Cell(count(row.settings["codebook_size"])),
            Cell(count(row.settings["code_dim"])),
            Cell(significant(row.figures[study.rfd])),
            Cell(ABSENT if lpips is None else significant(lpips)),
            usage_cell(row),
        ]

    return _table(
        study, "table_1", "Reconstruction", columns, study.rows, _settings, cells, _reconstruction_notes(study)
    )


def _generation(study: Study) -> Table:
    columns = (
        Column("Row"),
        Column("#Para"),
        Column(_distance_heading(study, ""), "lower", study.fd),
        Column(f"{study.score} ↑", "higher", study.score),
        Column("Pre ↑", "higher", "precision"),
        Column("Rec ↑", "higher", "recall"),
    )
    tokenizers = {row.name: row for row in study.rows}

    def cells(row: GeneratorRow) -> list[Cell]:
        return [
            Cell(row.label),
            Cell(ABSENT if row.parameters is None else model_size(row.parameters)),
            Cell(significant(row.figures[study.fd])),
            Cell(significant(row.figures[study.score])),
            Cell(f"{row.figures['precision']:.2f}"),
            Cell(f"{row.figures['recall']:.2f}"),
        ]

    def settings(row: GeneratorRow) -> dict[str, Any]:
        tokenizer = tokenizers[row.tokenizer]
        return {
            "quantizer": tokenizer.settings["quantizer"],
            "annealing": tokenizer.annealed,
            "parameters": row.parameters,
        }

    notes = [f"Measured on {samples_in_words(study)}."] if study.generators else ["This study has no generator."]
    return _table(study, "table_2", "Generation", columns, study.generators, settings, cells, notes)


def _usage(study: Study) -> Table:
    columns = (
        Column("Row"),
        Column("Codebook Size"),
        Column("usage ↑", "higher", "usage"),
        Column(_distance_heading(study, "r"), "lower", study.rfd),
        Column("PSNR ↑ (dB)", "higher", "psnr_rgb"),
    )

    def cells(row: TokenizerRow) -> list[Cell]:
        return [
            Cell(row.label),
            Cell(count(row.settings["codebook_size"])),
            usage_cell(row),
            Cell(significant(row.figures[study.rfd])),
            Cell(f"{row.figures['psnr_rgb']:.2f}"),
        ]

    return _table(study, "table_5", "Codebook usage and annealing", columns, study.rows, _settings, cells, [])


def samples_in_words(study: Study) -> str:
    """How many samples the generators' figures stand on."""
    numbers = sorted({int(row.figures["samples"]) for row in study.generators})
    return " and ".join(count(number) for number in numbers) + " samples a row"


def _settings(row: TokenizerRow) -> dict[str, Any]:
    return row.settings | {"annealing": row.annealed}


def _distance_heading(study: Study, prefix: str) -> str:
    return f"{prefix}FID ↓" if study.inception else f"{prefix}fd_{study.extractor} ↓"


def _reconstruction_notes(study: Study) -> list[str]:
    if any("lpips_alex" in row.figures for row in study.rows):
        return ["Measured LPIPS: AlexNet."]
    return [
        "LPIPS is not measured here: "
        + study.tokenizer_protocol.get("protocol_lpips_alex", "no weights").removeprefix("absent: ")
        + "."
    ]


def _table(
    study: Study,
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    settings: Callable[[Row], dict[str, Any]],
    cells: Callable[[Row], list[Cell]],
    notes: Sequence[str],
) -> Table:
    paper: PaperTable = paper_tables()[name]
    kin = corresponding_rows(paper, {row.name: settings(row) for row in rows})
    measured = dict(zip(kin, _rank(columns, rows, [cells(row) for row in rows]), strict=True))
    figures = {row.name: row.figures for row in rows}
    lines: list[Line] = []
    for entry in paper.rows:
        beside = [row.name for row in rows if kin[row.name] == entry]
        lines += [Line(entry, row, measured[row], figures[row]) for row in beside] or [Line(entry, None, ())]
    lines += [Line(None, row.name, measured[row.name], row.figures) for row in rows if kin[row.name] is None]
    marks = "A dash first on the measured side: not measured here."
    if len(rows) > 1:
        marks = f"Bold and underlined: best and second-best measured row. {marks}"
    return Table(
        paper=paper,
        name=name,
        title=title,
        measured_label=measured_label(study),
        columns=tuple(columns),
        lines=tuple(lines),
        notes=tuple(note for note in (marks, *notes, paper.footnotes, *paper.notes) if note),
    )


def _rank(
    columns: Sequence[Column], rows: Sequence[TokenizerRow | GeneratorRow], cells: Sequence[Sequence[Cell]]
) -> list[tuple[Cell, ...]]:
    """Mark the best and the second-best of each measured column. What reads the same ranks the same."""
    ranks: list[dict[str, int]] = []
    for position, column in enumerate(columns):
        values: dict[str, float] = {}
        for row, line in zip(rows, cells, strict=True):
            if column.better and column.figure in row.figures:
                values.setdefault(line[position].text, row.figures[column.figure])
        order = sorted(values, key=lambda text: values[text], reverse=column.better == "higher")
        ranks.append({text: rank for rank, text in enumerate(order[:2], 1)} if len(order) > 1 else {})
    return [
        tuple(Cell(cell.text, cell.detail, rank.get(cell.text, 0)) for cell, rank in zip(line, ranks, strict=True))
        for line in cells
    ]
