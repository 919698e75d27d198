"""The cells of the page's table of all tokenizers."""

from dataclasses import replace

from fvq.runtime.text import significant
from fvq.study.results import Study, TokenizerRow
from fvq.study.tables.cells import Cell, codes_in_words, distance_over_seeds, figure_over_seeds, usage_cell
from fvq.study.tables.columns import of_every_seed


def row_cells(study: Study, row: TokenizerRow) -> list[Cell]:
    """Usage, perplexity, MSE, PSNR, SSIM and the Fréchet distance of a row, linked to its evaluations."""
    usage = usage_cell(row)
    cells = [
        replace(usage, detail=f"{codes_in_words(row)}; {usage.detail}"),
        figure_over_seeds(row, "perplexity", significant),
        figure_over_seeds(row, "mse", significant),
        figure_over_seeds(row, "psnr_rgb", lambda value: f"{value:.2f}"),
        figure_over_seeds(row, "ssim_g11", lambda value: f"{value:.3f}"),
        distance_over_seeds(row, study.rfd),
    ]
    return [of_every_seed(study, row, cell) for cell in cells]
