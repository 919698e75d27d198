"""What the plots share: type and ink, the step axis, logarithmic axes, the legend."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fvq.runtime.text import count

# The page replaces these two, so that text and grid follow its light and dark colours.
INK = "#1d1d21"
RULE = "#dcdce2"
# Legible on a light and on a dark page as it is.
GREY = "#8b8b94"

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    # Labels are the user's: a dollar sign must not start a formula.
    "text.parse_math": False,
    # Text stays text: small files, and readers can search it.
    "svg.fonttype": "none",
}

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def step_axis(axes: Axes, last: int) -> None:
    """Training steps from 0 to ``last`` along x."""
    axes.set_xlabel("training step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: count(step)))
    axes.set_xlim(0, last)


def logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis where all ``values``, those that it shows, are positive; else it stays as it is."""
    if min(values) <= 0:
        return
    axes.set_yscale("log")
    span = max(values) / min(values)
    axes.yaxis.set_major_locator(
        LogLocator() if span > 50 else LogLocator(subs=(1, 2, 5)) if span > 4 else MaxNLocator(5)
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain_or_power(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _plain_or_power(value: float) -> str:
    """0.005 as it is, 0.00005 as 5·10⁻⁵."""
    if value <= 0 or 1e-3 <= value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    power = f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    factor = f"{value / 10**exponent:.3g}"
    return power if factor == "1" else f"{factor}·{power}"


def legend(axes: Axes, labels: Sequence[str]) -> None:
    """The legend above the axes."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=legend_columns(labels),
        borderaxespad=0.2,
        handlelength=1.8,
        columnspacing=1.4,
    )


def legend_columns(labels: Sequence[str]) -> int:
    """As many as the longest label leaves room for."""
    return max(1, min(5, 118 // (max(len(label) for label in labels) + 7)))


def bare(axes: Axes) -> None:
    """No ticks and no line on the left: the grid is enough."""
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
