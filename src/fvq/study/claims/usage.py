"""The paper's claims on codebook usage."""

from collections.abc import Sequence
from itertools import pairwise

from fvq.study.claims.comparisons import (
    TOO_FEW_TOKENS,
    Comparison,
    annealed_pairs,
    lower_usage,
    of_quantizer,
    spread_in_words,
    usage_in_words,
    with_usual_bridge,
)
from fvq.study.claims.statement import DEFAULT_DESIGN, Statement, cells, codes_at
from fvq.study.results import Study, TokenizerRow
from fvq.study.settings import differences, projector
from fvq.study.tables.cells import codes_in_words, tokens_in_words

# The paper's order of usage (Figure 3).
_ORDER = ("vq", "linear", "mlp5", "fvq")


def usage_claims(study: Study) -> list[Statement]:
    """Full usage, its order by projector, and where linear and MLP-5 fall short."""
    spread = spread_in_words(study, "usage")
    linear = of_quantizer(study.rows, "linear")
    return [
        Statement(
            title="FVQ uses every code",
            paper=f"Usage {cells('table_3', 'usage', 'fvq_256')} in every row, with "
            f"{cells('table_3', 'codebook_size', 'fvq_256', 'fvq_65k_256', 'fvq_262k_256', between=', ')} codes, "
            "annealed or not (Tables 1, 3, 5, 7 and 8).",
            rule="Every VQBridge row uses all of its codes on the validation tokens, with every seed. A row that does "
            "not decides nothing where uniformly drawn tokens of the same number would be expected to miss a code "
            "(half a code or more).",
            needs="a VQBridge row (fvq)",
            comparisons=_full_usage([row for row in study.rows if projector(row) == "fvq"]),
        ),
        Statement(
            title="The stronger the projector, the higher the usage: VQ < linear < MLP-5 ≤ VQBridge",
            paper=f"Figure 3, Tables 3 and 5: plain VQ {cells('table_3', 'usage', 'vqgan_256')}, linear with "
            f"annealing {cells('table_5', 'usage', 'linear_annealing')} and VQBridge "
            f"{cells('table_5', 'usage', 'vqbridge_annealing_16k')} at "
            f"{codes_at('linear')}; MLP-5 with annealing "
            f"{cells('table_5', 'usage', 'mlp5_annealing')} at {codes_at('mlp5')}, its only size.",
            rule=f"Annealed rows that differ in the quantizer alone, {DEFAULT_DESIGN}: each neighbouring pair of those "
            f"present is in this order. {spread} Of MLP-5 and VQBridge it is enough that MLP-5's usage is not above "
            "VQBridge's.",
            needs="two of vq, linear, mlp5 and fvq that differ in nothing else",
            comparisons=_usage_order(study.rows),
        ),
        Statement(
            title="Annealing lowers the linear projector's usage",
            paper=f"Table 5: {cells('table_5', 'usage', 'linear', 'linear_annealing')} at {codes_at('linear')}.",
            rule=f"A linear row has a lower usage with annealing than without, all else equal. {spread}",
            needs="linear and linear_no_annealing",
            comparisons=[lower_usage(row, other) for row, other in annealed_pairs(linear)],
        ),
        Statement(
            title="The linear projector does not use every code under annealing",
            paper=f"Table 5: {cells('table_5', 'usage', 'linear_annealing')} at {codes_at('linear')}.",
            rule="No annealed linear row uses all of its codes on the validation tokens, with any seed. Decides "
            "nothing where uniformly drawn tokens of the same number would be expected to miss a code.",
            needs="linear",
            comparisons=[_not_full(row) for row in linear if row.annealed],
        ),
        Statement(
            title="MLP-5 fails at a large codebook",
            paper=f"Table 5: MLP-5 {cells('table_5', 'usage', 'mlp5', 'mlp5_annealing', between=' and ')} at "
            f"{codes_at('mlp5')} without and with annealing, VQBridge "
            f"{cells('table_5', 'usage', 'vqbridge_annealing_262k')}.",
            rule="At the largest codebook size with an MLP-5 row and a VQBridge row that differ in nothing else, which "
            "must be larger than that of another VQBridge row, MLP-5's usage is below VQBridge's and below 100%. "
            f"{spread}",
            needs="mlp5_16x and fvq_16x beside fvq",
            comparisons=_mlp_at_its_largest(study.rows),
        ),
    ]


def _decidable(row: TokenizerRow) -> bool:
    """Whether chance alone would not leave a code out."""
    return row.figures["codebook_size"] * (1 - row.figures["usage_ceiling"]) < 0.5


def _codes(row: TokenizerRow) -> str:
    used = row.values("usage_codes")
    together = "with each of" if min(used) == max(used) else "over"
    seeds = f" {together} {len(used)} seeds" if len(used) > 1 else ""
    return f"{codes_in_words(row)}{seeds} ({tokens_in_words(row)})"


def _full_usage(rows: Sequence[TokenizerRow]) -> list[Comparison]:
    """One comparison a row; the first of those with equal counts has the line."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(_codes(row), []).append(row.label)
    found = []
    for row in rows:
        full = min(row.values("usage_codes")) == row.figures["codebook_size"]
        outcome = True if full else False if _decidable(row) else None
        names = labels.pop(_codes(row), None)
        mark = "; too few tokens to tell" if outcome is None else ""
        found.append(Comparison(outcome, f"{'; '.join(names)}: {_codes(row)}{mark}" if names else "", TOO_FEW_TOKENS))
    return found


def _not_full(row: TokenizerRow) -> Comparison:
    short = max(row.values("usage_codes")) < row.figures["codebook_size"]
    outcome = False if not short else True if _decidable(row) else None
    mark = {True: "", False: ": with every code", None: "; too few tokens to tell"}[outcome]
    return Comparison(outcome, f"{row.label} {_codes(row)}{mark}", TOO_FEW_TOKENS)


def _usage_order(rows: Sequence[TokenizerRow]) -> list[Comparison]:
    found = []
    annealed = [row for row in rows if row.annealed]
    for fvq in with_usual_bridge(annealed):
        group = {"fvq": fvq}
        for row in annealed:
            if differences(row, fvq) == {"quantizer"}:
                group.setdefault(row.settings["quantizer"], row)
        present = [group[quantizer] for quantizer in _ORDER if quantizer in group]
        found += [
            lower_usage(weaker, stronger, or_equal=weaker.settings["quantizer"] == "mlp5")
            for weaker, stronger in pairwise(present)
        ]
    return found


def _mlp_at_its_largest(rows: Sequence[TokenizerRow]) -> list[Comparison]:
    beside = [
        (row, fvq)
        for fvq in with_usual_bridge(rows)
        for row in of_quantizer(rows, "mlp5")
        if differences(row, fvq) == {"quantizer"}
    ]
    largest = max((row.settings["codebook_size"] for row, _ in beside), default=0)
    if not any(row.settings["codebook_size"] < largest for row in of_quantizer(rows, "fvq")):
        return []
    found = []
    for row, fvq in beside:
        if row.settings["codebook_size"] == largest:
            comparison = lower_usage(row, fvq)
            if max(row.values("usage_codes")) == row.figures["codebook_size"]:
                comparison = Comparison(False, f"{usage_in_words([row, fvq])}: MLP-5 uses every code")
            found.append(comparison)
    return found
