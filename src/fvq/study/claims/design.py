"""The paper's claims on the learning rate's schedule (Table 9) and on the bridge's design (Figure 6)."""

from collections.abc import Sequence
from itertools import combinations

from fvq.runtime.text import count
from fvq.study.claims.comparisons import (
    Comparison,
    both_in_words,
    in_words,
    is_below,
    lower,
    margin,
    of_quantizer,
    pairs,
    remark,
    spread_in_words,
)
from fvq.study.claims.statement import Statement, cells
from fvq.study.measured import measured
from fvq.study.results import Study, TokenizerRow
from fvq.study.settings import describe, differences

# The paper's linear and cosine annealing are 1.5 % apart.
_LITTLE = 0.05


def design_claims(study: Study) -> list[Statement]:
    """Warm-up and the shape of annealing; the bridge's width, depth and patch."""
    return [*_schedule(study), *_bridge(study)]


def _schedule(study: Study) -> list[Statement]:
    fvq = of_quantizer(study.rows, "fvq")
    return [
        Statement(
            title=f"Warm-up lowers FVQ's {study.rfd}",
            paper=f"Table 9: rFID {cells('table_9', 'rfid', 'linear_annealing', 'no_warmup')} without warm-up.",
            rule=f"An FVQ row has a lower {study.rfd} than the same row without warm-up. "
            f"{spread_in_words(study, study.rfd)}",
            needs="fvq and fvq_no_warmup",
            comparisons=[
                lower(row, other, study.rfd) for row, other in pairs(fvq, "warmup") if other.settings.get("warmup") == 0
            ],
        ),
        Statement(
            title="Linear or cosine annealing makes little difference",
            paper=f"Table 9: rFID {cells('table_9', 'rfid', 'linear_annealing', 'cosine_annealing', between=' and ')}.",
            rule=f"FVQ rows that differ in the shape of annealing alone: {study.rfd} differs by at most {_LITTLE:.0%} "
            f"of the larger one. Decides nothing where the spread exceeds {_LITTLE:.0%} and the difference lies "
            f"within the spread. {spread_in_words(study, study.rfd)}",
            needs="fvq and fvq_cosine",
            comparisons=[
                _alike(row, other, study.rfd)
                for row, other in combinations(fvq, 2)
                if differences(row, other) == {"shape"}
            ],
        ),
    ]


def _alike(row: TokenizerRow, other: TokenizerRow, figure: str) -> Comparison:
    one, two = measured(row, figure), measured(other, figure)
    little = _LITTLE * max(one.value, two.value)
    if margin(one, two, figure) <= little or is_below(one, two, figure) is not None:
        outcome = abs(one.value - two.value) <= little
    else:
        outcome = None
    mark = ", too far apart" if outcome is False else remark(outcome)
    return Comparison(outcome, both_in_words(row, other, figure, mark))


def _bridge(study: Study) -> list[Statement]:
    fvq = of_quantizer(study.rows, "fvq")
    spread = spread_in_words(study, study.rfd)
    plot = "Figure 6, a plot without numbers:"
    return [
        Statement(
            title="A bridge as wide as the codes is best",
            paper=f"{plot} d' = d = 256 is the best of widths d' from 64 to 512.",
            rule="Of FVQ rows that differ in the bridge's width alone, the one with d' = d has the lowest "
            f"{study.rfd}. {spread}",
            needs="fvq and fvq_width_half, fvq_width_quarter or fvq_width_double",
            comparisons=[
                lower(row, other, study.rfd)
                for row, other in pairs(fvq, "width")
                if describe(row)["width"] == row.settings["code_dim"]
            ],
        ),
        Statement(
            title="A bridge of two blocks is best",
            paper=f"{plot} 2 blocks are better than 1 or 4.",
            rule="Of FVQ rows that differ in the bridge's depth alone, the one with two blocks has the lowest "
            f"{study.rfd}. {spread}",
            needs="fvq and fvq_depth_1 or fvq_depth_4",
            comparisons=[
                lower(row, other, study.rfd) for row, other in pairs(fvq, "depth") if describe(row)["depth"] == 2
            ],
        ),
        Statement(
            title="The best patch grows with the codebook",
            paper=f"{plot} a patch of 4 is best at 4k codes, one of 16 at 16k.",
            rule="FVQ rows of two codebook sizes, several patches each, that differ in nothing else: the patch with "
            f"the lowest {study.rfd} is larger at the larger size. A patch whose {study.rfd} is within the spread of "
            f"the lowest could be the best as well. {spread}",
            needs="fvq and fvq_quarter_patch_middle with their other patches (fvq_patch_small, …)",
            comparisons=_best_patches(fvq, study.rfd),
        ),
    ]


def _best_patches(rows: Sequence[TokenizerRow], figure: str) -> list[Comparison]:
    """A comparison for every two sizes of sweeps: rows that differ in the patch alone."""
    sweeps: list[list[TokenizerRow]] = []
    for row in rows:
        beside = next((sweep for sweep in sweeps if differences(sweep[0], row) <= {"patch"}), None)
        if beside is None:
            sweeps.append([row])
        else:
            beside.append(row)
    sweeps = sorted((sweep for sweep in sweeps if len(sweep) > 1), key=lambda sweep: sweep[0].settings["codebook_size"])
    return [
        _larger_best(small, large, figure)
        for small, large in combinations(sweeps, 2)
        if differences(small[0], large[0]) <= {"codebook_size", "patch"}
    ]


def _larger_best(small: Sequence[TokenizerRow], large: Sequence[TokenizerRow], figure: str) -> Comparison:
    few, many = _could_be_best(small, figure), _could_be_best(large, figure)
    outcome = True if max(few) < min(many) else False if min(few) >= max(many) else None
    texts = [
        f"{count(sweep[0].settings['codebook_size'])} codes: {figure} "
        + ", ".join(
            f"{in_words(row, figure)} (patch {describe(row)['patch']})"
            for row in sorted(sweep, key=lambda row: describe(row)["patch"])
        )
        for sweep in (small, large)
    ]
    return Comparison(outcome, f"{'; '.join(texts)}{remark(outcome, '; ')}")


def _could_be_best(sweep: Sequence[TokenizerRow], figure: str) -> list[int]:
    best = min(sweep, key=lambda row: measured(row, figure).value)
    return [
        describe(row)["patch"]
        for row in sweep
        if row is best or is_below(measured(best, figure), measured(row, figure), figure) is None
    ]
