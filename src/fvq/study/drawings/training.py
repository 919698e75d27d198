"""What training looked like: usage and reconstruction error against steps (the shape of the paper's Figure 3)."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fvq.runtime.text import count, expected, percent, significant, uniform_ceiling
from fvq.study.drawings.drawing import Plot, hover_steps
from fvq.study.drawings.palette import COLOURS, panel_colours, row_lines
from fvq.study.drawings.style import GREY, INK, bare, legend, legend_columns, logarithmic, step_axis
from fvq.study.groups import Group, groups
from fvq.study.results import Study, TokenizerRow

_Curve = Callable[[TokenizerRow], tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]

# Of a panel among several: its width in letters of its legend, and the height of its axes in inches.
_LETTERS = 58
_HEIGHT = 2.0


def usage_figure(study: Study) -> Plot:
    """Codebook usage in the training's windows against steps, one line a row, with the 100 % line."""
    window = window_in_words(study)
    figure = _figure(study, lambda row: (row.history.usage_steps, row.history.usage), percent, "codebook usage", window)
    for axes in figure.axes:
        axes.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_ylim(0, 1.06)
        axes.set_yticks(np.linspace(0, 1, 6).tolist())
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def window_in_words(study: Study) -> str:
    """What a point of the usage plot counts: tokens in the window, and the ceiling that it allows."""
    windows = sorted({row.history.usage_tokens for row in study.rows})
    tokens = count(windows[0]) if len(windows) == 1 else f"{count(windows[0])} to {count(windows[-1])}"
    ceilings = [uniform_ceiling(row.history.usage_tokens, int(row.settings["codebook_size"])) for row in study.rows]
    lowest = expected(min(ceilings))
    if expected(max(ceilings)) != lowest:
        lowest = f"{lowest} to {expected(max(ceilings))}"
    return f"each point: a window of {tokens} training tokens, ceiling {lowest}"


def error_figure(study: Study) -> Plot:
    """Reconstruction error of the training batches against steps, one line a row, logarithmic."""
    label = "reconstruction error of training batches"
    figure = _figure(study, lambda row: (row.history.error_steps, row.history.error), significant, label)
    logarithmic(figure.axes[0], [value for row in study.rows for value in row.history.error.tolist()])
    return figure


def _figure(study: Study, curve: _Curve, in_words: Callable[[float], str], label: str, note: str = "") -> Plot:
    """All rows on one panel, or a panel for each group of them where there are more than colours."""
    shown = groups(study.rows)
    if len(shown) == 1 or len(study.rows) <= len(COLOURS):
        return _one_panel(study, curve, in_words, label, note)
    return _panels(study, shown, curve, in_words, label, note)


def _one_panel(study: Study, curve: _Curve, in_words: Callable[[float], str], label: str, note: str) -> Plot:
    labels = [row.label for row in study.rows]
    figure = Plot(figsize=(8, 3.9 + 0.22 * -(-len(labels) // legend_columns(labels))))
    axes = figure.add_subplot()
    _lines(axes, study, study.rows, curve, in_words)
    step_axis(axes, _last_step(study.rows))
    if note:
        axes.set_xlabel(f"training step\n{note}", linespacing=1.7)
    axes.set_ylabel(label)
    bare(axes)
    legend(axes, labels)
    return figure


def _panels(
    study: Study, shown: Sequence[Group], curve: _Curve, in_words: Callable[[float], str], label: str, note: str
) -> Plot:
    lines = -(-len(shown) // 2)
    entries = [sum(_wrapped(row.label).count("\n") + 1 for row in group.rows) for group in shown]
    heights = [_HEIGHT + 0.16 * (2 + max(entries[2 * line : 2 * line + 2])) for line in range(lines)]
    figure = Plot(figsize=(8.6, sum(heights) + 0.3))
    panels = figure.subplots(lines, 2, sharey=True, squeeze=False, height_ratios=heights).ravel().tolist()
    for axes, group in zip(panels, shown, strict=False):
        if group.reference is not None:
            steps, values = curve(group.reference)
            axes.plot(steps, values, color=GREY, linewidth=1.0, label=f"{group.reference.label}, for comparison")
            hover_steps(axes, group.reference.label, steps, values, in_words, GREY)
        _lines(axes, study, group.rows, curve, in_words, linewidth=1.5)
        rows = (*group.rows, *([group.reference] if group.reference else []))
        step_axis(axes, _last_step(rows))
        axes.set_xlabel("")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=9)
        bare(axes)
        handles, names = axes.get_legend_handles_labels()
        axes.legend(
            handles,
            [_wrapped(name) for name in names],
            title=group.title,
            alignment="left",
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            borderaxespad=0.2,
            borderpad=0,
            handlelength=1.8,
            labelspacing=0.25,
            fontsize=8,
            title_fontproperties={"size": 9.5, "weight": "bold"},
        )
    for unused in panels[len(shown) :]:
        unused.remove()
    figure.supylabel(label, fontsize=10)
    figure.supxlabel("training step" + (f"\n{note}" if note else ""), fontsize=10, linespacing=1.5)
    return figure


def _lines(
    axes: Axes,
    study: Study,
    rows: Sequence[TokenizerRow],
    curve: _Curve,
    in_words: Callable[[float], str],
    linewidth: float | None = None,
) -> None:
    colours, styles = panel_colours(rows, study.rows), row_lines(rows)
    for row in rows:
        steps, values = curve(row)
        look: dict[str, Any] = {"color": colours[row.name], "linestyle": styles[row.name]}
        axes.plot(steps, values, **look, linewidth=linewidth, label=row.label)
        hover_steps(axes, row.label, steps, values, in_words, colours[row.name])


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, _LETTERS))


def _last_step(rows: Sequence[TokenizerRow]) -> int:
    return max(int(row.history.usage_steps[-1]) for row in rows)
