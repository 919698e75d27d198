"""The paper's own tables, as printed, and which of their rows a measured row stands next to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

TITLE = "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization"


@dataclass(frozen=True)
class PaperRow:
    """One printed row: ``cells`` by column key, ``settings`` by which measured rows find it (empty: none does)."""

    id: str
    cells: dict[str, str]
    settings: dict[str, Any]


@dataclass(frozen=True)
class PaperTable:
    """One printed table: ``columns`` maps keys to headings; ``notes`` say where the paper disagrees with itself."""

    number: int
    caption: str
    footnotes: str
    columns: dict[str, str]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]

    def cell(self, row: str, column: str) -> str:
        """The printed cell of row id ``row``; KeyError where the table has no such row or column."""
        return {entry.id: entry for entry in self.rows}[row].cells[column]


@cache
def paper_tables() -> dict[str, PaperTable]:
    """Tables 1, 2, 3 and 5 under ``table_1`` and so on."""
    data = yaml.safe_load(files(__package__).joinpath("paper_tables.yaml").read_text(encoding="utf-8"))
    return {name: _table(entry) for name, entry in data.items()}


def _table(entry: dict[str, Any]) -> PaperTable:
    columns = {column["key"]: column["name"] for column in entry["columns"]}
    return PaperTable(
        number=entry["number"],
        caption=entry["caption"],
        footnotes=entry["footnotes"],
        columns=columns,
        rows=tuple(
            PaperRow(row["id"], dict(zip(columns, row["cells"], strict=True)), row.get("settings", {}))
            for row in entry["rows"]
        ),
        notes=tuple(entry["notes"]),
    )


def corresponding_rows(table: PaperTable, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, PaperRow | None]:
    """For each measured row, settings by name, the paper's row that it stands next to; None where there is none.

    ``quantizer`` and ``annealing`` must agree where the paper's row gives them. Among several paper rows it is the one
    whose sizes are nearest in ratio, so that a study at another scale still stands next to its own kind; among several
    measured rows those nearest to the paper's.
    """
    found = {name: min(_candidates(table, settings), default=None) for name, settings in measured.items()}
    nearest: dict[int, float] = {}
    for candidate in found.values():
        if candidate is not None:
            distance, position = candidate
            nearest[position] = min(distance, nearest.get(position, math.inf))
    return {
        name: table.rows[candidate[1]] if candidate is not None and candidate[0] == nearest[candidate[1]] else None
        for name, candidate in found.items()
    }


def _candidates(table: PaperTable, settings: Mapping[str, Any]) -> list[tuple[float, int]]:
    """(distance, position) of the paper's rows of the same kind."""
    candidates = []
    for position, row in enumerate(table.rows):
        kind = [name for name in ("quantizer", "annealing") if name in row.settings]
        if "quantizer" in kind and all(row.settings[name] == settings[name] for name in kind):
            sizes = [name for name in row.settings if name not in kind and settings.get(name)]
            distance = sum(abs(math.log2(settings[name] / row.settings[name])) for name in sizes)
            candidates.append((distance, position))
    return candidates
