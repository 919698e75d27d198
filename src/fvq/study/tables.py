"""Tables 1, 2 and 5 with the paper's columns on the left and the measured ones on the right: content, no markup."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fvq.evaluate.record import NONE
from fvq.runtime.text import count, expected, model_size, percent, significant, supported
from fvq.study.paper import PaperRow, PaperTable, corresponding_rows, paper_tables
from fvq.study.results import GeneratorRow, Study, TokenizerRow

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


def figure_text(figures: Mapping[str, float], name: str) -> str:
    """A figure with three significant digits, or those that its spread supports where that was measured."""
    return supported(figures[name], figures.get(f"{name}_spread")).replace("-", "−")


def distance_cell(figures: Mapping[str, float], name: str) -> Cell:
    """A Fréchet distance with its spread over halves of the images and its extrapolation, where they were measured."""
    spread, infinity = figures.get(f"{name}_spread"), figures.get(f"{name}_infinity")
    details = [] if spread is None else [f"± {significant(spread, 1)}"]
    if infinity is not None:
        details.append(f"at ∞: {supported(infinity, spread)}".replace("-", "−"))
    return Cell(figure_text(figures, name), "; ".join(details))


def distance_notes(figures: Sequence[Mapping[str, float]], name: str) -> list[str]:
    """What stands beside a Fréchet distance in its cells."""
    notes = []
    if any(f"{name}_spread" in each for each in figures):
        notes.append(
            f"± after {name}: its standard deviation by the choice of images, from random halves of them. No more "
            "digits are shown than it supports."
        )
    if any(f"{name}_infinity" in each for each in figures):
        notes.append(f"At ∞: {name} extrapolated to infinitely many images (Chong and Forsyth 2020).")
    return notes


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
        Column(_reconstruction_heading(study), "lower", study.rfd),
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
            distance_cell(row.figures, study.rfd),
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
        Column(f"{'FID' if study.inception else study.fd} ↓", "lower", study.fd),
        Column(f"{study.score} ↑", "higher", study.score),
        Column("Pre ↑", "higher", study.precision),
        Column("Rec ↑", "higher", study.recall),
    )
    tokenizers = {row.name: row for row in study.rows}

    def cells(row: GeneratorRow) -> list[Cell]:
        return [
            Cell(row.label),
            Cell(ABSENT if row.parameters is None else model_size(row.parameters)),
            distance_cell(row.figures, study.fd),
            Cell(significant(row.figures[study.score]) if study.score in row.figures else ABSENT),
            *(
                Cell(f"{row.figures[name]:.2f}" if name in row.figures else ABSENT)
                for name in (study.precision, study.recall)
            ),
        ]

    def settings(row: GeneratorRow) -> dict[str, Any]:
        tokenizer = tokenizers[row.tokenizer]
        return {
            "quantizer": tokenizer.settings["quantizer"],
            "annealing": tokenizer.annealed,
            "parameters": row.parameters,
        }

    return _table(study, "table_2", "Generation", columns, study.generators, settings, cells, _generation_notes(study))


def _usage(study: Study) -> Table:
    columns = (
        Column("Row"),
        Column("Codebook Size"),
        Column("usage ↑", "higher", "usage"),
        Column(_reconstruction_heading(study), "lower", study.rfd),
        Column("PSNR ↑ (dB)", "higher", "psnr_rgb"),
    )

    def cells(row: TokenizerRow) -> list[Cell]:
        return [
            Cell(row.label),
            Cell(count(row.settings["codebook_size"])),
            usage_cell(row),
            distance_cell(row.figures, study.rfd),
            Cell(f"{row.figures['psnr_rgb']:.2f}"),
        ]

    return _table(
        study,
        "table_5",
        "Codebook usage and annealing",
        columns,
        study.rows,
        _settings,
        cells,
        reconstruction_distance_notes(study),
    )


def images_in_words(rows: Sequence[TokenizerRow] | Sequence[GeneratorRow]) -> str:
    """How many images the rows' figures stand on."""
    return " or ".join(count(number) for number in sorted({int(row.figures["samples"]) for row in rows}))


def samples_in_words(study: Study) -> str:
    """How many samples the generators' figures stand on, and how many reference images."""
    known = study.generator_protocol["protocol_reference_images"]
    reference = f"{count(int(known))} reference images" if known.isdecimal() else "stored statistics of the reference"
    return f"{images_in_words(study.generators)} samples a row against {reference}"


def reconstruction_distance_notes(study: Study) -> list[str]:
    """How many images the Fréchet distance of reconstructions stands on, and what is said of its chance."""
    images = f"{study.rfd} compares the reconstructions of {images_in_words(study.rows)} images with the originals."
    return [images, *distance_notes([row.figures for row in study.rows], study.rfd)]


def _settings(row: TokenizerRow) -> dict[str, Any]:
    return row.settings | {"annealing": row.annealed}


def _reconstruction_heading(study: Study) -> str:
    if not study.inception:
        return f"{study.rfd} ↓"
    return "rFID of JPEGs ↓" if study.rfd.endswith("_jpeg75") else "rFID ↓"


def _reconstruction_notes(study: Study) -> list[str]:
    lpips = "Measured LPIPS: AlexNet."
    if not any("lpips_alex" in row.figures for row in study.rows):
        why = study.tokenizer_protocol.get("protocol_lpips_alex", "not asked for").removeprefix("absent: ")
        lpips = f"LPIPS is not measured here: {why}."
    return [lpips, *reconstruction_distance_notes(study)]


def _generation_notes(study: Study) -> list[str]:
    if not study.generators:
        return ["This study has no generator."]
    notes = [f"Measured on {samples_in_words(study)}."]
    network = study.generator_protocol["protocol_neighbours_on"]
    if network not in (NONE, study.extractor):
        notes.append(f"Precision and recall on the features of {network}.")
    if study.precision.endswith("_float16"):
        notes.append("Precision and recall with the ADM evaluator's float16 distances, which lie a little higher.")
    return [*notes, *distance_notes([row.figures for row in study.generators], study.fd)]


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
