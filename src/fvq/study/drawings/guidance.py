"""The plot of the sweeps over guidance scales."""

import itertools
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fvq.runtime.text import significant
from fvq.study.drawings.drawing import Plot, hover
from fvq.study.drawings.palette import row_colours
from fvq.study.drawings.style import bare, legend_columns
from fvq.study.results import Study


def guidance_figure(study: Study) -> Plot:
    """Fréchet distance and score against the scale of guidance, one line a generator, its best scale filled."""
    rows = {row.name: row for row in study.generators}
    colours = row_colours(study.rows)
    shown = [rows[sweep.generator].label for sweep in study.sweeps]
    columns = legend_columns(shown)
    figure = Plot(figsize=(8, 3.1 + 0.22 * -(-len(shown) // columns)))
    left, right = figure.subplots(1, 2)
    # Generators on one tokenizer share its colour.
    for sweep, label, marker in zip(study.sweeps, shown, itertools.cycle("osD^v")):
        style: dict[str, Any] = {"color": colours[rows[sweep.generator].tokenizer], "marker": marker}
        for axes, values, best in ((left, sweep.distance, sweep.nearest), (right, sweep.score, sweep.highest)):
            axes.plot(sweep.scales, values, **style, markerfacecolor="none", label=label)
            axes.plot(sweep.scales[best], values[best], **style, linestyle="")
            name = study.fd if axes is left else study.score
            texts = [
                f"{label}\nscale {scale:g}\n{name} {significant(value)}"
                for scale, value in zip(sweep.scales.tolist(), values.tolist(), strict=True)
            ]
            hover(axes, sweep.scales, values, texts, style["color"])
    _panel(left, f"{'FID' if study.inception else study.fd}, lower is better")
    _panel(right, f"{study.score}, higher is better")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, borderaxespad=0, handlelength=1.8)
    return figure


def _panel(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("scale of guidance, 1 is none")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    bare(axes)
