"""What comes out as the paper says and what does not: a verdict for each claim from its comparisons."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fvq.study.claims.comparisons import Comparison
from fvq.study.claims.design import design_claims
from fvq.study.claims.errors import error_claims
from fvq.study.claims.reach import reach_claims
from fvq.study.claims.statement import Statement
from fvq.study.claims.usage import usage_claims
from fvq.study.results import Study

Verdict = Literal["holds", "fails", "not testable at this scale"]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, the rule that decides it here, and the figures that the rule was applied to.

    ``reason`` is a sentence where the verdict takes one, or ''.
    """

    title: str
    paper: str
    rule: str
    verdict: Verdict
    reason: str
    numbers: tuple[str, ...]


def judge(study: Study) -> list[Claim]:
    """Every claim with its verdict.

    A claim fails where one comparison comes out the other way; it holds where one comes out and none the other way; it
    is not testable where there are no rows to compare, or all of their differences are within the spread.
    """
    statements = [*usage_claims(study), *error_claims(study), *design_claims(study), *reach_claims(study)]
    return [_judged(statement) for statement in statements]


def verdict_records(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims as plain data for a JSON file, one mapping each with the fields of ``Claim``."""
    return [{**asdict(claim), "numbers": list(claim.numbers)} for claim in claims]


def _judged(statement: Statement) -> Claim:
    verdict, reason = _verdict(statement)
    return Claim(
        title=statement.title,
        paper=statement.paper,
        rule=statement.rule,
        verdict=verdict,
        reason=reason,
        numbers=tuple(comparison.text for comparison in statement.comparisons if comparison.text),
    )


def _verdict(statement: Statement) -> tuple[Verdict, str]:
    outcomes = [comparison.outcome for comparison in statement.comparisons]
    if not outcomes:
        return "not testable at this scale", f"This study has no rows to compare: it needs {statement.needs}."
    undecided = [comparison for comparison in statement.comparisons if comparison.outcome is None]
    if False in outcomes:
        return "fails", _of(outcomes.count(False), len(outcomes), "comes out the other way", "come out the other way")
    if len(undecided) == len(outcomes):
        return "not testable at this scale", f"{_why(undecided).capitalize()}."
    beside = _of(len(undecided), len(outcomes), "decides nothing", "decide nothing").removesuffix(".")
    return "holds", f"{beside}: {_why(undecided)}." if undecided else ""


def _of(some: int, all_of_them: int, singular: str, plural: str) -> str:
    """``2 of 3 comparisons come out the other way.``; '' where there is but one."""
    if all_of_them == 1:
        return ""
    return f"{some} of {all_of_them} comparisons {singular if some == 1 else plural}."


def _why(undecided: Sequence[Comparison]) -> str:
    return ", and ".join(dict.fromkeys(comparison.why for comparison in undecided))
