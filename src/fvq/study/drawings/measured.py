"""How plots show what the chance of a measured distance is."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from fvq.study.measured import Measured


def bars_in_words(measured: Sequence[Measured]) -> str:
    """What the bars are; '' where there are none."""
    seeds = any(each.seed_spread is not None for each in measured)
    halves = any(each.spread is not None and each.seed_spread is None for each in measured)
    kinds = [*(["over seeds"] if seeds else []), *(["over random halves of the images"] if halves else [])]
    return f"bars: ± one standard deviation {' or '.join(kinds)}" if kinds else ""


def draw_bars(axes: Axes, x: float, y: float, colour: str, *, across: Measured | None, along: Measured | None) -> None:
    """The bars of a point: those of ``across`` along x, of ``along`` along y."""
    axes.errorbar(
        x,
        y,
        xerr=across.spread if across else None,
        yerr=along.spread if along else None,
        fmt="none",
        ecolor=colour,
        elinewidth=1.2,
        capsize=2.5,
    )
