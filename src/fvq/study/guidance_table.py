"""The table of the sweeps over guidance scales, as cells for the page and as Markdown, LaTeX and CSV."""

import csv
import io
from typing import NamedTuple

from fvq.runtime.text import significant
from fvq.study.formats import escape_latex, escape_markdown, latex_cell, markdown_cell, markdown_line
from fvq.study.guidance import images_in_words
from fvq.study.results import Study
from fvq.study.tables import Cell, measured_label

TITLE = "Figures against the scale of guidance"
_MARKS = "Bold: the smallest distance and the highest score of a row."


class GuidanceLine(NamedTuple):
    """A generator at one scale."""

    generator: str
    cells: tuple[Cell, ...]


def guidance_headings(study: Study) -> list[str]:
    """The columns' names."""
    distance = "FID" if study.inception else study.fd
    return ["Row", "Scale", f"{distance} ↓", f"{study.score} ↑", "Pre ↑", "Rec ↑"]


def guidance_lines(study: Study) -> list[GuidanceLine]:
    """A line for each scale of each sweep; rank 1 marks the smallest distance and the highest score of a sweep."""
    labels = {row.name: row.label for row in study.generators}
    return [
        GuidanceLine(
            sweep.generator,
            (
                Cell(labels[sweep.generator]),
                Cell(f"{scale:g}"),
                Cell(significant(sweep.distance[index]), rank=int(index == sweep.nearest)),
                Cell(significant(sweep.score[index]), rank=int(index == sweep.highest)),
                Cell(f"{sweep.precision[index]:.2f}"),
                Cell(f"{sweep.recall[index]:.2f}"),
            ),
        )
        for sweep in study.sweeps
        for index, scale in enumerate(sweep.scales.tolist())
    ]


def guidance_notes(study: Study) -> list[str]:
    """What the marks mean and what the figures stand on."""
    return [_MARKS, f"Measured on {images_in_words(study.sweeps)}"]


def guidance_files(study: Study) -> dict[str, str]:
    """The table's texts by the ending of their file: ``md``, ``tex`` and, in full precision, ``csv``."""
    return {"md": _to_markdown(study), "tex": _to_latex(study), "csv": _to_csv(study)}


def _to_markdown(study: Study) -> str:
    headings = guidance_headings(study)
    return "\n".join(
        [
            f"# {TITLE}",
            "",
            f"**{escape_markdown(measured_label(study))}**",
            "",
            markdown_line([escape_markdown(heading) for heading in headings]),
            markdown_line(["---" for _ in headings]),
            *(markdown_line([markdown_cell(cell) for cell in line.cells]) for line in guidance_lines(study)),
            "",
            *(f"- {escape_markdown(note)}" for note in guidance_notes(study)),
            "",
        ]
    )


def _to_latex(study: Study) -> str:
    headings = guidance_headings(study)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{TITLE}; {escape_latex(measured_label(study))}.}}",
            f"\\begin{{tabular}}{{{'l' * len(headings)}}}",
            "\\toprule",
            " & ".join(escape_latex(heading) for heading in headings) + " \\\\",
            "\\midrule",
            *(" & ".join(latex_cell(cell) for cell in line.cells) + " \\\\" for line in guidance_lines(study)),
            "\\bottomrule",
            "\\end{tabular}",
            "\\par\\smallskip\\footnotesize\\raggedright",
            *(f"{escape_latex(note)}\\\\" for note in guidance_notes(study)),
            "\\end{table}",
            "",
        ]
    )


def _to_csv(study: Study) -> str:
    """One scale a line."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "cfg_scale", study.fd, study.score, "precision", "recall", "samples"])
    for sweep in study.sweeps:
        figures = (sweep.scales, sweep.distance, sweep.score, sweep.precision, sweep.recall)
        for values in zip(*(column.tolist() for column in figures), strict=True):
            writer.writerow([sweep.generator, *(repr(value) for value in values), sweep.samples])
    return file.getvalue()
