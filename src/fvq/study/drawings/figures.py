"""All plots and grids of images of a study, as files."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from fvq.study.archives import Images
from fvq.study.drawings.bridge import bridge_figure
from fvq.study.drawings.drawing import Drawing, Plot, SteadyLayout, draw, figure_bytes
from fvq.study.drawings.experiments import code_map_figure, sizes_figure, stability_figure, trajectory_figure
from fvq.study.drawings.generation import generation_figure
from fvq.study.drawings.guidance import guidance_figure
from fvq.study.drawings.pictures import ERROR_SCALE, error_images
from fvq.study.drawings.style import STYLE
from fvq.study.drawings.training import error_figure, usage_figure
from fvq.study.groups import bridge_sweeps, square_rows
from fvq.study.results import GeneratorRow, Study, TokenizerRow

RECONSTRUCTED_ROWS = 8


def reconstruction_figure(study: Study) -> Plot:
    """Originals on top, then a line of reconstructions and one of their errors for each row, of a large study some."""
    rows, choice = reconstructed_rows(study)
    strips = [("original", study.rows[0].original)]
    for row in rows:
        strips.append((row.label, row.reconstruction))
        strips.append((f"its error × {ERROR_SCALE}", error_images(row.original, row.reconstruction)))
    return _grid(strips, f"Errors: absolute, {ERROR_SCALE} times in every row; black is none. {choice}".strip())


def reconstructed_rows(study: Study) -> tuple[list[TokenizerRow], str]:
    """The rows that the grid of reconstructions shows, and which these are in words, '' if all."""
    if len(study.rows) <= RECONSTRUCTED_ROWS:
        return list(study.rows), ""
    square = square_rows(study.rows)[:RECONSTRUCTED_ROWS]
    others = sorted((row for row in study.rows if row not in square), key=lambda row: row.figures[study.rfd])
    chosen = [*square, *others[: RECONSTRUCTED_ROWS - len(square)]]
    of = f"{len(chosen)} of {len(study.rows)} rows: "
    lowest = f"with the lowest {study.rfd}"
    words = (
        f"linear layer and VQBridge with and without annealing, and the others {lowest}"
        if square
        else f"those {lowest}"
    )
    return [row for row in study.rows if row in chosen], f"{of}{words}."


def sample_figure(study: Study, row: GeneratorRow) -> Plot:
    """One line of samples a class, with the class's name."""
    return _grid([(study.classes[label], images) for label, images in row.samples.items()])


def study_figures(study: Study) -> dict[str, Plot]:
    """Every figure of a study by its file's stem."""
    with mpl.rc_context(STYLE):
        return {
            **({"tokenizer_and_generator": generation_figure(study)} if study.generators else {}),
            "usage": usage_figure(study),
            "reconstruction_error": error_figure(study),
            "reconstructions": reconstruction_figure(study),
            **({"bridge": bridge_figure(study)} if bridge_sweeps(study.rows) else {}),
            **_experiments(study),
            **{f"samples_{row.name}": sample_figure(study, row) for row in study.generators},
            **({"guidance": guidance_figure(study)} if study.sweeps else {}),
        }


def _experiments(study: Study) -> dict[str, Plot]:
    """Those of the small experiments; maps and watched steps only where some row has them."""
    return {
        "trajectories": trajectory_figure(study.trajectories),
        **({"code_map": code_map_figure(study)} if study.code_maps else {}),
        "codebook_sizes": sizes_figure(study.sizes),
        **({"stability": stability_figure(study)} if any(row.history.stability for row in study.rows) else {}),
    }


def strip(images: Images, gap: int = 1, height: int = 128) -> Images:
    """Images (n, H, W, 3) side by side with a white gap, uint8 (H, n (W + gap) - gap, 3); large ones are thinned."""
    step = max(1, images.shape[1] // height)
    padded = np.pad(images[:, ::step, ::step], ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-gap]


def _grid(strips: Sequence[tuple[str, Images]], note: str = "") -> Plot:
    columns = max(len(images) for _, images in strips)
    aspect = strips[0][1].shape[1] / strips[0][1].shape[2]
    height = 0.2 + 0.78 * aspect * len(strips) + (0.4 if note else 0)
    figure = Plot(figsize=(1.6 + 0.75 * columns, height))
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for each, (label, images) in zip(axes, strips, strict=True):
        each.set_ylabel("\n".join(textwrap.wrap(label, 26)), rotation=0, ha="right", va="center")
        each.imshow(strip(images), interpolation="nearest", aspect="equal")
        each.set_anchor("W")
        each.grid(False)
        each.set_xticks([])
        each.set_yticks([])
        for spine in each.spines.values():
            spine.set_visible(False)
    if note:
        figure.supxlabel("\n".join(textwrap.wrap(note, 112)), fontsize=9)
    figure.set_layout_engine(SteadyLayout(h_pad=0.02, hspace=0))
    return figure


def write_figures(study: Study, folder: Path) -> dict[str, Drawing]:
    """Write every figure as SVG and PNG into ``folder``; returns the drawings by stem."""
    folder.mkdir(parents=True)
    drawings = {}
    for stem, figure in study_figures(study).items():
        drawings[stem] = draw(figure, stem)
        (folder / f"{stem}.svg").write_text(drawings[stem].svg, encoding="utf-8")
        (folder / f"{stem}.png").write_bytes(figure_bytes(figure, "png", stem))
    return drawings
