"""The measured columns that belong to the paper's, by the paper's column keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from fvq.runtime.text import count, model_size, significant
from fvq.study.names import further_figures
from fvq.study.results import GeneratorRow, Study, TokenizerRow
from fvq.study.runs import StageRun
from fvq.study.settings import bridge_patch, bridge_width, describe
from fvq.study.tables.cells import ABSENT, Cell, distance_cell, distance_over_seeds, figure_over_seeds, usage_cell
from fvq.study.tables.notes import distance_label, released_set

Better = Literal["lower", "higher", ""]
Row = TypeVar("Row", TokenizerRow, GeneratorRow)

# Figure and heading: both ways of the paper's tables, FVQ's own first.
_PSNR = {"psnr_y": "PSNR ↑ (dB, luma)", "psnr_rgb": "PSNR ↑ (dB, RGB)"}
_SSIM = {
    "ssim_g11_dr2": "SSIM ↑ (11×11 Gaussian, range 2)",
    "ssim_u7_dr2": "SSIM ↑ (7×7 uniform, range 2)",
}


@dataclass(frozen=True)
class Column:
    """A measured column: heading, which direction is better, the key of its figure, and the image set if a further."""

    heading: str
    better: Better = ""
    figure: str = ""
    image_set: str = ""


@dataclass(frozen=True)
class Filled(Generic[Row]):
    """A column and what fills it."""

    column: Column
    cell: Callable[[Row], Cell]


def label_column() -> Filled[Row]:
    """The first of a table: what the rows are called."""
    return Filled(Column("Row"), lambda row: Cell(row.label))


def tokenizer_columns(study: Study, keys: Sequence[str]) -> list[Filled[TokenizerRow]]:
    """The row's label and the measured columns beside the paper's ``keys``, in their order."""
    return [label_column(), *(filled for key in keys for filled in _tokenizer_columns(study, key))]


def generator_columns(study: Study, keys: Sequence[str]) -> list[Filled[GeneratorRow]]:
    """The same of generators."""
    return [label_column(), *(filled for key in keys for filled in _generator_columns(study, key))]


def bridge_columns() -> list[Filled[TokenizerRow]]:
    """The sizes of the bridge that the paper's Figure 6 varies."""
    return [
        _setting("Bridge width", bridge_width),
        _setting("Bridge depth", lambda row: describe(row)["depth"]),
        _setting("Patch", bridge_patch),
    ]


def elsewhere_columns(study: Study, image_set: str) -> list[Filled[TokenizerRow]]:
    """Reconstruction on a further image set."""
    measured = {name for row in study.rows for name in row.elsewhere.get(image_set, {})}

    def figure(heading: str, better: Better, name: str, text: Callable[[float], str]) -> Filled[TokenizerRow]:
        def cell(row: TokenizerRow) -> Cell:
            value = row.elsewhere[image_set].get(name)
            return Cell(ABSENT) if value is None else _by(Cell(text(value), value=value), _elsewhere_run(study, row))

        return Filled(Column(heading, better, name, image_set), cell)

    return [
        label_column(),
        _distance_elsewhere(study, image_set, f"{distance_label(study, study.rfd_elsewhere(image_set))} ↓"),
        *(figure(heading, "higher", name, _decibels) for name, heading in _PSNR.items() if name in measured),
        figure("LPIPS ↓", "lower", "lpips_alex", significant),
    ]


def further_columns(study: Study) -> list[Filled[GeneratorRow]]:
    """Those of the generators' figures that no table of the paper has and some generator here has; may be empty."""
    headings = {"sfid": "sFID ↓", "kid": "KID ↓", "density": "Density ↑", "coverage": "Coverage ↑"}
    names = [
        name
        for name in further_figures(study.generator_protocol)
        if any(name in row.figures for row in study.generators)
    ]
    columns = []
    for name in names:
        better: Better = "higher" if name.startswith(("density", "coverage")) else "lower"
        heading = headings.get(name, f"{name} {'↑' if better == 'higher' else '↓'}")
        columns.append(_generator_figure(study, heading, better, name, significant))
    return [label_column(), *columns] if columns else []


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


def of_every_seed(study: Study, row: TokenizerRow, cell: Cell) -> Cell:
    """The cell as the result of a row's evaluations, of each seed that it was trained with, if it holds any."""
    if cell.value is None:
        return cell
    repeats = tuple(study.run("evaluate_repeat", f"{row.name}-{seed}") for seed in row.repeats)
    return replace(cell, run=study.run("evaluate_tokenizer", row.name), further_runs=repeats)


def _tokenizer_columns(study: Study, key: str) -> list[Filled[TokenizerRow]]:
    measured = {name for row in study.rows for name in row.figures}
    match key:
        case "tokens":
            return [Filled(Column("Tokens"), lambda row: Cell(token_grid(row)))]
        case "codebook_size":
            return [_setting("Codebook Size", lambda row: row.settings["codebook_size"])]
        case "code_dim":
            return [_setting("Vector Channel", lambda row: row.settings["code_dim"])]
        case "ratio":
            return [_setting("Ratio", lambda row: row.settings["ratio"])]
        case "epochs":
            return [Filled(Column("Training"), lambda row: Cell(row.length, value=_length(row)))]
        case "rfid":
            column = Column(f"{distance_label(study, study.rfd)} ↓", "lower", study.rfd)
            own = Filled(column, lambda row: of_every_seed(study, row, distance_over_seeds(row, study.rfd)))
            return [own, *_as_released(study)]
        case "rfid_coco":
            if "coco" not in study.elsewhere:
                return [Filled(Column("COCO: not measured here"), lambda _: Cell(ABSENT))]
            heading = f"COCO: {distance_label(study, study.rfd_elsewhere('coco'))} ↓"
            return [_distance_elsewhere(study, "coco", heading)]
        case "lpips":
            return [_tokenizer_figure(study, "LPIPS ↓", "lower", "lpips_alex", significant)]
        case "psnr":
            return [
                _tokenizer_figure(study, heading, "higher", name, _decibels)
                for name, heading in _PSNR.items()
                if name in measured
            ]
        case "ssim":
            chosen = {name: heading for name, heading in _SSIM.items() if name in measured}
            chosen = chosen or {"ssim_g11": "SSIM ↑ (11×11 Gaussian, range 1)"}
            return [_tokenizer_figure(study, heading, "higher", name, _thousandths) for name, heading in chosen.items()]
        case "usage":
            column = Column("Codebook Usage ↑", "higher", "usage")
            return [Filled(column, lambda row: of_every_seed(study, row, usage_cell(row)))]
    return []


def _generator_columns(study: Study, key: str) -> list[Filled[GeneratorRow]]:
    match key:
        case "parameters":
            return [Filled(Column("#Para", "", "parameters"), lambda row: _parameters(study, row))]
        case "fid":
            column = Column(f"{'FID' if study.inception else study.fd} ↓", "lower", study.fd)
            return [
                Filled(
                    column,
                    lambda row: _by(distance_cell(row.figures, study.fd), study.run("evaluate_generator", row.name)),
                )
            ]
        case "is":
            return [_generator_figure(study, f"{study.score} ↑", "higher", study.score, significant)]
        case "precision":
            return [_generator_figure(study, "Pre ↑", "higher", study.precision, _hundredths)]
        case "recall":
            return [_generator_figure(study, "Rec ↑", "higher", study.recall, _hundredths)]
    return []


def _parameters(study: Study, row: GeneratorRow) -> Cell:
    if row.parameters is None:
        return Cell(ABSENT)
    return Cell(model_size(row.parameters), value=row.parameters, run=study.run("train_generator", row.name))


def _setting(heading: str, number: Callable[[TokenizerRow], float]) -> Filled[TokenizerRow]:
    return Filled(Column(heading), lambda row: Cell(count(number(row)), value=number(row)))


def _tokenizer_figure(
    study: Study, heading: str, better: Better, name: str, text: Callable[[float], str]
) -> Filled[TokenizerRow]:
    column = Column(heading, better, name)
    return Filled(column, lambda row: of_every_seed(study, row, figure_over_seeds(row, name, text)))


def _generator_figure(
    study: Study, heading: str, better: Better, name: str, text: Callable[[float], str]
) -> Filled[GeneratorRow]:
    def cell(row: GeneratorRow) -> Cell:
        value = row.figures.get(name)
        if value is None:
            return Cell(ABSENT)
        return _by(Cell(text(value).replace("-", "−"), value=value), study.run("evaluate_generator", row.name))

    return Filled(Column(heading, better, name), cell)


def _as_released(study: Study) -> list[Filled[TokenizerRow]]:
    """The distance on the study's own images by the protocol of the paper's rFID, where that was measured."""
    image_set = released_set(study)
    if image_set is None:
        return []
    name = "rFID" if study.inception else study.rfd_elsewhere(image_set)
    return [_distance_elsewhere(study, image_set, f"{name} as released ↓ (plain crop, JPEG)")]


def _distance_elsewhere(study: Study, image_set: str, heading: str) -> Filled[TokenizerRow]:
    name = study.rfd_elsewhere(image_set)

    def cell(row: TokenizerRow) -> Cell:
        if image_set not in row.elsewhere:
            return Cell(ABSENT)
        return _by(distance_cell(row.elsewhere[image_set], name), _elsewhere_run(study, row))

    return Filled(Column(heading, "lower", name, image_set), cell)


def _by(cell: Cell, run: StageRun) -> Cell:
    """The cell as a stage's result, if it holds any."""
    return cell if cell.value is None else replace(cell, run=run)


def _length(row: TokenizerRow) -> float:
    return float(row.settings["steps"] if row.settings.get("epochs") is None else row.settings["epochs"])


def _elsewhere_run(study: Study, row: TokenizerRow) -> StageRun:
    return study.run("evaluate_elsewhere", row.name)


def _decibels(value: float) -> str:
    return f"{value:.2f}"


_hundredths = _decibels


def _thousandths(value: float) -> str:
    return f"{value:.3f}"
