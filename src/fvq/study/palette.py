"""One colour and line for each row, the same in every plot and on the page."""

from collections.abc import Sequence

from fvq.study.results import TokenizerRow

# Okabe and Ito's palette, which colour-blind readers can tell apart, without the black and the yellow that vanish on
# a dark and on a light page.
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9")


def row_colours(rows: Sequence[TokenizerRow]) -> dict[str, str]:
    """A colour for each row's name, in the study's order."""
    return {row.name: COLOURS[position % len(COLOURS)] for position, row in enumerate(rows)}


def row_lines(rows: Sequence[TokenizerRow]) -> dict[str, str]:
    """A line style for each row's name: solid with annealing, dashed without; others where the colours begin anew."""
    return {
        row.name: ("-" if row.annealed else "--", ":", "-.")[min(position // len(COLOURS), 2)]
        for position, row in enumerate(rows)
    }
