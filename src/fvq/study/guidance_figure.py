"""The plot of the sweeps over guidance scales."""

import itertools
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fvq.study.palette import row_colours
from fvq.study.results import Study
from fvq.study.style import legend_columns


def guidance_figure(study: Study) -> Figure:
    """Fréchet distance and score against the scale of guidance, one line a generator, its best scale filled."""
    rows = {row.name: row for row in study.generators}
    colours = row_colours(study.rows)
    shown = [rows[sweep.generator].label for sweep in study.sweeps]
    columns = legend_columns(shown)
    figure = Figure(figsize=(8, 3.1 + 0.22 * -(-len(shown) // columns)), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Generators on one tokenizer share its colour.
    for sweep, label, marker in zip(study.sweeps, shown, itertools.cycle("osD^v")):
        style: dict[str, Any] = {"color": colours[rows[sweep.generator].tokenizer], "marker": marker}
        for axes, values, best in ((left, sweep.distance, sweep.nearest), (right, sweep.score, sweep.highest)):
            axes.plot(sweep.scales, values, **style, markerfacecolor="none", label=label)
            axes.plot(sweep.scales[best], values[best], **style, linestyle="")
    _panel(left, f"{'FID' if study.inception else study.fd}, lower is better")
    _panel(right, f"{study.score}, higher is better")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, borderaxespad=0, handlelength=1.8)
    return figure


def _panel(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("scale of guidance, 1 is none")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
