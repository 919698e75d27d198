"""The plot of generation against reconstruction (the shape of the paper's Figure 1, left)."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from fvq.study.drawings.drawing import Plot, hover
from fvq.study.drawings.measured import bars_in_words, draw_bars
from fvq.study.drawings.palette import COLOURS, row_colours
from fvq.study.drawings.style import GREY, bare
from fvq.study.measured import Measured, measured
from fvq.study.paper import paper_tables
from fvq.study.results import Study
from fvq.study.tables.notes import distance_label

# The paper's tokenizers, rows of its Table 1, with the generators on them, rows of its Table 11.
_PRINTED = (
    ("fvq_120", ("fvq_l", "fvq_xl"), COLOURS[3]),
    ("llamagen_8", ("llamagen_l", "llamagen_xl", "llamagen_xxl"), COLOURS[5]),
    ("ibq", ("ibq_b", "ibq_l", "ibq_xl"), GREY),
)

_PRINTED_AT = (
    "the paper does not say which FVQ or IBQ its generators stand on; drawn at those of its Table 1, FVQ of 120 epochs"
)


@dataclass(frozen=True)
class _Generator:
    label: str
    text: str
    across: Measured
    along: Measured
    colour: str


def generation_figure(study: Study) -> Plot:
    """Distance of samples against that of the tokenizer's reconstructions, a point a generator; the paper's beside."""
    figure = Plot(figsize=(8, 4.1))
    here, printed = figure.subplots(1, 2)
    points = _measured(study)
    _panel(here, points, f"measured here: {study.dataset}")
    here.set_xlabel(f"reconstruction: {distance_label(study, study.rfd)}")
    here.set_ylabel(f"generation: {'FID' if study.inception else study.fd}")
    _panel(printed, _printed(), "the paper's own figures: ImageNet 256×256")
    printed.set_xlabel("reconstruction: rFID, its Table 1")
    printed.set_ylabel("generation: FID, its Table 11")
    bars = bars_in_words([each for point in points for each in (point.across, point.along)])
    figure.supxlabel("\n".join(filter(None, [bars, _PRINTED_AT])), fontsize=9, linespacing=1.5)
    return figure


def _measured(study: Study) -> list[_Generator]:
    rows, colours = {row.name: row for row in study.rows}, row_colours(study.rows)
    points = []
    for generator in study.generators:
        tokenizer = rows[generator.tokenizer]
        # It learned the tokens of the study's own seed: a mean over seeds is of other tokenizers too.
        across = replace(measured(tokenizer, study.rfd), values=(tokenizer.figures[study.rfd],))
        along = measured(generator, study.fd)
        text = f"{generator.label}\n{study.rfd} of {tokenizer.label}: {across.text}\n{study.fd}: {along.text}"
        points.append(_Generator(generator.label, text, across, along, colours[tokenizer.name]))
    return points


def _printed() -> list[_Generator]:
    reconstruction, generation = paper_tables()["table_1"], paper_tables()["table_11"]
    points = []
    for tokenizer, generators, colour in _PRINTED:
        rfid = reconstruction.value(tokenizer, "rfid")
        for generator in generators:
            fid = generation.value(generator, "fid")
            assert rfid is not None and fid is not None
            label, of = (
                table.cell(row, key).partition(" (")[0]
                for table, row, key in ((generation, generator, "model"), (reconstruction, tokenizer, "method"))
            )
            text = f"{label}, the paper's figures\nrFID of {of}: {rfid:g}\nFID: {fid:g}"
            points.append(_Generator(label, text, Measured((rfid,)), Measured((fid,)), colour))
    return points


def _panel(axes: Axes, points: Sequence[_Generator], title: str) -> None:
    xs = [point.across.value for point in points]
    middle = (min(xs) + max(xs)) / 2
    for rank, point in enumerate(sorted(points, key=lambda point: point.along.value)):
        x, y = point.across.value, point.along.value
        draw_bars(axes, x, y, point.colour, across=point.across, along=point.along)
        axes.plot([x], [y], "o", color=point.colour, markersize=7)
        # Towards the middle, where there is room; where all have one tokenizer, on both sides in turn.
        right = rank % 2 == 0 if x == middle else x < middle
        axes.annotate(
            "\n".join(textwrap.wrap(point.label, 20)),
            (x, y),
            xytext=(8 if right else -8, 3),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom",
            fontsize=9,
        )
        hover(axes, [x], [y], [point.text], point.colour)
    axes.margins(0.15)
    axes.set_title(title, fontsize=10, loc="left")
    bare(axes)
