"""The table of the sweeps over guidance scales, and its figures as CSV."""

import csv
import io

from fvq.runtime.text import significant
from fvq.study.guidance import images_in_words
from fvq.study.results import Study
from fvq.study.tables.build import Line, Table
from fvq.study.tables.cells import Cell
from fvq.study.tables.columns import Column
from fvq.study.tables.notes import measured_label

_MARKS = "Bold: the smallest distance and the highest score of a row."


def guidance_table(study: Study) -> Table | None:
    """A line for each scale of each sweep; rank 1 marks a sweep's smallest distance and highest score. None without."""
    if not study.sweeps:
        return None
    distance = "FID" if study.inception else study.fd
    return Table(
        paper=None,
        name="guidance",
        title="Figures against the scale of guidance",
        kind="generators",
        paper_label="",
        measured_label=measured_label(study),
        columns=(
            Column("Row"),
            Column("Scale"),
            Column(f"{distance} ↓", "lower", study.fd),
            Column(f"{study.score} ↑", "higher", study.score),
            Column("Pre ↑", "higher", "precision"),
            Column("Rec ↑", "higher", "recall"),
        ),
        lines=_lines(study),
        notes=(_MARKS, f"Measured on {images_in_words(study.sweeps)}"),
    )


def guidance_csv(study: Study) -> str:
    """The sweeps in full precision, one scale a line, each with its seed and the record of the stage that made it."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    figures = [study.fd, study.score, "precision", "recall"]
    writer.writerow(["row", "cfg_scale", *figures, "samples", "seed", "provenance"])
    for sweep in study.sweeps:
        run = study.run("sweep_guidance", sweep.generator)
        origin = [sweep.samples, study.seed, run.path.as_posix() if run.recorded else ""]
        columns = (sweep.scales, sweep.distance, sweep.score, sweep.precision, sweep.recall)
        for values in zip(*(column.tolist() for column in columns), strict=True):
            writer.writerow([sweep.generator, *(repr(value) for value in values), *origin])
    return file.getvalue()


def _lines(study: Study) -> tuple[Line, ...]:
    labels = {row.name: row.label for row in study.generators}
    lines = []
    for sweep in study.sweeps:
        run = study.run("sweep_guidance", sweep.generator)
        columns = (sweep.scales, sweep.distance, sweep.score, sweep.precision, sweep.recall)
        values = zip(*(column.tolist() for column in columns), strict=True)
        for index, (scale, distance, score, precision, recall) in enumerate(values):
            cells = (
                Cell(labels[sweep.generator]),
                Cell(f"{scale:g}", value=scale),
                Cell(significant(distance), rank=int(index == sweep.nearest), value=distance, run=run),
                Cell(significant(score), rank=int(index == sweep.highest), value=score, run=run),
                Cell(f"{precision:.2f}", value=precision, run=run),
                Cell(f"{recall:.2f}", value=recall, run=run),
            )
            lines.append(Line(None, sweep.generator, cells))
    return tuple(lines)
