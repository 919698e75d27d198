"""What comes out as the paper says and what does not: stated rules over measured figures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

from fvq.runtime.text import supported
from fvq.study.paper import paper_tables
from fvq.study.results import Study, TokenizerRow
from fvq.study.tables import figure_text, usage_cell

Verdict = Literal["holds", "does not hold", "too close to call", "not measured here"]

# Seeds 0 to 2 of the default study moved the squared error of a row by up to 8.2 % and the Fréchet distance on the
# study's own classifier by up to 43 % (docs/experiments.md). Smaller differences between two rows decide nothing.
_SPREAD = {"mse": 0.082, "rfid": 0.03, "rfid_jpeg75": 0.03, "fid": 0.03}
_SPREAD_OF_OWN_FEATURES = 0.43

# Rows that differ in anything else than the quantizer or annealing are not compared.
_SAME = ("codebook_size", "code_dim", "ratio", "epochs", "steps")
_ORDER = ("vq", "linear", "mlp5", "fvq")


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, the rule that decides it here, and the figures that the rule was applied to."""

    title: str
    paper: str
    rule: str
    verdict: Verdict
    numbers: tuple[str, ...]


def judge(study: Study) -> list[Claim]:
    """Every claim with its verdict."""
    groups = [_group(study, row) for row in study.rows if row.settings["quantizer"] == "fvq" and row.annealed]
    return [
        _full_usage([group["fvq"] for group in groups]),
        _usage_order(groups),
        _lowest(groups, "mse", "The paper reports rFID instead, see next."),
        _lowest(groups, study.rfd, _paper_lowest()),
        _annealing(study, groups, "mse", "The paper reports rFID instead, see next."),
        _annealing(study, groups, study.rfd, _paper_annealing()),
        _generators(study),
    ]


def comparable(row: TokenizerRow, other: TokenizerRow) -> bool:
    """Whether two rows differ in nothing but the quantizer and annealing."""
    return all(row.settings.get(name) == other.settings.get(name) for name in _SAME)


def _group(study: Study, fvq: TokenizerRow) -> dict[str, TokenizerRow]:
    """The annealed rows comparable with one FVQ row, by quantizer, in the paper's order of usage."""
    found = {"fvq": fvq}
    for row in study.rows:
        if row.annealed and comparable(row, fvq):
            found.setdefault(row.settings["quantizer"], row)
    return {quantizer: found[quantizer] for quantizer in _ORDER if quantizer in found}


def _verdict(outcomes: Iterable[bool | None]) -> Verdict:
    """Every single comparison has to come out, and there has to be one; None is one that decides nothing."""
    known = list(outcomes)
    if not known:
        return "not measured here"
    if False in known:
        return "does not hold"
    return "too close to call" if None in known else "holds"


def _spread(figure: str) -> float:
    return _SPREAD.get(figure, _SPREAD_OF_OWN_FEATURES)


def _undecided(figure: str) -> str:
    """Which differences of two rows decide nothing, in the words of a rule."""
    close = f"differences up to {_spread(figure):.0%}"
    if figure == "mse":
        return f"{close} decide nothing"
    return f"{close}, or to 2 √(a² + b²) of the spreads ±a and ±b over halves where they are measured, decide nothing"


def _chance(figures: Mapping[str, float], other: Mapping[str, float], figure: str) -> float:
    """The standard deviation that the choice of images gives the difference of a figure; 0 where it was not measured.

    Rows share their images or random streams, which makes it smaller, if anything.
    """
    return math.hypot(figures.get(f"{figure}_spread", 0), other.get(f"{figure}_spread", 0))


def _below(figures: Mapping[str, float], other: Mapping[str, float], figure: str) -> bool | None:
    """Whether a row's figure is below another's; None where they are closer than two seeds or image sets may be."""
    one, two = figures[figure], other[figure]
    close = abs(one - two) <= max(_spread(figure) * max(one, two), 2 * _chance(figures, other, figure))
    return None if close else one < two


def _usage(row: TokenizerRow) -> str:
    cell = usage_cell(row)
    return f"{row.label} {cell.text} ({cell.detail})"


def _figures(rows: Sequence[TokenizerRow], figure: str) -> str:
    return ", ".join(f"{row.label} {figure_text(row.figures, figure)}" for row in rows)


def _full_usage(rows: Sequence[TokenizerRow]) -> Claim:
    outcomes, numbers = [], []
    for row in rows:
        figures = row.figures
        codes, size = int(figures["usage_codes"]), int(figures["codebook_size"])
        # Where chance alone would leave a code out, a usage below 100 % says nothing.
        decidable = codes == size or size * (1 - figures["usage_ceiling"]) < 0.5
        outcomes += [codes == size] if decidable else []
        numbers.append(
            f"{_usage(row)}: {codes:,} of {size:,} codes" + ("" if decidable else "; too few tokens to tell")
        )
    return Claim(
        title="FVQ uses every code",
        paper=f"Usage {_paper_cell('table_1', 'fvq_40', 'usage')} (Tables 1, 3 and 5), at every codebook size.",
        rule="Every annealed VQBridge row uses all of its codes on the validation tokens. Not decided where uniformly "
        "drawn tokens of the same number would be expected to miss a code (half a code or more).",
        verdict=_verdict(outcomes),
        numbers=tuple(numbers),
    )


def _usage_order(groups: Sequence[dict[str, TokenizerRow]]) -> Claim:
    outcomes, numbers = [], []
    for group in groups:
        if len(group) > 1:
            for (_, lower), (upper_name, upper) in pairwise(group.items()):
                less, more = lower.figures["usage"], upper.figures["usage"]
                equal_counts = upper_name == "fvq" and lower.settings["quantizer"] == "mlp5"
                outcomes.append(less <= more if equal_counts else less < more)
            numbers.append(", ".join(_usage(row) for row in group.values()))
    paper = (
        f"Figure 3 and Tables 3 and 5: plain VQ {_paper_cell('table_3', 'vqgan_256', 'usage')}, linear with annealing "
        f"{_paper_cell('table_5', 'linear_annealing', 'usage')} and VQBridge 100% at 16k codes; MLP-5 with annealing "
        f"{_paper_cell('table_5', 'mlp5_annealing', 'usage')} at 262k codes. It has no MLP-5 at 16k."
    )
    return Claim(
        title="The stronger the projector, the higher the usage: VQ < linear < MLP-5 ≤ VQBridge",
        paper=paper,
        rule="Annealed rows of one codebook size, channel count, ratio and length: each neighbouring pair of those "
        "present is in this order; equality counts between MLP-5 and VQBridge only.",
        verdict=_verdict(outcomes),
        numbers=tuple(numbers),
    )


def _lowest(groups: Sequence[dict[str, TokenizerRow]], figure: str, paper: str) -> Claim:
    outcomes, numbers = [], []
    for group in groups:
        others = [row for quantizer, row in group.items() if quantizer != "fvq"]
        if others:
            outcomes += [_below(group["fvq"].figures, row.figures, figure) for row in others]
            ordered = sorted(group.values(), key=lambda row: row.figures[figure])
            nearest = min(others, key=lambda row: row.figures[figure])
            change = _change(group["fvq"], nearest, figure)
            numbers.append(
                f"{figure}: {_figures(ordered, figure)} ({group['fvq'].label} against {nearest.label}: {change})"
            )
    return Claim(
        title=f"FVQ has the lowest {_in_words(figure)}",
        paper=paper,
        rule=f"Annealed rows of one codebook size, channel count, ratio and length: the VQBridge row's {figure} on the "
        f"validation images is below every other row's; {_undecided(figure)}.",
        verdict=_verdict(outcomes),
        numbers=tuple(numbers),
    )


def _annealing(study: Study, groups: Sequence[dict[str, TokenizerRow]], figure: str, paper: str) -> Claim:
    outcomes, numbers = [], []
    for group in groups:
        fvq = group["fvq"]
        for row in study.rows:
            if row.settings["quantizer"] == "fvq" and not row.annealed and comparable(row, fvq):
                outcomes.append(_below(fvq.figures, row.figures, figure))
                numbers.append(f"{figure}: {_figures([fvq, row], figure)} ({_change(fvq, row, figure)})")
    return Claim(
        title=f"Annealing lowers FVQ's {_in_words(figure)}",
        paper=paper,
        rule=f"The VQBridge row with annealing has a lower validation {figure} than the same row without; "
        f"{_undecided(figure)}.",
        verdict=_verdict(outcomes),
        numbers=tuple(numbers),
    )


def _in_words(figure: str) -> str:
    return "squared reconstruction error (mse)" if figure == "mse" else figure


def _change(row: TokenizerRow, base: TokenizerRow, figure: str) -> str:
    if base.figures[figure] == 0:
        return "no change" if row.figures[figure] == 0 else "from 0"
    ratio = row.figures[figure] / base.figures[figure]
    if f"{figure}_spread" not in row.figures or f"{figure}_spread" not in base.figures:
        return f"{ratio - 1:+.1%}".replace("-", "−")
    spread, other = row.figures[f"{figure}_spread"], base.figures[f"{figure}_spread"]
    text = supported(100 * (ratio - 1), 100 * math.hypot(spread, ratio * other) / base.figures[figure])
    return f"{'' if ratio < 1 else '+'}{text}%".replace("-", "−")


def _generators(study: Study) -> Claim:
    tokenizers = {row.name: row.figures for row in study.rows}
    outcomes, numbers = [], []
    for one, other in combinations(study.generators, 2):
        better, worse = sorted((one, other), key=lambda row: tokenizers[row.tokenizer][study.rfd])
        differ = tokenizers[one.tokenizer][study.rfd] != tokenizers[other.tokenizer][study.rfd]
        if one.settings == other.settings and differ:
            outcomes.append(_below(better.figures, worse.figures, study.fd))
            numbers.append(
                "; ".join(
                    f"{row.label}: {study.rfd} {figure_text(tokenizers[row.tokenizer], study.rfd)}, "
                    f"{study.fd} {figure_text(row.figures, study.fd)}"
                    for row in (better, worse)
                )
            )
    return Claim(
        title="A better tokenizer gives a better generator",
        paper=f"Table 2: LlamaGen-L goes from FID {_paper_cell('table_2', 'llamagen_l', 'fid')} to "
        f"{_paper_cell('table_2', 'fvq_l', 'fid')} with FVQ's tokenizer (and another training recipe).",
        rule=f"Of every two rows with equal generator settings, the one whose tokenizer has the lower {study.rfd} has "
        f"the lower {study.fd}; {_undecided(study.fd)}.",
        verdict=_verdict(outcomes),
        numbers=tuple(numbers),
    )


def _paper_cell(table: str, row: str, column: str) -> str:
    return paper_tables()[table].cell(row, column)


def _paper_lowest() -> str:
    return (
        f"Tables 3 and 5, rFID at 16k codes: VQBridge {_paper_cell('table_5', 'vqbridge_annealing_16k', 'rfid')}, "
        f"linear {_paper_cell('table_5', 'linear_annealing', 'rfid')}, "
        f"plain VQ {_paper_cell('table_3', 'vqgan_256', 'rfid')}; at 262k codes: VQBridge "
        f"{_paper_cell('table_5', 'vqbridge_annealing_262k', 'rfid')}, "
        f"MLP-5 {_paper_cell('table_5', 'mlp5_annealing', 'rfid')}."
    )


def _paper_annealing() -> str:
    return (
        f"Table 3, rFID at 16k codes: {_paper_cell('table_3', 'fvq_256', 'rfid')} with annealing, "
        f"{_paper_cell('table_3', 'fvq_no_annealing', 'rfid')} without."
    )
