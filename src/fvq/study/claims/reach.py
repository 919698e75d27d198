"""The paper's claims on other quantizers, other ratios and on generators."""

import math
from itertools import combinations

from fvq.study.claims.comparisons import (
    Comparison,
    is_below,
    lower,
    neighbours,
    of_quantizer,
    pairs,
    remark,
    spread_in_words,
)
from fvq.study.claims.statement import Statement, cells
from fvq.study.measured import measured
from fvq.study.results import GeneratorRow, Study
from fvq.study.settings import describe, differences
from fvq.study.tables.cells import figure_text


def reach_claims(study: Study) -> list[Statement]:
    """RQ and VAR, half the ratio, generators."""
    spread = spread_in_words(study, study.rfd)
    ratios = neighbours(study.rows, "ratio")
    return [
        Statement(
            title="VQBridge generalises to residual and multi-scale quantization",
            paper=f"Table 4: rFID {cells('table_4', 'rfid', 'rq_vae_10', 'fvq_rq_vae')} in RQ-VAE, "
            f"{cells('table_4', 'rfid', 'var', 'fvq_var')} in VAR, whose rows are not like for like: RQ-VAE's "
            f"codebook is another one, and VAR's has {cells('table_4', 'codebook_size', 'var', 'fvq_var')} codes and "
            f"{cells('table_4', 'code_dim', 'var', 'fvq_var')} channels.",
            rule=f"A residual or multi-scale row with VQBridge has a lower {study.rfd} than the same row with plain "
            f"VQ, all else equal. {spread}",
            needs="rq_fvq and rq_vq, or var_fvq and var_vq",
            comparisons=[
                lower(row, other, study.rfd)
                for row, other in pairs(study.rows, "quantizer")
                if describe(row)["composition"]
                and (describe(row)["quantizer"], describe(other)["quantizer"]) == ("fvq", "vq")
            ],
        ),
        Statement(
            title="A lower ratio reconstructs better",
            paper=f"Table 3, rFID at ratios of {cells('table_3', 'ratio', 'fvq_256', 'fvq_ratio_8')}: FVQ "
            f"{cells('table_3', 'rfid', 'fvq_256', 'fvq_ratio_8')}, VQ "
            f"{cells('table_3', 'rfid', 'vqgan_8', 'vqgan_ratio_8')}.",
            rule=f"Of rows that differ in the ratio alone, each has a lower {study.rfd} than the one with the next "
            f"higher ratio. {spread}",
            needs="fvq and fvq_fine, or vq_l2 and vq_l2_fine",
            comparisons=[lower(fine, coarse, study.rfd) for fine, coarse in ratios],
        ),
        Statement(
            title="FVQ also reconstructs better than VQ at the lower ratio",
            paper=f"Table 3, rFID at a ratio of {cells('table_3', 'ratio', 'fvq_ratio_8')}: FVQ "
            f"{cells('table_3', 'rfid', 'fvq_ratio_8')}, VQ {cells('table_3', 'rfid', 'vqgan_ratio_8')}.",
            rule=f"An FVQ row that has another with a higher ratio beside it has a lower {study.rfd} than VQ rows of "
            "its ratio, codebook size and length. As in the paper, these may have other channels, and neither "
            "annealing nor warm-up. "
            f"{spread}",
            needs="fvq, fvq_fine and vq_l2_fine",
            comparisons=[
                lower(row, other, study.rfd)
                for row, _ in neighbours(of_quantizer(study.rows, "fvq"), "ratio")
                for other in of_quantizer(study.rows, "vq", "vq-l2")
                if differences(row, other) <= {"quantizer", "code_dim", "annealing", "warmup"}
            ],
        ),
        _generators(study),
    ]


def _generators(study: Study) -> Statement:
    return Statement(
        title="A better tokenizer gives a better generator",
        paper=f"Table 2: LlamaGen-L goes from FID {cells('table_2', 'fid', 'llamagen_l')} to "
        f"{cells('table_2', 'fid', 'fvq_l')} with FVQ's tokenizer (and another training recipe).",
        rule=f"Of every two rows with equal generator settings, the one whose tokenizer has the lower {study.rfd} "
        f"(beyond its spread over halves) has the lower {study.fd}. "
        f"{spread_in_words(study, study.fd, study.generators)}",
        needs="two generators of equal settings on different tokenizers",
        comparisons=[
            _better_generator(study, one, other)
            for one, other in combinations(study.generators, 2)
            if one.settings == other.settings and one.tokenizer != other.tokenizer
        ],
    )


def _better_generator(study: Study, one: GeneratorRow, other: GeneratorRow) -> Comparison:
    tokenizers = {row.name: row.figures for row in study.rows}
    better, worse = sorted((one, other), key=lambda row: tokenizers[row.tokenizer][study.rfd])
    first, second = tokenizers[better.tokenizer], tokenizers[worse.tokenizer]
    numbers = "; ".join(
        f"{row.label}: {study.rfd} {figure_text(figures, study.rfd)}, {study.fd} {figure_text(row.figures, study.fd)}"
        for row, figures in ((better, first), (worse, second))
    )
    chance = 2 * math.hypot(*(figures.get(f"{study.rfd}_spread", 0) for figures in (first, second)))
    if second[study.rfd] - first[study.rfd] <= chance:
        return Comparison(None, f"{numbers}; within the spread", "the tokenizers lie within the spread of each other")
    outcome = is_below(measured(better, study.fd), measured(worse, study.fd), study.fd)
    return Comparison(outcome, f"{numbers}{remark(outcome, '; ')}")
