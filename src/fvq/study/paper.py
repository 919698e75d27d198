"""The paper's own tables, as printed, and which of their rows a measured row stands next to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

TITLE = "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization"

_NUMBER = re.compile(r"(\d[\d,]*(?:\.\d+)?)([%MBG]?)")
_EXPONENTS = {"": 0, "%": -2, "M": 6, "B": 9, "G": 9}
_CODEBOOK_SIZES = {"16k": 16384.0, "65k": 65536.0, "262k": 262144.0}


@dataclass(frozen=True)
class PaperColumn:
    """A printed column; ``better`` is empty where it is no figure of merit."""

    key: str
    name: str
    better: Literal["lower", "higher", ""] = ""


@dataclass(frozen=True)
class PaperRow:
    """One printed row.

    Attributes:
        id: names the row within its table.
        cells: what is printed, by column key.
        rows: names of the measured rows that stand next to it.
        settings: what such a row must be to stand there; of a mapping in it, the entries that matter.
        remarks: by column key, what to know about a cell.
        underlined: keys of the columns that the paper underlines as second-best.
        heading: what the paper prints across the table above the row, mostly nothing.
    """

    id: str
    cells: dict[str, str]
    rows: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    underlined: tuple[str, ...] = ()
    heading: str = ""

    @property
    def quoted(self) -> bool:
        """Whether no measured row can stand next to it: the paper quotes the system, or the row is a setting."""
        return not self.rows


@dataclass(frozen=True)
class PaperTable:
    """One printed table: ``footnotes`` is what follows the caption's title; ``notes`` concern the whole table."""

    number: int
    caption: str
    footnotes: str
    columns: tuple[PaperColumn, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]

    def cell(self, row: str, column: str) -> str:
        """The printed cell of row id ``row``; KeyError where the table has no such row or column."""
        return {entry.id: entry for entry in self.rows}[row].cells[column]

    def column(self, key: str) -> PaperColumn:
        """The column of that key; KeyError where the table has none."""
        return {column.key: column for column in self.columns}[key]

    def value(self, row: str, column: str) -> float | None:
        """The printed cell as a number, None where it is a dash, empty or no single number; KeyError as ``cell``.

        Percentages are shares (0.29% is 0.0029), 16k, 65k and 262k the powers of two that they round, M, B and G
        millions and billions.
        """
        text = self.cell(row, column)
        if text in _CODEBOOK_SIZES:
            return _CODEBOOK_SIZES[text]
        if (match := _NUMBER.fullmatch(text)) is None:
            return None
        digits, unit = match.groups()
        return float(f"{digits.replace(',', '')}e{_EXPONENTS[unit]}")


@cache
def paper_tables() -> dict[str, PaperTable]:
    """Tables 1 to 11 under ``table_1`` to ``table_11``."""
    data = yaml.safe_load(files(__package__).joinpath("paper_tables.yaml").read_text(encoding="utf-8"))
    return {name: _table(entry) for name, entry in data.items()}


def paper_row_of(table: PaperTable, name: str, settings: Mapping[str, Any]) -> PaperRow | None:
    """The paper's row that the measured row ``name`` stands next to; None where there is none.

    The paper's row names the measured one, and its settings agree with ``settings``, so that a row of another kind does
    not stand in a place that its name claims. Sizes do not matter: they are a scale's. ``settings`` are the measured
    row's own (of a generator: its tokenizer's), with ``annealing`` as a bool, false where the row's is "none".
    """
    return next((row for row in table.rows if name in row.rows and _agree(row.settings, settings)), None)


def _agree(required: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    for name, value in required.items():
        if name not in settings:
            return False
        if isinstance(value, Mapping):
            if not (isinstance(settings[name], Mapping) and _agree(value, settings[name])):
                return False
        elif settings[name] != value:
            return False
    return True


def _table(entry: dict[str, Any]) -> PaperTable:
    columns = tuple(PaperColumn(**column) for column in entry["columns"])
    return PaperTable(
        number=entry["number"],
        caption=entry["caption"],
        footnotes=entry["footnotes"],
        columns=columns,
        rows=tuple(_row(row, columns) for row in entry["rows"]),
        notes=tuple(entry["notes"]),
    )


def _row(entry: dict[str, Any], columns: tuple[PaperColumn, ...]) -> PaperRow:
    return PaperRow(
        id=entry["id"],
        cells=dict(zip((column.key for column in columns), entry["cells"], strict=True)),
        rows=tuple(entry.get("rows", ())),
        settings=entry.get("settings", {}),
        remarks=entry.get("remarks", {}),
        underlined=tuple(entry.get("underlined", ())),
        heading=entry.get("heading", ""),
    )
