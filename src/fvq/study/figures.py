"""The plots: usage and reconstruction error against steps (the shape of Figure 3), grids of images; all as files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fvq.runtime.text import count, expected, uniform_ceiling
from fvq.study.archives import Images
from fvq.study.experiment_figures import code_map_figure, sizes_figure, stability_figure, trajectory_figure
from fvq.study.guidance_figure import guidance_figure
from fvq.study.palette import row_colours, row_lines
from fvq.study.results import GeneratorRow, Study
from fvq.study.style import INK, STYLE, legend, legend_columns, logarithmic, step_axis


def usage_figure(study: Study) -> Figure:
    """Codebook usage in the training's windows against steps, one line a row, with the 100 % line."""
    figure, axes = _axes(study)
    for row in study.rows:
        axes.plot(row.history.usage_steps, row.history.usage, **_line(study, row.name), label=row.label)
    axes.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.set_ylim(0, 1.06)
    axes.set_yticks(np.linspace(0, 1, 6).tolist())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("codebook usage")
    axes.set_xlabel(f"training step\n{window_in_words(study)}", linespacing=1.7)
    _finish(study, axes)
    return figure


def window_in_words(study: Study) -> str:
    """What a point of the usage plot counts: tokens in the window, and the ceiling that it allows."""
    windows = sorted({row.history.usage_tokens for row in study.rows})
    tokens = count(windows[0]) if len(windows) == 1 else f"{count(windows[0])} to {count(windows[-1])}"
    sizes = {int(row.settings["codebook_size"]) for row in study.rows}
    ceilings = [uniform_ceiling(window, size) for size in sizes for window in windows]
    return f"each point: a window of {tokens} training tokens, ceiling {expected(min(ceilings))}"


def error_figure(study: Study) -> Figure:
    """Reconstruction error of the training batches against steps, one line a row, logarithmic."""
    figure, axes = _axes(study)
    for row in study.rows:
        axes.plot(row.history.error_steps, row.history.error, **_line(study, row.name), label=row.label)
    logarithmic(axes, [value for row in study.rows for value in row.history.error.tolist()])
    axes.set_ylabel("reconstruction error of training batches")
    _finish(study, axes)
    return figure


def reconstruction_figure(study: Study) -> Figure:
    """Originals on top, one line of reconstructions a row."""
    strips = [("original", study.rows[0].original), *((row.label, row.reconstruction) for row in study.rows)]
    return _grid(strips)


def sample_figure(study: Study, row: GeneratorRow) -> Figure:
    """One line of samples a class, with the class's name."""
    return _grid([(study.classes[label], images) for label, images in row.samples.items()])


def study_figures(study: Study) -> dict[str, Figure]:
    """Every figure of a study by its file's stem."""
    with mpl.rc_context(STYLE):
        return {
            "usage": usage_figure(study),
            "reconstruction_error": error_figure(study),
            "reconstructions": reconstruction_figure(study),
            **_experiments(study),
            **{f"samples_{row.name}": sample_figure(study, row) for row in study.generators},
            **({"guidance": guidance_figure(study)} if study.sweeps else {}),
        }


def _experiments(study: Study) -> dict[str, Figure]:
    """Those of the small experiments; maps and watched steps only where some row has them."""
    return {
        "trajectories": trajectory_figure(study.trajectories),
        **({"code_map": code_map_figure(study)} if study.code_maps else {}),
        "codebook_sizes": sizes_figure(study.sizes),
        **({"stability": stability_figure(study)} if any(row.history.stability for row in study.rows) else {}),
    }


def figure_bytes(figure: Figure, kind: Literal["svg", "png"], name: str) -> bytes:
    """The figure as a file whose bytes depend on its content alone: no date, no version, ids salted with ``name``."""
    file = io.BytesIO()
    # SVG has its ids and its metadata, PNG the name of the software: both would change the bytes from run to run.
    metadata: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format=kind, dpi=200, metadata=metadata, facecolor="white")
    return file.getvalue()


def strip(images: Images, gap: int = 1, height: int = 128) -> Images:
    """Images (n, H, W, 3) side by side with a white gap, uint8 (H, n (W + gap) - gap, 3); large ones are thinned."""
    step = max(1, images.shape[1] // height)
    padded = np.pad(images[:, ::step, ::step], ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-gap]


def _axes(study: Study) -> tuple[Figure, Axes]:
    labels = [row.label for row in study.rows]
    figure = Figure(figsize=(8, 3.9 + 0.22 * -(-len(labels) // legend_columns(labels))), layout="constrained")
    axes = figure.add_subplot()
    step_axis(axes, max(int(row.history.usage_steps[-1]) for row in study.rows))
    return figure, axes


def _line(study: Study, name: str) -> dict[str, Any]:
    return {"color": row_colours(study.rows)[name], "linestyle": row_lines(study.rows)[name]}


def _finish(study: Study, axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    legend(axes, [row.label for row in study.rows])


def _grid(strips: Sequence[tuple[str, Images]]) -> Figure:
    columns = max(len(images) for _, images in strips)
    aspect = strips[0][1].shape[1] / strips[0][1].shape[2]
    figure = Figure(figsize=(1.6 + 0.75 * columns, 0.2 + 0.78 * aspect * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for each, (label, images) in zip(axes, strips, strict=True):
        each.set_ylabel(label, rotation=0, ha="right", va="center")
        each.imshow(strip(images), interpolation="nearest", aspect="equal")
        each.set_anchor("W")
        each.grid(False)
        each.set_xticks([])
        each.set_yticks([])
        for spine in each.spines.values():
            spine.set_visible(False)
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0)
    return figure


def write_figures(study: Study, folder: Path) -> dict[str, str]:
    """Write every figure as SVG and PNG into ``folder``; returns the SVG texts by stem."""
    folder.mkdir(parents=True)
    texts = {}
    for stem, figure in study_figures(study).items():
        for kind in ("svg", "png"):
            data = figure_bytes(figure, kind, stem)
            (folder / f"{stem}.{kind}").write_bytes(data)
            if kind == "svg":
                texts[stem] = data.decode()
    return texts
