"""Which rows of a large study belong together: told by how their settings differ, whatever their names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fvq.runtime.text import count
from fvq.study.results import TokenizerRow
from fvq.study.settings import describe, differences, projector

# The paper's comparison of projectors and annealing (Figure 3, Table 5).
_COMPARED = frozenset({"quantizer", "annealing"})
# What else a row may vary; of several, the last decides its group.
_GROUPS = (
    ("channels, ratio, length", {"code_dim", "ratio", "epochs", "steps"}),
    ("size of the codebook", {"codebook_size"}),
    ("schedule and options", {"warmup", "shape", "options"}),
    ("patch of the bridge", {"patch"}),
    ("width and depth of the bridge", {"width", "depth", "heads", "layout", "block"}),
    ("several codes a place", {"composition"}),
)

BridgeSetting: TypeAlias = Literal["width", "depth", "patch"]
# The paper's Figure 6: what rows of a sweep differ in.
_SWEPT: dict[BridgeSetting, set[str]] = {
    "width": {"width"},
    "depth": {"depth"},
    "patch": {"patch", "codebook_size"},
}


@dataclass(frozen=True)
class Group:
    """Rows for one panel; ``reference`` is the row that they all differ from, None where it is one of them."""

    title: str
    rows: tuple[TokenizerRow, ...]
    reference: TokenizerRow | None


def base_row(rows: Sequence[TokenizerRow]) -> TokenizerRow:
    """The row that the study varies: the one, with a bridge if any has, that most others differ from in one thing."""
    bridged = [row for row in rows if row.settings["quantizer"] == "fvq"] or list(rows)
    # The first of several.
    return max(bridged, key=lambda row: sum(len(differences(row, other)) == 1 for other in rows))


def compared_rows(rows: Sequence[TokenizerRow]) -> list[TokenizerRow]:
    """Those that differ from the base row in quantizer and annealing alone, and itself."""
    base = base_row(rows)
    return [row for row in rows if differences(row, base) <= _COMPARED]


def square_rows(rows: Sequence[TokenizerRow]) -> list[TokenizerRow]:
    """Of these the 2×2 of Table 5, as far as there is one: linear layer and VQBridge, with and without annealing."""
    return [row for row in compared_rows(rows) if projector(row) in ("linear", "fvq")]


def bridge_sweeps(rows: Sequence[TokenizerRow]) -> dict[BridgeSetting, list[TokenizerRow]]:
    """The rows of the paper's Figure 6: by each setting of the bridge those that differ from the base row in it alone.

    Those of the patch may have another codebook size too, if rows of that size differ in their patches. The base row
    is among those of its size. Sorted by codebook size and then by the setting; what no row varies is left out.
    """
    base = base_row(rows)
    if projector(base) != "fvq":
        return {}
    sweeps: dict[BridgeSetting, list[TokenizerRow]] = {}
    for name, varied in _SWEPT.items():
        found = [(describe(row), row) for row in rows if differences(row, base) <= varied]
        settings = {(described["codebook_size"], described[name]) for described, _ in found}
        per_size = Counter(size for size, _ in settings)
        kept = [(described, row) for described, row in found if per_size[described["codebook_size"]] > 1]
        kept.sort(key=lambda entry: (entry[0]["codebook_size"], entry[0][name]))
        if kept:
            sweeps[name] = [row for _, row in kept]
    return sweeps


def groups(rows: Sequence[TokenizerRow]) -> list[Group]:
    """All rows by what they vary: first quantizer and annealing, at each codebook size, as in the paper's Figure 3."""
    base = base_row(rows)
    compared = compared_rows(rows)
    found = [Group(_compared_title(base), tuple(compared), None)]
    rest = [row for row in rows if row not in compared]
    sized = [row for row in rest if differences(row, base) <= _COMPARED | {"codebook_size"}]
    for size in sorted({row.settings["codebook_size"] for row in sized}):
        same = [row for row in sized if row.settings["codebook_size"] == size]
        if len(same) > 1:
            found.append(Group(_compared_title(same[0]), tuple(same), None))
            rest = [row for row in rest if row not in same]
    members: dict[str, list[TokenizerRow]] = {title: [] for title, _ in _GROUPS}
    for row in rest:
        varied = differences(row, base)
        members[[title for title, aspects in _GROUPS if varied & aspects][-1]].append(row)
    return found + [Group(title, tuple(own), base) for title, own in members.items() if own]


def _compared_title(row: TokenizerRow) -> str:
    return f"projector and annealing, {count(row.settings['codebook_size'])} codes"
