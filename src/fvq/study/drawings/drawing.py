"""A figure as a file, and where on it its data lie: what a reader sees who hovers over a point."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fvq.runtime.text import count
from fvq.study.drawings.style import STYLE
from fvq.study.results import spread

POINTS_A_LINE = 400

# An SVG's units: matplotlib writes 72 an inch.
_UNITS = 72


@dataclass(frozen=True)
class Point:
    """A place on a drawing in the SVG's own units, y downwards, the text to show there, and its line's colour."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class Drawing:
    """An SVG file's text, and the points that it shows."""

    svg: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class _Series:
    axes: Axes
    xy: npt.NDArray[np.float64]
    texts: tuple[str, ...]
    colour: str


class SteadyLayout(ConstrainedLayoutEngine):
    """The constrained layout, rounded: its solver's last digits change from run to run, and an SVG's ids with them."""

    def execute(self, fig: Figure) -> None:
        super().execute(fig)
        for axes in fig.axes:
            left, bottom, width, height = (round(number, 5) for number in axes.get_position(original=True).bounds)
            axes.set_position((left, bottom, width, height))
            # Which setting a position undoes.
            axes.set_in_layout(True)


class Plot(Figure):
    """A figure (width, height in inches) that keeps what ``hover`` tells it."""

    def __init__(self, *, figsize: tuple[float, float]) -> None:
        super().__init__(figsize=figsize, layout=SteadyLayout())
        self.series: list[_Series] = []


def hover(axes: Axes, xs: Sequence[float] | npt.NDArray[Any], ys: Any, texts: Sequence[str], colour: str) -> None:
    """Register the data of one line on the axes of a ``Plot``, a text for each; long lines are thinned evenly."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Plot)
    kept = spread(len(texts), POINTS_A_LINE)
    xy = np.column_stack([np.asarray(xs, np.float64), np.asarray(ys, np.float64)])[kept]
    figure.series.append(_Series(axes, xy, tuple(texts[index] for index in kept), colour))


def hover_steps(
    axes: Axes,
    label: str,
    steps: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    in_words: Callable[[float], str],
    colour: str,
) -> None:
    """Register a curve over training steps, with a text of ``label``, step and value."""
    texts = [
        f"{label}\nstep {count(step)}\n{in_words(value)}"
        for step, value in zip(steps.tolist(), values.tolist(), strict=True)
    ]
    hover(axes, steps, values, texts, colour)


def draw(figure: Plot, name: str) -> Drawing:
    """The figure as an SVG whose bytes depend on its content and ``name`` alone, with the places of its data."""
    svg = figure_bytes(figure, "svg", name).decode()
    # After saving: that is when the layout is made, and for a PNG it is another one.
    return Drawing(svg, tuple(point for each in figure.series for point in _points(figure, each)))


def figure_bytes(figure: Figure, kind: Literal["svg", "png"], name: str) -> bytes:
    """The figure as a file whose bytes depend on its content alone: no date, no version, ids salted with ``name``."""
    file = io.BytesIO()
    # SVG has its ids and its metadata, PNG the name of the software: both would change the bytes from run to run.
    metadata: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format=kind, dpi=200, metadata=metadata, facecolor="white")
    return file.getvalue()


def _points(figure: Figure, series: _Series) -> list[Point]:
    """Those of a line that its axes show."""
    xy, box = series.axes.transData.transform(series.xy), series.axes.bbox
    with np.errstate(invalid="ignore"):
        shown = np.all((xy >= np.array(box.min) - 1) & (xy <= np.array(box.max) + 1), axis=1).tolist()
    scale, height = _UNITS / figure.dpi, _UNITS * float(figure.get_figheight())
    return [
        Point(round(x * scale, 2), round(height - y * scale, 2), text, series.colour)
        for (x, y), text, visible in zip(xy.tolist(), series.texts, shown, strict=True)
        if visible
    ]
