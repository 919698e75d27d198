"""The rules by which two rows are compared: what they may differ in, and which differences of a figure decide."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from fvq.runtime.text import significant, supported
from fvq.study.measured import Measured, measured
from fvq.study.results import GeneratorRow, Study, TokenizerRow
from fvq.study.settings import BRIDGE_SETTINGS, describe, differences, usual_bridge
from fvq.study.tables.cells import tokens_in_words, usage_cell

WITHIN_SPREAD = "the differences lie within the spread"
TOO_FEW_TOKENS = "there are too few tokens to tell"

# How far another seed moved a row of the default study (docs/experiments.md, seeds 0 to 2): the squared error by up to
# 8.2 % (MLP-5), usage by up to 23 % (linear), reconstructions' Fréchet distance on the study's own classifier by up to
# 43 % (FVQ), which samples' distance on it is taken to share.
_SEED_SPREAD = {"mse": 0.082, "usage": 0.23}
_SEED_SPREAD_OF_OWN_FEATURES = 0.43
# Assumed: no FID was measured with several seeds.
_ASSUMED_SPREAD = {"rfid": 0.03, "rfid_jpeg75": 0.03, "fid": 0.03}


@dataclass(frozen=True)
class Comparison:
    """What one comparison says of a claim: it comes out so (True), the other way (False), or decides nothing (None).

    ``why`` says why it decides nothing; ``text`` has its figures, '' where those of another comparison have them.
    """

    outcome: bool | None
    text: str
    why: str = WITHIN_SPREAD


# --- which rows are compared -----------------------------------------------------------------------------------------


def of_quantizer(rows: Sequence[TokenizerRow], *quantizers: str) -> list[TokenizerRow]:
    """The rows whose quantizer is one of these, composed ones left out."""
    return [row for row in rows if row.settings["quantizer"] in quantizers]


def pairs(rows: Sequence[TokenizerRow], *names: str) -> Iterator[tuple[TokenizerRow, TokenizerRow]]:
    """Every two rows, in either order, that differ in something of ``names`` and in nothing else."""
    for row, other in permutations(rows, 2):
        if (found := differences(row, other)) and found <= set(names):
            yield row, other


def annealed_pairs(rows: Sequence[TokenizerRow]) -> list[tuple[TokenizerRow, TokenizerRow]]:
    """Pairs that differ in annealing alone, the annealed row first, the other without any."""
    return [(row, other) for row, other in pairs(rows, "annealing") if row.annealed and not other.annealed]


def neighbours(rows: Sequence[TokenizerRow], name: str) -> list[tuple[TokenizerRow, TokenizerRow]]:
    """Pairs that differ in the number ``name`` alone, the lower first, without those that have a row between them."""
    ordered = [(row, other) for row, other in pairs(rows, name) if describe(row)[name] < describe(other)[name]]
    found = {(lower.name, upper.name) for lower, upper in ordered}
    return [
        (lower, upper)
        for lower, upper in ordered
        if not any((lower.name, row.name) in found and (row.name, upper.name) in found for row in rows)
    ]


def with_usual_bridge(rows: Sequence[TokenizerRow]) -> list[TokenizerRow]:
    """The FVQ rows: of those that differ in the bridge alone, the one nearest to VQBridge's defaults."""
    kept: dict[str, TokenizerRow] = {}
    for row in sorted(of_quantizer(rows, "fvq"), key=_unusual):
        if not any(differences(row, other) <= set(BRIDGE_SETTINGS) for other in kept.values()):
            kept[row.name] = row
    return [row for row in rows if row.name in kept]


def _unusual(row: TokenizerRow) -> int:
    described = describe(row)
    return sum(described[name] != value for name, value in usual_bridge(described).items())


# --- which differences decide ----------------------------------------------------------------------------------------


def margin(one: Measured, other: Measured, figure: str) -> float:
    """The largest difference of two figures that decides nothing; ``spread_in_words`` says how it comes about."""
    # Rows share their images or random streams, which makes chance smaller, if anything.
    images = 2 * math.hypot(one.image_spread or 0, other.image_spread or 0)
    if one.error_of_mean is not None and other.error_of_mean is not None:
        return max(2 * math.hypot(one.error_of_mean, other.error_of_mean), images)
    return max(_seed_share(figure) * max(one.value, other.value), images)


def is_below(one: Measured, other: Measured, figure: str) -> bool | None:
    """Whether the first is below the other; None where they are no further apart than ``margin``."""
    close = abs(one.value - other.value) <= margin(one, other, figure)
    return None if close else one.value < other.value


def spread_in_words(study: Study, figure: str, rows: Sequence[TokenizerRow | GeneratorRow] | None = None) -> str:
    """Which differences of two rows (by default of tokenizers) decide nothing, as a sentence of a rule."""
    compared = study.rows if rows is None else rows
    share = f"{100 * _seed_share(figure):.2g}%{' (an assumption)' if figure in _ASSUMED_SPREAD else ''}"
    bounds = [f"up to {share} of the larger figure"]
    if any(measured(row, figure).seed_spread is not None for row in compared):
        bounds = [f"up to 2 √(s²/n + s′²/n′), n seeds of deviation s (with one seed: {bounds[0]})"]
    if any(f"{figure}_spread" in row.figures for row in compared):
        bounds.append("up to 2 √(a² + a′²), the spreads ± a over halves of the images")
    return f"Differences {', or '.join(bounds)}{',' if len(bounds) > 1 else ''} decide nothing."


def lower(row: TokenizerRow | GeneratorRow, other: TokenizerRow | GeneratorRow, figure: str) -> Comparison:
    """Whether the first row has the lower figure."""
    outcome = is_below(measured(row, figure), measured(other, figure), figure)
    return Comparison(outcome, both_in_words(row, other, figure, remark(outcome)))


def lower_usage(row: TokenizerRow, other: TokenizerRow, *, or_equal: bool = False) -> Comparison:
    """Whether the first row uses the smaller share of its codes; ``or_equal`` takes any that is not larger for that."""
    one, two = measured(row, "usage"), measured(other, "usage")
    outcome = True if or_equal and one.value <= two.value else is_below(one, two, "usage")
    return Comparison(outcome, f"{usage_in_words([row, other])}{remark(outcome, '; ')}")


def remark(outcome: bool | None, before: str = ", ") -> str:
    """What to say after the figures of a comparison that does not come out."""
    return {True: "", False: f"{before}the other way", None: f"{before}within the spread"}[outcome]


def _seed_share(figure: str) -> float:
    """How far another seed is taken to move a figure, as a share of it."""
    return {**_SEED_SPREAD, **_ASSUMED_SPREAD}.get(figure, _SEED_SPREAD_OF_OWN_FEATURES)


# --- figures in words ------------------------------------------------------------------------------------------------


def in_words(row: TokenizerRow | GeneratorRow, figure: str) -> str:
    """Label and figure, with the spread over seeds or else over images: ``FVQ 25.0 ± 0.4``."""
    found = measured(row, figure)
    return f"{row.label} {found.text}{_seeds_in_words(found)}"


def both_in_words(row: TokenizerRow | GeneratorRow, other: TokenizerRow | GeneratorRow, figure: str, mark: str) -> str:
    """The figures of two rows with how far the first lies from the other, and what to say of that."""
    change = _change(measured(row, figure), measured(other, figure))
    return f"{figure}: {in_words(row, figure)}, {in_words(other, figure)} ({change}{mark})"


def _change(one: Measured, base: Measured) -> str:
    """How far the first lies from the second in percent, with the digits that their spreads support."""
    if base.value == 0:
        return "no change" if one.value == 0 else "from 0"
    ratio = one.value / base.value
    mine, theirs = (each.image_spread if each.error_of_mean is None else each.error_of_mean for each in (one, base))
    if mine and theirs:
        text = supported(100 * (ratio - 1), 100 * math.hypot(mine, ratio * theirs) / abs(base.value))
        return f"{'' if ratio < 1 else '+'}{text}%".replace("-", "−")
    return f"{ratio - 1:+.1%}".replace("-", "−")


def usage_in_words(rows: Sequence[TokenizerRow]) -> str:
    """Each row's usage, and what it was counted over: once where the rows share that."""
    shares = []
    for row in rows:
        found = measured(row, "usage")
        spread = "" if found.seed_spread is None else f" ± {significant(100 * found.seed_spread, 1)}%"
        shares.append(f"{row.label} {usage_cell(row).text}{spread}{_seeds_in_words(found)}")
    counted = [tokens_in_words(row) for row in rows]
    if len(set(counted)) == 1:
        return f"{', '.join(shares)} ({counted[0]})"
    return ", ".join(f"{share} ({tokens})" for share, tokens in zip(shares, counted, strict=True))


def _seeds_in_words(figure: Measured) -> str:
    return "" if figure.seed_spread is None else f" over {len(figure.values)} seeds"
