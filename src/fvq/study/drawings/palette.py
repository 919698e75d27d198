"""One colour and line for each row, the same in every plot and on the page."""

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from fvq.study.results import TokenizerRow
from fvq.study.settings import projector

# Okabe and Ito's palette, which colour-blind readers can tell apart, without the black and the yellow that vanish on
# a dark and on a light page.
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9")

# The same of the default study's rows, for studies with more rows than colours.
_ROLES = {("vq", True): 0, ("vq", False): 0, ("linear", True): 1, ("linear", False): 1, ("mlp5", True): 2}
_ROLES |= {("mlp5", False): 2, ("fvq", True): 3, ("fvq", False): 4}
# Quantizers beside them, in the order in which a study has them.
_FURTHER = (COLOURS[5], "#8C6BB1", "#A6761D", "#66A61E", "#E7298A", "#1B9E9E", "#7F7F7F")
# How far lines of one colour in one panel turn to either side, of the whole circle of hues: a line, and at most.
_TURN, _MOST = 0.05, 0.13


def row_colours(rows: Sequence[TokenizerRow]) -> dict[str, str]:
    """A colour for each row's name: one each in the study's order, in large studies one for each kind of quantizer."""
    if len(rows) <= len(COLOURS):
        return {row.name: COLOURS[position] for position, row in enumerate(rows)}
    others = list(dict.fromkeys(projector(row) for row in rows if (projector(row), True) not in _ROLES))
    further = {name: _FURTHER[position % len(_FURTHER)] for position, name in enumerate(others)}
    return {row.name: further.get(projector(row)) or COLOURS[_ROLES[projector(row), row.annealed]] for row in rows}


def row_lines(rows: Sequence[TokenizerRow]) -> dict[str, str]:
    """A line style for each row's name: solid with annealing, dashed without."""
    return {row.name: "-" if row.annealed else "--" for row in rows}


def panel_colours(panel: Sequence[TokenizerRow], rows: Sequence[TokenizerRow]) -> dict[str, str]:
    """The colours of those of ``rows`` that one panel shows: where several would look alike, neighbouring hues."""
    colours, lines = row_colours(rows), row_lines(rows)
    looks: dict[tuple[str, str], list[str]] = {}
    for row in panel:
        looks.setdefault((colours[row.name], lines[row.name]), []).append(row.name)
    return {
        name: hue
        for (colour, _), names in looks.items()
        for name, hue in zip(names, hues(colour, len(names)), strict=True)
    }


def hues(colour: str, number: int) -> list[str]:
    """So many colours around ``colour``, from dark to light; it alone if one will do."""
    if number == 1:
        return [colour]
    hue, _, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    most = min(_TURN * (number - 1), _MOST)
    turns, lightnesses = np.linspace(-most, most, number).tolist(), np.linspace(0.32, 0.64, number).tolist()
    return [
        to_hex(colorsys.hls_to_rgb((hue + turn) % 1, lightness, 0.7 * saturation))
        for turn, lightness in zip(turns, lightnesses, strict=True)
    ]
