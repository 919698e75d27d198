"""A claim of the paper before it is judged, and the paper's own figures for its text."""

from collections.abc import Sequence
from dataclasses import dataclass

from fvq.study.claims.comparisons import Comparison
from fvq.study.paper import paper_tables

# What a rule says where rows come from ``with_usual_bridge``.
DEFAULT_DESIGN = "of several bridges the one nearest to VQBridge's defaults"


@dataclass(frozen=True)
class Statement:
    """A claim with the comparisons that decide it; ``needs`` says which rows it takes to compare anything."""

    title: str
    paper: str
    rule: str
    needs: str
    comparisons: Sequence[Comparison]


def cells(table: str, column: str, *rows: str, between: str = " → ") -> str:
    """The paper's own figures, as printed."""
    return between.join(paper_tables()[table].cell(row, column) for row in rows)


def codes_at(row: str) -> str:
    """The codebook size of a row of Table 5."""
    return f"{cells('table_5', 'codebook_size', row)} codes"


def name_of(figure: str) -> str:
    """An error figure in a title."""
    return "squared error (mse)" if figure == "mse" else figure
