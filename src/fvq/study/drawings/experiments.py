"""The plots of the small experiments: Figures 2 and 7, and Appendix E during training."""

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fvq.runtime.text import count, percent, significant
from fvq.study.drawings.drawing import Plot, hover, hover_steps
from fvq.study.drawings.palette import COLOURS, row_colours, row_lines
from fvq.study.drawings.style import GREY, INK, RULE, bare, legend, legend_columns, logarithmic, step_axis
from fvq.study.experiments import CodeMap, SizeCurve, Trajectory
from fvq.study.groups import compared_rows, square_rows
from fvq.study.results import Study

_COLUMNS = 3
# As many maps of codes as are shown.
_MAPS = 6
# Where along a path its direction is shown.
_ARROWS = (0.15, 0.5, 0.8)
_TARGET = "#D55E00"


def trajectory_figure(trajectories: Sequence[Trajectory]) -> Plot:
    """Figure 2, left: the ways of z_e and z_q to the target, one panel an experiment, all with the same limits."""
    points = np.concatenate([part for run in trajectories for part in (run.z_e, run.z_q, run.target[None])])
    extent = np.ptp(points, axis=0)
    centre, half = (points.min(0) + points.max(0)) / 2, np.maximum(0.57 * extent, 0.4 * (extent.max() or 1))
    figure, panels = _panels(len(trajectories), 0.95 + 2.25 * half[1] / half[0])
    for axes, run in zip(panels, trajectories, strict=True):
        for name, points, colour, width in (("z_q", run.z_q, GREY, 2.8), ("z_e", run.z_e, INK, 1.3)):
            _path(axes, points, colour, width)
            hover(
                axes,
                points[:, 0],
                points[:, 1],
                [f"{run.name}\n{name}, step {step}" for step in range(len(points))],
                colour,
            )
        axes.plot(*run.target, marker="x", markersize=9, markeredgewidth=2, color=_TARGET, zorder=4)
        axes.set_xlim(centre[0] - half[0], centre[0] + half[0])
        axes.set_ylim(centre[1] - half[1], centre[1] + half[1])
        axes.set_aspect("equal")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(length=0, labelsize=8)
        _frame(axes)
        _title(axes, run.name)
        ratio, distance = significant(run.path_ratio), significant(run.distance_first, 2)
        axes.set_xlabel(f"path {ratio} × straight\nearly |z_q − z_e| {distance}", fontsize=9, linespacing=1.4)
    handles = [
        Line2D([], [], color=INK, linewidth=1.3, label="z_e, the encoder's output"),
        Line2D([], [], color=GREY, linewidth=2.8, label="z_q, the chosen code"),
        Line2D([], [], color=_TARGET, linestyle="", marker="x", markersize=9, markeredgewidth=2, label="target"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, borderaxespad=0, columnspacing=1.6)
    return figure


def code_map_figure(study: Study) -> Plot:
    """Figure 2, right: t-SNE of features (grey) and codes, filled where used and hollow where not, one panel a row."""
    maps = _shown_maps(study)
    figure, panels = _panels(len(maps), 3.05)
    colours, rows = row_colours(study.rows), {row.name: row for row in study.rows}
    for axes, drawn in zip(panels, maps, strict=True):
        _map(axes, drawn, colours[drawn.row])
        _title(axes, f"{rows[drawn.row].label}\n{percent(drawn.usage)} in use")
    handles = [
        Line2D([], [], linestyle="", marker=".", markersize=5, color=GREY, label="features"),
        Line2D([], [], linestyle="", marker="o", markersize=5, color=INK, label="used codes"),
        Line2D([], [], linestyle="", marker="o", markersize=5, color=INK, fillstyle="none", label="unused codes"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, borderaxespad=0, handletextpad=0.3)
    if len(maps) < len(study.code_maps):
        figure.supxlabel(f"{len(maps)} of {len(study.code_maps)} rows", fontsize=9)
    return figure


def sizes_figure(curves: Sequence[SizeCurve]) -> Plot:
    """Figure 7: the quantization loss against steps, one line a codebook size."""
    figure = Plot(figsize=(8, 3.9))
    axes = figure.add_subplot()
    # The middle of the scale shows on a light and on a dark page.
    shades = [to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0.36, 0.78, len(curves)))]
    labels = [f"{count(curve.codebook_size)} codes" for curve in curves]
    for curve, shade, label in zip(curves, shades, labels, strict=True):
        axes.plot(curve.steps, curve.loss, color=shade, label=label)
        hover_steps(axes, label, curve.steps, curve.loss, significant, shade)
    logarithmic(axes, [loss for curve in curves for loss in curve.loss.tolist()])
    step_axis(axes, max(int(curve.steps[-1]) for curve in curves))
    axes.set_ylabel("quantization loss")
    bare(axes)
    legend(axes, labels)
    return figure


def stability_figure(study: Study) -> Plot:
    """Appendix E in training: how far a step moves codes and features, and how many assignments it switches.

    Of a large study the rows that differ in projector and annealing alone.
    """
    rows = study.rows if len(study.rows) <= len(COLOURS) else compared_rows(study.rows)
    watched = [(row, row.history.stability) for row in rows if row.history.stability]
    labels = [row.label for row, _ in watched]
    columns = legend_columns(labels)
    figure = Plot(figsize=(8, 3.2 + 0.22 * -(-len(labels) // columns)))
    codes, features, switched = figure.subplots(1, 3)
    colours, styles = row_colours(study.rows), row_lines(study.rows)
    for row, seen in watched:
        colour = colours[row.name]
        for axes, kind, values, width in (
            (codes, "mean code displacement", seen.code_displacement, 1.5),
            (codes, "largest code displacement", seen.code_displacement_max, 0.7),
            (features, "mean feature displacement", seen.feature_displacement, 1.5),
            (switched, "switched assignments", seen.switched_share, 1.5),
        ):
            axes.plot(seen.steps, values, color=colour, linestyle=styles[row.name], linewidth=width, label=row.label)
            in_words = percent if axes is switched else significant
            hover_steps(axes, f"{row.label}\n{kind}", seen.steps, values, in_words, colour)
    logarithmic(codes, [v for _, seen in watched for v in (*seen.code_displacement, *seen.code_displacement_max)])
    logarithmic(features, [v for _, seen in watched for v in seen.feature_displacement])
    switched.yaxis.set_major_formatter(PercentFormatter(1))
    switched.set_ylim(bottom=0)
    titles = ("code displacement\nmean, and thin: largest", "feature displacement\nmean", "switched assignments\nshare")
    for axes, title in zip((codes, features, switched), titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        step_axis(axes, max(int(seen.steps[-1]) for _, seen in watched))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.tick_params(labelsize=9)
        bare(axes)
    handles, names = features.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, borderaxespad=0, handlelength=1.8)
    if len(rows) < len(study.rows):
        figure.supxlabel("only rows that differ in projector and annealing alone", fontsize=9)
    return figure


def _shown_maps(study: Study) -> list[CodeMap]:
    """All maps; of too many the 2×2 of projector and annealing, and what is nearest to it, in the study's order."""
    if len(study.code_maps) <= _MAPS:
        return list(study.code_maps)
    held = {drawn.row for drawn in study.code_maps}
    preferred = [row.name for rows in (square_rows, compared_rows) for row in rows(study.rows)]
    names = [name for name in dict.fromkeys([*preferred, *(row.name for row in study.rows)]) if name in held][:_MAPS]
    return [drawn for drawn in study.code_maps if drawn.row in names]


def _panels(number: int, height: float) -> tuple[Plot, list[Axes]]:
    """So many panels of one size, in lines of three; ``height`` of a line in inches."""
    lines = -(-number // _COLUMNS)
    figure = Plot(figsize=(8, 0.35 + height * lines))
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel().tolist()
    for unused in axes[number:]:
        unused.set_axis_off()
    return figure, axes[:number]


def _path(axes: Axes, points: npt.NDArray[np.float64], colour: str, width: float) -> None:
    """A line with a dot at its start and arrowheads along it."""
    axes.plot(*points.T, color=colour, linewidth=width, solid_capstyle="round", solid_joinstyle="round")
    axes.plot(*points[0], "o", color=colour, markersize=3.5 + width)
    travelled = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    for share in _ARROWS if travelled[-1] > 0 else ():
        ends = np.array([share - 0.01, share + 0.01]) * travelled[-1]
        tail, head = np.stack([np.interp(ends, travelled, coordinate) for coordinate in points.T], axis=1)
        axes.annotate(
            "",
            xy=head.tolist(),
            xytext=tail.tolist(),
            arrowprops={
                "arrowstyle": "-|>",
                "color": colour,
                "linewidth": 0,
                "mutation_scale": 7 + 3 * width,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _map(axes: Axes, drawn: CodeMap, colour: str) -> None:
    # Thousands of points: as an image they are small, and as large as the figure whatever their number.
    axes.plot(*drawn.feature_xy.T, ".", color=GREY, alpha=0.6, markersize=2.6, markeredgewidth=0, rasterized=True)
    unused, used = drawn.code_xy[~drawn.code_used], drawn.code_xy[drawn.code_used]
    axes.plot(
        *unused.T, "o", color=colour, alpha=0.6, markersize=3, markeredgewidth=0.5, fillstyle="none", rasterized=True
    )
    axes.plot(*used.T, "o", color=colour, markersize=2.8, markeredgewidth=0, rasterized=True)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    _frame(axes)


def _title(axes: Axes, text: str) -> None:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, 26)]
    axes.set_title("\n".join(lines), fontsize=10, loc="left")


def _frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)
